"""What the op's tests do not see of the kernels: other runs, odd sizes, codes that take everything or nothing."""

import pytest
import torch

from dqcore import backends
from dqcore.ops.reference.code_sums import code_sums_reference

pytest.importorskip("triton")
if not (backends.interpreting() or torch.cuda.is_available()):
    pytest.skip("needs Triton's interpreter or a GPU", allow_module_level=True)

from dqcore.kernels import code_sums

DEVICE = "cpu" if backends.interpreting() else "cuda"


@pytest.mark.parametrize("num", [0, 1, 127, 129])
@pytest.mark.parametrize("size", [1, 65])
def test_sizes(num, size):
    x, codes = torch.randn(num, 5, device=DEVICE), torch.randint(0, size, (num,), device=DEVICE)
    for actual, expected in zip(
        code_sums.code_sums_fwd(x, codes, size), code_sums_reference(x.double(), codes, size), strict=True
    ):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("chunk", [32, 128])
@pytest.mark.parametrize("share", ["even", "one takes all", "none"])
def test_code_sums_of_any_share(monkeypatch, chunk, share):
    monkeypatch.setattr(code_sums, "CHUNK", chunk)
    x = torch.randn(333, 70, device=DEVICE)
    codes = torch.randint(-1, 3, (333,), device=DEVICE)
    if share != "even":
        codes.fill_(1 if share == "one takes all" else -1)
    counts, sums = code_sums.code_sums_fwd(x, codes, 3)
    expected_counts, expected_sums = code_sums_reference(x.double(), codes, 3)
    assert torch.equal(counts.double(), expected_counts)
    torch.testing.assert_close(sums.double(), expected_sums, rtol=1e-5, atol=1e-4)
