"""Quantizers of other libraries against ours in their place: a training step, inference, and the host at tiny inputs.

diffusers is the package itself. taming-transformers, LlamaGen and TiTok are in no registry: their peers here are the
formulas that they compute, written plainly, with every matrix that they make.
"""

from __future__ import annotations

import pytest
import torch
from rows import beside
from torch import nn
from torch.nn import functional as F

from dqcore.compat import diffusers, llamagen, taming, titok
from dqcore.testing import assert_nearest

#: Library: shape of the map, codes, how many times faster a training step has to be.
PROBLEMS = {
    "taming": ((8, 256, 32, 32), 1024, 4),
    "taming_first": ((8, 256, 32, 32), 1024, 4),
    "taming_ema": ((8, 256, 32, 32), 1024, 4),
    "diffusers": ((8, 256, 32, 32), 1024, 4),
    "llamagen": ((8, 8, 32, 32), 16384, 3),
    "titok": ((8, 256, 32, 32), 1024, 4),
}
TINY = (1, 64, 4, 4), 1024


def _distances(rows, codebook):
    return rows.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * (rows @ codebook.T)


class TamingFormula(nn.Module):
    """``VectorQuantizer2``: all distances, argmin, two losses; with ``hot`` ``VectorQuantizer``: one-hot products."""

    def __init__(self, size, dim, hot):
        super().__init__()
        self.hot = hot
        self.embedding = nn.Embedding(size, dim)

    def forward(self, z):
        """Map, loss and codes."""
        z = z.permute(0, 2, 3, 1).contiguous()
        rows, weight = z.view(-1, z.shape[-1]), self.embedding.weight
        codes = _distances(rows, weight).argmin(1)
        if self.hot:
            chosen = torch.zeros(len(codes), len(weight), device=z.device).scatter_(1, codes[:, None], 1)
            vectors = (chosen @ weight).view_as(z)
            share = chosen.mean(0)
            (-(share * (share + 1e-10).log()).sum()).exp()
        else:
            vectors = self.embedding(codes).view_as(z)
        loss = (vectors.detach() - z).square().mean() + 0.25 * (vectors - z.detach()).square().mean()
        return (z + (vectors - z).detach()).permute(0, 3, 1, 2).contiguous(), loss, codes


class TamingEMAFormula(nn.Module):
    """``EMAVectorQuantizer``: one-hot codes, whose products with the vectors move the averages."""

    def __init__(self, size, dim, decay=0.99):
        super().__init__()
        self.decay = decay
        self.embedding = taming.EmbeddingEMA(size, dim)

    def forward(self, z):
        """Map, loss and codes."""
        z = z.permute(0, 2, 3, 1)
        rows, weight = z.reshape(-1, z.shape[-1]), self.embedding.weight
        codes = _distances(rows, weight).argmin(1)
        vectors = self.embedding(codes).view(z.shape)
        hot = F.one_hot(codes, len(weight)).type(z.dtype)
        share = hot.mean(0)
        (-(share * (share + 1e-10).log()).sum()).exp()
        if self.training:
            with torch.no_grad():
                self.embedding.cluster_size_ema_update(hot.sum(0))
                self.embedding.embed_avg_ema_update(hot.T @ rows)
                self.embedding.weight_update(len(weight))
        loss = 0.25 * F.mse_loss(vectors.detach(), z)
        return (z + (vectors - z).detach()).permute(0, 3, 1, 2), loss, codes


class LlamaGenFormula(nn.Module):
    """Unit vectors, all distances, losses, the use of the codebook; the entropy loss too, although its weight is 0."""

    def __init__(self, size, dim):
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self.register_buffer("codebook_used", torch.zeros(65536))

    def forward(self, z):
        """Map, loss and codes."""
        z = F.normalize(z.permute(0, 2, 3, 1), dim=-1)
        rows, weight = z.reshape(-1, z.shape[-1]), F.normalize(self.embedding.weight, dim=-1)
        distances = _distances(rows, weight)
        codes = distances.argmin(1)
        vectors = weight[codes].view_as(z)
        loss = z.new_zeros(())
        if self.training:
            self.codebook_used.copy_(torch.cat([self.codebook_used[len(codes) :], codes]))
            len(self.codebook_used.unique())
            logits = -distances / 0.01
            share, log = logits.softmax(1), (logits + 1e-5).log_softmax(1)
            mean = share.mean(0)
            entropy = -(share * log).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
            loss = (vectors - z.detach()).square().mean() + 0.25 * (vectors.detach() - z).square().mean()
            loss = loss + 0.0 * entropy
        return (z + (vectors - z).detach()).permute(0, 3, 1, 2), loss, codes


