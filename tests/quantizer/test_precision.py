"""Half precision, autocast, scaled gradients, and numbers at the ends of float32's range."""

import pytest
import torch
from quantizer_inputs import WAYS, buffers, unchanged
from torch import nn

from dqcore import DynamicQuantizer
from dqcore.codebook import EMA, Gradient
from dqcore.estimators import Cosine, Rotation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", WAYS)
def test_half_precision_keeps_the_codebook_in_float32(name, dtype):
    torch.manual_seed(0)
    quantizer = DynamicQuantizer(8, 20, **WAYS[name]).to(dtype)
    x = torch.randn(2, 8, 5, 4, dtype=dtype, requires_grad=True)
    for _ in range(2):
        out = quantizer(x)
        assert (out.map.dtype, out.loss.dtype) == (dtype, torch.float32)
        (out.map.float().sum() + out.loss).backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()
    wide = {value.dtype for name, value in quantizer.codebook.state_dict().items() if name != "idle"}
    assert wide == {torch.float32}
    quantizer.eval()
    out = quantizer(x)
    embedded = quantizer.embed(out.codes)
    assert embedded.dtype == dtype and torch.equal(embedded, out.map)
    assert quantizer.float().embed(out.codes).dtype == torch.float32
    assert quantizer.double().half().codes.dtype == torch.float32


def test_narrowing_loses_nothing_of_the_codes():
    quantizer = DynamicQuantizer(8, 20)
    before = buffers(quantizer)
    assert unchanged(quantizer.half().bfloat16().float(), before)


def test_gradient_scaler_and_float16_autocast():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), DynamicQuantizer(8, 20, codebook_dim=4))
    scaler, optimizer = torch.amp.GradScaler("cpu"), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        with torch.autocast("cpu", torch.float16):
            out = model(torch.randn(2, 3, 4, 4))
        assert out.loss.dtype == torch.float32
        scaler.scale(out.loss + out.map.float().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model[1].codes.dtype == torch.float32


@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=["ema", "gradient"])
def test_a_loaded_codebook_is_float32(learning):
    quantizer = DynamicQuantizer(4, 8, learning=learning)
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in quantizer.state_dict().items()
    }
    quantizer.load_state_dict(half, assign=True)
    assert {value.dtype for value in quantizer.codebook.state_dict().values()} == {torch.float32, torch.int64}


def test_codes_without_smoothing_stay_finite():
    quantizer = DynamicQuantizer(4, 8, learning=EMA(decay=0.0, eps=0.0), restart=None)
    for _ in range(2):
        quantizer(torch.randn(1, 4, 1, 2))
    assert quantizer.codes.isfinite().all()


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 1e37])
def test_directions_at_any_scale(scale):
    x, codes = (torch.randn(1, 8, 8, 8) * scale).requires_grad_(), torch.randn(64, 8)
    quantizer = DynamicQuantizer(8, 64, metric=Cosine()).eval()
    quantizer.codes = codes
    flat = (x.detach().double() / scale).permute(0, 2, 3, 1).reshape(-1, 8)
    unit = codes.double() / codes.double().norm(dim=1, keepdim=True)
    assert torch.equal(quantizer(x).codes.flatten(), (flat @ unit.T).argmax(1))
    rotating = DynamicQuantizer(8, 64, estimator=Rotation()).eval()
    rotating.codes = codes
    out = rotating(x)
    (grad,) = torch.autograd.grad(out.map.sum(), x)
    z, e = x.detach().double(), out.map.detach().double()
    u, q = z / z.norm(dim=1, keepdim=True), e / e.norm(dim=1, keepdim=True)
    middle = (u + q) / (u + q).norm(dim=1, keepdim=True)
    turned = 1 - 2 * middle * middle.sum(1, keepdim=True) + 2 * u * q.sum(1, keepdim=True)
    expected = turned * e.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True)
    assert (grad.double() - expected).norm() < 1e-5 * expected.norm()
