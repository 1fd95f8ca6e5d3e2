"""What a GPU would compile anew: nothing, when lengths, rows, sequences or seeds change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
SCRIPT = """
import contextlib
import sys

sys.path.insert(0, sys.argv[1])
import compile_check
import compile_known
import torch


class Everything(dict):
    def __contains__(self, digest):
        return True


binaries = set()
compile_known.watch(Everything())  # nothing is compiled: what would be has a digest
compile_check.compiling(80, lambda kernel, config, given, compiled: binaries.add(compiled.made_from))
from dqcore.kernels import tuned, varlen_attention, varlen_attention_backward
from dqcore.kernels.setting import Setting

small = {"BLOCK_M": 32, "BLOCK_N": 32, "CHUNK": 256, "num_warps": 4, "num_stages": 1}
stack = contextlib.ExitStack()
for stem in ("varlen_attention", "varlen_attention_dq", "varlen_attention_dkv"):
    stack.enter_context(tuned.force(stem, small))
for rows, batch, start in ((16000, 32, 0), (15999, 31, 1), (1, 1, 0), (2048, 16, 3)):
    q, k, v = torch.empty(rows, 3, 4, 16, dtype=torch.bfloat16).unbind(1)
    cu = torch.zeros(batch + 1 + start, dtype=torch.int32)[start:]
    seed = torch.zeros(2 + start, dtype=torch.int64)[start:]
    setting = Setting(cu, cu, None, seed, -1, 0, 0.125, 230, "ieee")
    out, lse = varlen_attention.varlen_attention_fwd(q, k, v, setting)
    varlen_attention_backward.varlen_attention_bwd(out, q, k, v, out, lse, setting)
    print(len(binaries))
"""


def test_nothing_is_compiled_anew():
    """Batches of other sizes, whose small tensors start at any address, run what was compiled for the first."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(ROOT / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["5"] * 4  # three kernels; a list of blocks for queries, and one for keys