class TiTokFormula(nn.Module):
    """All distances with the products by einsum, argmin, two losses."""

    def __init__(self, size, dim):
        super().__init__()
        self.embedding = nn.Embedding(size, dim)

    def forward(self, z):
        """Map, loss and codes."""
        z = z.float().permute(0, 2, 3, 1).contiguous()
        rows, weight = z.view(-1, z.shape[-1]), self.embedding.weight
        squares = rows.square().sum(1, keepdim=True) + weight.square().sum(1)
        codes = (squares - 2 * torch.einsum("nd,kd->nk", rows, weight)).argmin(1)
        vectors = self.embedding(codes).view_as(z)
        loss = 0.25 * (vectors.detach() - z).square().mean() + (vectors - z.detach()).square().mean()
        return (z + (vectors - z).detach()).permute(0, 3, 1, 2).contiguous(), loss, codes


class _Flat(nn.Module):
    """A quantizer that returns (map, loss, codes)."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z):
        """Map, loss and codes."""
        quantized, loss, *about = self.quantizer(z)
        if isinstance(loss, dict):
            return quantized, loss["quantizer_loss"], loss["min_encoding_indices"].flatten()
        (about,) = about
        if isinstance(loss, tuple):
            loss = sum(loss[:3]) if self.training else quantized.new_zeros(())
        return quantized, loss, about[2].flatten()


def pair(library, size, dim):
    """Ours and theirs with the same weights."""
    if library == "diffusers":
        theirs = pytest.importorskip("diffusers.models.autoencoders.vae").VectorQuantizer
        ours, peer = diffusers.VectorQuantizer(size, dim, 0.25), _Flat(theirs(size, dim, 0.25))
        source = peer.quantizer
    elif library == "llamagen":
        ours, peer = llamagen.VectorQuantizer(size, dim, 0.25, 0.0, True, True), LlamaGenFormula(size, dim)
        source = peer
    elif library == "titok":
        ours, peer = titok.VectorQuantizer(size, dim, 0.25), TiTokFormula(size, dim)
        source = peer
    elif library == "taming_ema":
        ours, peer = taming.EMAVectorQuantizer(size, dim, 0.25), TamingEMAFormula(size, dim)
        source = peer
        source.embedding.cluster_size.fill_(8)  # from 0, codes that no vector chooses grow without bound
    else:
        cls = taming.VectorQuantizer if library == "taming_first" else taming.VectorQuantizer2
        ours, peer = cls(size, dim, 0.25), TamingFormula(size, dim, hot=library == "taming_first")
        source = peer
    source.embedding.weight.data.normal_()
    ours.load_state_dict(source.state_dict(), strict=True)
    return _Flat(ours), peer


def problem(library, shape, size, device):
    """Ours, theirs, a map and the gradient of the result; ours does what theirs does."""
    torch.manual_seed(0)
    ours, peer = (one.to(device) for one in pair(library, size, shape[1]))
    z = torch.randn(shape, device=device, requires_grad=True)
    small, before = z.detach()[:1, :, :8, :8], ours.quantizer.embedding.weight.detach().clone()
    (_, loss, codes), (_, expected, _) = ours(small), peer(small)
    rows, codebook = small.permute(0, 2, 3, 1).flatten(0, 2), before
    if library == "llamagen":
        rows, codebook = F.normalize(rows, dim=1), F.normalize(codebook, dim=1)
    assert_nearest(codes, rows, codebook)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    return ours, peer, z, torch.randn_like(z)


def step(layer, z, grad):
    """One training step."""
    leaves = [z, *(p for p in layer.parameters() if p.requires_grad)]

    def run():
        quantized, loss, _ = layer.train()(z)
        return torch.autograd.grad([quantized, loss], leaves, [grad, None])

    return run


def inference(layer, z):
    """One forward in evaluation, without gradients."""

    def run():
        with torch.no_grad():
            return layer.eval()(z)

    return run


def note(benchmark, ours, peer, rounds, least=None):
    """Time both in turn and write them down."""
    target = {"speedup": {"theirs": least}} if least else None
    beside(benchmark, ours, {"theirs": peer}, rounds, target, threads=torch.get_num_threads())


@pytest.mark.parametrize("library", PROBLEMS)
def bench_training_step(benchmark, device, library, request):
    """Forward and backward of the quantizer alone; at least 4x, and 3x for LlamaGen."""
    shape, size, target = PROBLEMS[library]
    measured = request.config.getoption("--benchmark")
    ours, peer, z, grad = problem(library, shape if measured else (1, *shape[1:]), size, device)
    note(benchmark, step(ours, z, grad), step(peer, z, grad), 5 if measured else 1, target)


@pytest.mark.parametrize("library", PROBLEMS)
def bench_inference(benchmark, device, library, request):
    """Forward in evaluation."""
    shape, size, _ = PROBLEMS[library]
    measured = request.config.getoption("--benchmark")
    ours, peer, z, _ = problem(library, shape if measured else (1, *shape[1:]), size, device)
    note(benchmark, inference(ours, z), inference(peer, z), 5 if measured else 1)


@pytest.mark.parametrize("library", PROBLEMS)
def bench_tiny_training_step(benchmark, device, library):
    """A map of 16 vectors, where only the host's part is seen; at most 1.5 times the original's."""
    shape, size = TINY
    ours, peer, z, grad = problem(library, shape, size, device)
    note(benchmark, step(ours, z, grad), step(peer, z, grad), 101, 1 / 1.5)
