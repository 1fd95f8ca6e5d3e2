import pytest
import torch

from dqcore import DynamicQuantizer
from dqcore.estimators import Cosine, Euclidean, Rotation, StraightThrough
from dqcore.testing import assert_close


def test_gradient_passes_straight_through():
    z = torch.randn(2, 8, 4, 4, requires_grad=True)
    out = DynamicQuantizer(8, 19, commitment=0.0)(z)
    weight = torch.randn_like(z)
    (grad,) = torch.autograd.grad((out.map * weight).sum(), z)
    assert torch.equal(grad, weight)


def test_rotation_turns_the_gradient():
    z = torch.randn(1, 5, 2, 2, dtype=torch.float64).float().requires_grad_()
    quantizer = DynamicQuantizer(5, 7, estimator=Rotation()).eval()
    out = quantizer(z)
    assert_close(out.map, quantizer.embed(out.codes))
    weight = torch.randn_like(z)
    (grad,) = torch.autograd.grad((out.map * weight).sum(), z)
    for y, x in ((0, 0), (1, 0)):
        v, e, w = z[0, :, y, x].detach().double(), out.map[0, :, y, x].detach().double(), weight[0, :, y, x].double()
        u, q = v / v.norm(), e / e.norm()
        m = (u + q) / (u + q).norm()
        rotation = torch.eye(5, dtype=torch.float64) - 2 * torch.outer(m, m) + 2 * torch.outer(q, u)
        assert_close(rotation @ u, q)
        expected = e.norm() / v.norm() * rotation.T @ w
        torch.testing.assert_close(grad[0, :, y, x].double(), expected, rtol=1e-4, atol=1e-6)


def test_cosine_ignores_length():
    z = torch.randn(2, 8, 4, 4)
    quantizer = DynamicQuantizer(8, 19, metric=Cosine()).eval()
    out = quantizer(z)
    assert torch.equal(out.codes, quantizer(z * 7).codes)
    assert_close(out.map.norm(dim=1), torch.ones(2, 4, 4))
    similarity = torch.einsum("bdhw,kd->bhwk", z, torch.nn.functional.normalize(quantizer.codebook.codes, dim=1))
    assert torch.equal(out.codes, similarity.argmax(-1))


@pytest.mark.parametrize("metric", [Euclidean(), Cosine()])
@pytest.mark.parametrize("estimator", [StraightThrough(), Rotation()])
def test_a_vector_of_zeros_has_a_code_and_a_gradient(estimator, metric):
    """It has no direction to turn and no length to scale; a dead channel or padding makes such vectors."""
    quantizer = DynamicQuantizer(8, 19, commitment=0.0, metric=metric, estimator=estimator).eval()
    z = torch.randn(1, 8, 2, 2)
    z[:, :, 0, 0] = 0
    out = quantizer(z.requires_grad_())
    assert torch.equal(out.map, quantizer.embed(out.codes))
    weight = torch.randn_like(z)
    (grad,) = torch.autograd.grad((out.map * weight).sum(), z)
    assert torch.equal(grad[:, :, 0, 0], weight[:, :, 0, 0]) and grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-42, 1e-40, 1e-30, 1e38])
def test_rotation_gives_the_code_at_any_scale(scale):
    quantizer = DynamicQuantizer(8, 19, estimator=Rotation()).eval()
    z = torch.randn(1, 8, 2, 2).mul(scale).requires_grad_()
    out = quantizer(z)
    assert torch.equal(out.map, quantizer.embed(out.codes))
    assert not torch.autograd.grad(out.map.sum(), z)[0].isnan().any()


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30])
def test_a_vector_of_another_scale_has_length_one_beside_others(scale):
    x = torch.randn(5, 8)
    x[2] *= scale
    wanted = torch.nn.functional.normalize(x.double(), dim=1, eps=1e-300).float()
    assert_close(Cosine()(x, 1), wanted)


def test_a_vector_left_out_gives_no_projection_a_nan():
    quantizer = DynamicQuantizer(8, 19, estimator=Rotation(), codebook_dim=4, nonfinite="mask")
    z = torch.randn(1, 8, 2, 2)
    z[0, 0, 0, 0] = torch.nan
    out = quantizer(z)
    (out.map.sum() + out.loss).backward()
    assert all(parameter.grad.isfinite().all() for parameter in quantizer.parameters())
