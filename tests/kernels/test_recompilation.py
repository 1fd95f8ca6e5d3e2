"""What a GPU would compile anew: nothing, when lengths, rows, sequences or seeds change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys

sys.path.insert(0, sys.argv[1])
import compile_check
import torch
import triton

triton.runtime.driver.set_active(compile_check.Driver(80))
from dqcore.kernels import varlen_attention, varlen_attention_backward
from dqcore.kernels.setting import Setting

keys = set()


def specialised(kernel, grid):
    def launch(*args, **options):
        binder = kernel.device_caches[triton.runtime.driver.active.get_current_device()][-1]
        _, specialization, given = binder(*args, debug=False, **options)
        keys.add((kernel.__name__, str(specialization), str(given)))

    return launch


triton.runtime.jit.JITFunction.__getitem__ = specialised
for rows, batch, start in ((16000, 32, 0), (15999, 31, 1), (1, 1, 0), (2048, 16, 3)):
    q, k, v = torch.empty(rows, 3, 4, 64, dtype=torch.bfloat16).unbind(1)
    cu = torch.zeros(batch + 1 + start, dtype=torch.int32)[start:]
    seed = torch.zeros(2 + start, dtype=torch.int64)[start:]
    setting = Setting(cu, cu, None, seed, -1, 0, 0.125, 230, "ieee")
    out, lse = varlen_attention.varlen_attention_fwd(q, k, v, setting)
    varlen_attention_backward.varlen_attention_bwd(out, q, k, v, out, lse, setting)
    print(len(keys))
"""


def test_nothing_is_compiled_anew():
    """Triton's own key of a launch, for batches of other sizes whose small tensors start at any address."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["6"] * 4  # three kernels, and a list of blocks for each
