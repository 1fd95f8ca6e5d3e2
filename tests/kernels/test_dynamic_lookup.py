"""What the op's tests do not see of the kernels: repeats, and cells that no code covers."""

import pytest
import torch

import dqcore
from dqcore import backends, ops

pytest.importorskip("triton")
if not (backends.interpreting() or torch.cuda.is_available()):
    pytest.skip("needs Triton's interpreter or a GPU", allow_module_level=True)

from dqcore.kernels import dynamic_lookup, dynamic_lookup_backward
from dqcore.ops.reference.dynamic_lookup import dynamic_lookup_reference
from dqcore.testing import TOLERANCE

DEVICE = "cpu" if backends.interpreting() else "cuda"


def lookup_problem():
    maps = [torch.randn(2, 12, 3 * side, 2 * side, device=DEVICE) for side in (1, 2)]
    return maps, torch.randint(-1, 2, (2, 3, 2), device=DEVICE), torch.randn(19, 12, device=DEVICE)


def test_repeats_are_identical():
    maps, grain, codebook = lookup_problem()
    first = dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, True)
    for one, other in zip(first, dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, True), strict=True):
        assert torch.equal(one, other)
    gradients = [torch.randn_like(first[1]), torch.randn_like(first[2])]
    runs = [dynamic_lookup_backward.dynamic_lookup_bwd(maps, grain, *first[:2], *gradients) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_lookup_writes_every_cell(monkeypatch):
    """Outputs begin as garbage; regions without a code must still end as -1 and 0."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **options: empty(*args, **options).fill_(77))
    maps, grain, codebook = lookup_problem()
    codes, quantized, error, *_ = dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, False)
    none = (grain < 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert none.any()
    assert ((codes == -1) == none).all()
    assert (quantized.permute(0, 2, 3, 1)[none] == 0).all()
    assert (error[none] == 0).all()
    assert (error[~none] < 76).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("levels", "height", "width"), [(1, 5, 9), (1, 3, 20), (2, 7, 7), (2, 5, 9), (2, 3, 50), (3, 3, 9), (2, 4, 16)]
)
def test_backward_of_lines_that_are_no_whole_sectors(levels, height, width, dtype):
    """Tiles of several lines of regions end beyond an image; what an expanded or strided gradient says is the same."""
    maps = [torch.randn(2, 3, height << g, width << g, device=DEVICE).to(dtype) for g in range(levels)]
    grain = torch.randint(-1, levels, (2, height, width), device=DEVICE)
    codebook, finest = torch.randn(9, 3, device=DEVICE), maps[-1]
    codes, quantized, *_ = dynamic_lookup.dynamic_lookup_fwd(maps, grain, codebook, False)
    expanded = torch.ones((), dtype=dtype, device=DEVICE).expand(finest.shape)
    strided = torch.randn(2, 3, *finest.shape[2:], 2, device=DEVICE).to(dtype)[..., 0]
    for gradient in (torch.randn_like(finest), expanded, strided):
        of_error = torch.randn(codes.shape, device=DEVICE)
        found = dynamic_lookup_backward.dynamic_lookup_bwd(maps, grain, codes, quantized, gradient, of_error)
        wide = [values.double().requires_grad_() for values in maps]
        _, straight, error, *_ = dynamic_lookup_reference(wide, grain, codebook.double(), False)
        expected = torch.autograd.grad((straight * gradient).sum() + (error * of_error).sum(), wide)
        rtol, atol = TOLERANCE[dtype]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=4 * rtol, atol=4 * atol + 1e-5)


def test_a_backward_pass_of_more_than_32_bits_takes_the_reference(monkeypatch):
    image = torch.empty(1, 1024, 2048, 1024, dtype=torch.bfloat16, device="meta")
    lines, columns = (image.to(memory_format=torch.channels_last), image.transpose(2, 3).contiguous().transpose(2, 3))
    assert dynamic_lookup_backward.fits(image, columns, None) and not dynamic_lookup_backward.fits(image, lines)
    assert not dynamic_lookup_backward.fits(image.permute(0, 2, 1, 3).contiguous().permute(0, 3, 2, 1))
    maps, grain, codebook = lookup_problem()
    maps = [values.requires_grad_() for values in maps]
    launched = []
    monkeypatch.setattr(dynamic_lookup_backward, "dynamic_lookup_bwd", lambda *args: launched.append(args))
    monkeypatch.setattr(dynamic_lookup_backward, "fits", lambda *given: False)
    with dqcore.backend("interpreter" if backends.interpreting() else "auto"):
        out = ops.dynamic_lookup(maps, grain.clamp_min(0), codebook)
        grads = torch.autograd.grad(out.quantized.sum(), maps)
    assert not launched and sum(grad.sum() for grad in grads) == out.quantized.numel()
