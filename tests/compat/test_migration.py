"""The tables of docs/migration.md, row by row: what stands on the left beside what stands on the right."""

import pytest
import torch

from dqcore import DynamicQuantizer
from dqcore.codebook import EMA, Gradient, KMeans, RandomRestart
from dqcore.compat import llamagen, taming
from dqcore.compat import vector_quantize_pytorch as vqp
from dqcore.estimators import Cosine, Rotation
from dqcore.metrics import code_usage

DIM, SIZE = 12, 40


@pytest.fixture(params=["ours", "the original"])
def library(request):
    """Our class of the other library's contract, and where pip has it the library itself."""
    return vqp if request.param == "ours" else pytest.importorskip("vector_quantize_pytorch")


def beside(theirs, **options):
    """A layer of ours with their codebook."""
    ours = DynamicQuantizer(DIM, SIZE, **options)
    ours.codes = theirs.codebook.detach() if hasattr(theirs, "codebook") else theirs.embedding.weight.detach()
    return ours


def sequences(seed=0):
    return torch.randn(3, 20, DIM, generator=torch.Generator().manual_seed(seed))


def maps():
    return sequences().mT.reshape(3, DIM, 4, 5).clone()


def test_training_and_codes(library):
    theirs = library.VectorQuantize(dim=DIM, codebook_size=SIZE, decay=0.8, rotation_trick=False)
    ours = beside(theirs, learning=EMA(decay=0.8), restart=None, channel_last=True, commitment=1.0)
    for step in range(3):
        quantized, indices, loss = theirs(sequences(step))
        found = ours(sequences(step))
        assert found.codes.equal(indices)
        torch.testing.assert_close(found.map, quantized)
        torch.testing.assert_close(found.commitment_loss, loss.squeeze())
        torch.testing.assert_close(ours.codes, theirs.codebook.detach())
    torch.testing.assert_close(ours.embed(indices), theirs.get_output_from_indices(indices))


def test_gradient_trained_codes(library):
    theirs = library.VectorQuantize(dim=DIM, codebook_size=SIZE, ema_update=False, learnable_codebook=True)
    ours = beside(theirs, learning=Gradient(), channel_last=True, restart=None)
    theirs(sequences())[2].sum().backward()
    ours(sequences()).codebook_loss.backward()
    there = next(value.grad for name, value in theirs.named_parameters() if "embed" in name)
    torch.testing.assert_close(ours.codebook.weight.grad[:SIZE], there.squeeze(0), rtol=1e-4, atol=1e-6)


def test_cosine(library):
    theirs = library.VectorQuantize(dim=DIM, codebook_size=SIZE, use_cosine_sim=True).eval()
    ours = beside(theirs, metric=Cosine(), channel_last=True).eval()
    assert ours(sequences()).codes.equal(theirs(sequences())[1])
    torch.testing.assert_close(ours(sequences()).map, theirs(sequences())[0])


def test_codebook_dim(library):
    theirs = library.VectorQuantize(dim=DIM, codebook_size=SIZE, codebook_dim=5).eval()
    ours = beside(theirs, codebook_dim=5, channel_last=True).eval()
    for name in ("project_in", "project_out"):
        there, here = getattr(theirs, name), getattr(ours, name)
        here.weight.data, here.bias.data = there.weight.data[:, :, None, None], there.bias.data
    torch.testing.assert_close(ours(sequences()).map, theirs(sequences())[0])


def test_rotation(library):
    theirs = library.VectorQuantize(dim=DIM, codebook_size=SIZE, rotation_trick=True, freeze_codebook=True)
    ours = beside(theirs, estimator=Rotation(), channel_last=True)
    gradients = []
    for forward in (lambda x: theirs(x)[0], lambda x: ours(x, learn=False).map):
        x = sequences().requires_grad_()
        (forward(x) * sequences(1)).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_starts_and_restarts_use_every_code():
    """These two draw other random numbers: what they are for is compared, not which vectors they take."""
    options = {"kmeans_init": True, "threshold_ema_dead_code": 1}
    theirs = vqp.VectorQuantize(dim=DIM, codebook_size=16, **options)
    ours = DynamicQuantizer(DIM, 16, initialisation=KMeans(), restart=RandomRestart(), channel_last=True)
    for step in range(4):
        for layer in (theirs, ours):
            layer(sequences(step))
    for codes in (theirs(sequences())[1], ours(sequences()).codes):
        assert code_usage(torch.bincount(codes.flatten(), minlength=16)) > 0.9


@pytest.mark.parametrize("origin", ["taming", "diffusers"])
def test_gradient_quantizers(origin):
    if origin == "taming":
        theirs = taming.VectorQuantizer2(SIZE, DIM, beta=0.25, legacy=False)
    else:
        module = pytest.importorskip("diffusers.models.autoencoders.vq_model")
        theirs = module.VectorQuantizer(SIZE, DIM, beta=0.25, legacy=False)
    ours = beside(theirs, commitment=0.25, learning=Gradient(), restart=None)
    z_q, loss, (_, _, indices) = theirs(maps())
    quantized, codes, ours_loss = ours(maps())
    assert codes.flatten().equal(indices.flatten()) and codes.shape == (3, 4, 5)
    torch.testing.assert_close(quantized, z_q)
    torch.testing.assert_close(ours_loss, loss)
    torch.testing.assert_close(ours.embed(codes), theirs.get_codebook_entry(indices, (3, 4, 5, DIM)))


@pytest.mark.parametrize("kind", [taming.VectorQuantizer2, taming.VectorQuantizer])
def test_tamings_default_weighs_the_term_of_the_codes(kind):
    theirs = kind(SIZE, DIM, beta=0.25)
    ours = beside(theirs, commitment=1, learning=Gradient(), restart=None)
    z, same = maps().requires_grad_(), maps().requires_grad_()
    theirs(z)[1].backward()
    ours(same).loss.backward()
    torch.testing.assert_close(same.grad, z.grad)
    torch.testing.assert_close(0.25 * ours.codebook.weight.grad[:SIZE], theirs.embedding.weight.grad)


def test_llamagen():
    theirs = llamagen.VectorQuantizer(SIZE, DIM, 0.25, 0.0, True, False)
    ours = beside(theirs, metric=Cosine(), learning=Gradient(), restart=None).train()
    quant, (vq_loss, commit_loss, _, _), (_, _, indices) = theirs.train()(maps())
    found = ours(maps())
    assert found.codes.flatten().equal(indices.flatten())
    torch.testing.assert_close(found.map, quant)
    torch.testing.assert_close(found.codebook_loss, vq_loss)
    torch.testing.assert_close(found.commitment_loss, commit_loss)
