"""The table of decoding's tiles: complete for every GPU, and nothing but speed depends on it."""

import itertools

import pytest
import torch

import dqcore
from dqcore import backends
from dqcore.ops import decode_attention
from dqcore.testing import assert_close

pytest.importorskip("triton")
if not (backends.interpreting() or torch.cuda.is_available()):
    pytest.skip("needs Triton's interpreter or a GPU", allow_module_level=True)

from dqcore.kernels import common, tuned
from dqcore.kernels import decode_attention as decode

DEVICE, BACKEND = ("cpu", "interpreter") if backends.interpreting() else ("cuda", "auto")


@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100, 103, 120])
def test_every_size_has_a_row(monkeypatch, arch):
    monkeypatch.setattr(common, "architecture", lambda: arch)
    sizes = ("half", "float32"), (1, 64, 65, 128, 129, 256), (1, 2, 16, 17, 300), (8, 16, 32)
    for dtype, dim, rows, bits in itertools.product(*sizes):
        config = tuned.config("decode_attention", dtype=dtype, dim=dim, rows=rows, bits=bits)
        assert config.keys() == decode.CANDIDATES[0].keys()
        assert config["BLOCK_M"] >= 16 or rows == 1


def test_tiles_change_only_rounding():
    q, k, v = torch.randn(3, 2, 1, 2, 40, device=DEVICE)
    cache = torch.randn(2, 2, 200, 2, 40, device=DEVICE)
    lengths = torch.tensor([150, 3], dtype=torch.int32, device=DEVICE)
    with dqcore.backend("reference"):
        expected = decode_attention(q, k, v, *cache, lengths)
    for block_m, block_n in {(each["BLOCK_M"], each["BLOCK_N"]) for each in decode.CANDIDATES}:
        config = {"BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": 4, "num_stages": 1, "maxnreg": 0}
        with dqcore.backend(BACKEND), tuned.force("decode_attention", config):
            assert_close(decode_attention(q, k, v, *cache, lengths), expected)
