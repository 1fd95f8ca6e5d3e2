"""Our ``VectorQuantize`` in training loops: gradients, copies, several processes."""

import copy
import pickle

import pytest
import torch
from processes import launch

from dqcore.compat.vector_quantize_pytorch import VectorQuantize

pytest.importorskip("vector_quantize_pytorch")
DIM, SIZE = 12, 40


def test_rotation_of_one_channel_is_exact():
    layer = VectorQuantize(1, SIZE, rotation_trick=True)
    x = torch.tensor([[[-3.0], [2.7], [-0.41], [0.3]]], requires_grad=True)
    layer.codebook = -1.7 * x.detach()[0].repeat(SIZE // 4 + 1, 1)[:SIZE]
    quantized = layer(x)[0]
    (grad,) = torch.autograd.grad(quantized.sum(), x)
    ratio = quantized.detach() / x.detach()  # a turn by half or by nothing, and a scale
    torch.testing.assert_close(grad, ratio, rtol=1e-5, atol=0)


def test_soft_choices_move_the_codebook_as_theirs(pair):
    x, weight, grads = torch.randn(2, 9, DIM), torch.randn(2, 9, DIM), []
    for layer in pair(orthogonal_reg_weight=0.5, straight_through=True, rotation_trick=False):
        (layer(x)[0] * weight).sum().backward()
        grads.append(layer._codebook.embed.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


def test_loss_has_a_gradient_in_every_training_step():
    for options in ({}, {"commitment_weight": 0.0}, {"freeze_codebook": True}):
        _, _, loss = VectorQuantize(DIM, SIZE, **options)(torch.randn(2, 5, DIM))
        loss.backward()
    ours = VectorQuantize(DIM, SIZE).eval()
    assert not ours(torch.randn(2, 5, DIM, requires_grad=True))[2].requires_grad


@pytest.mark.parametrize("rotate", [True, False])
def test_second_derivatives_are_theirs(rotate, pair):
    grads = []
    for layer in pair(rotation_trick=rotate):
        torch.manual_seed(1)
        x = torch.randn(2, 5, DIM, requires_grad=True)
        quantized, _, loss = layer(x)
        (first,) = torch.autograd.grad(quantized.square().sum() + 3 * loss, x, create_graph=True)
        grads.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4)


def test_results_may_be_changed_in_place():
    for options in ({}, {"rotation_trick": False}, {"use_cosine_sim": True}):
        ours = VectorQuantize(DIM, SIZE, **options)
        x = torch.randn(2, 5, DIM, requires_grad=True)
        quantized, codes, loss = ours(x)
        quantized.mul_(2)
        codes.add_(1)
        (quantized.sum() + loss).backward()


def test_copies_and_pickles():
    ours = VectorQuantize(DIM, SIZE, kmeans_init=True, codebook_dim=5)
    ours(torch.randn(2, 50, DIM))
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        other.eval()
        x = torch.randn(2, 7, DIM)
        assert torch.equal(other(x)[0], ours.eval()(x)[0])


TRAINING = """
import torch
import torch.distributed as dist
from vector_quantize_pytorch import VectorQuantize as Theirs
from dqcore.compat.vector_quantize_pytorch import VectorQuantize

dist.init_process_group("gloo")
rank, dim, size = dist.get_rank(), 12, 40
for options in ({"kmeans_init": True, "threshold_ema_dead_code": 2}, {"use_cosine_sim": True}):
    states = []
    for kind in (Theirs, VectorQuantize):
        torch.manual_seed(0)
        layer = kind(dim, size, sync_codebook=True, **options)
        for number in range(5):
            torch.manual_seed(10 * number + rank)
            layer(torch.randn(3 + rank, 17, dim))
        states.append(layer.state_dict())
    for name in states[0]:
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-5, atol=1e-5)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_one_codebook_as_theirs():
    results = launch(TRAINING, size=2)
    assert [code for code, _, _ in results] == [0, 0], [err for _, _, err in results]
