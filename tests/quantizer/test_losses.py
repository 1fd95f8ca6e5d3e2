"""The loss and its two parts."""

import torch

from dqcore import DynamicQuantizer
from dqcore.codebook import Gradient


def test_the_loss_and_its_parts():
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    quantizer = DynamicQuantizer(8, 20, commitment=0.4, learning=Gradient())
    out = quantizer(x)
    _, _, loss = out
    error = (out.map - x).square().mean()
    torch.testing.assert_close(loss, out.commitment_loss + out.codebook_loss)
    torch.testing.assert_close(out.commitment_loss, 0.4 * error)
    torch.testing.assert_close(out.codebook_loss, error)
    weight = quantizer.codebook.weight
    assert torch.autograd.grad(out.commitment_loss, [x, weight], allow_unused=True, retain_graph=True)[1] is None
    assert not torch.autograd.grad(out.codebook_loss, [x, weight], allow_unused=True, retain_graph=True)[0] is not None
    assert quantizer.eval()(x).loss > 0
    quiet = DynamicQuantizer(8, 20, eval_loss=False)
    assert quiet(x).loss > 0 and quiet.eval()(x).loss == 0 == quiet(x).commitment_loss


def test_the_loss_does_not_depend_on_the_projection():
    """A projection that keeps eight of the channels of a map that repeats them loses nothing."""
    x = torch.randn(2, 8, 4, 4)
    quantizer, projected = DynamicQuantizer(8, 20), DynamicQuantizer(64, 20, codebook_dim=8)
    projected.codes = quantizer.codes
    with torch.no_grad():
        projected.project_in.weight.copy_(torch.eye(8, 64)[:, :, None, None])
        projected.project_in.bias.zero_()
    torch.testing.assert_close(projected(x.repeat(1, 8, 1, 1)).loss, quantizer(x).loss)


def test_a_backward_hook_leaves_the_three_fields():
    """PyTorch makes the tuple anew from its fields, with which the parts of the loss are lost."""
    calls, quantizer = [], DynamicQuantizer(8, 16)
    quantizer.register_full_backward_hook(lambda *_: calls.append(1))
    maps = torch.randn(2, 8, 4, 4, requires_grad=True)
    out = quantizer(maps)
    assert out.commitment_loss is None and out.codebook_loss is None
    (out.map.square().sum() + out.loss).backward()
    assert calls and maps.grad.any()
