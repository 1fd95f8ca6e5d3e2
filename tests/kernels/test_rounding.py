"""No vector that the scan settles differs from float64, on ten million adversarial ones and a pessimistic tensor core.

The kernels themselves run in Triton's interpreter, over tiles of thousands of vectors. Its products are replaced by
ones that lose as much as ``rounding.ACCUMULATION`` allows, in whichever direction.
"""

import os

import numpy as np
import pytest
import torch

from dqcore import backends
from dqcore.ops.reference.nearest_code import squared_distance

pytest.importorskip("triton")
if not backends.interpreting():
    pytest.skip("replaces what Triton's interpreter computes", allow_module_level=True)

from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from dqcore.kernels import codes, nearest_code, rounding, tuned
from dqcore.kernels.vectors import Vectors

ROWS = int(os.environ.get("DQCORE_SOUNDNESS_ROWS", 10_000_000))
CODES, DIM, TILE = 16, 8, 2**15


def codebooks(generator):
    """Name, codebook and the size of what vectors lie beside the codes or halfway between two of them."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    codes = normal(CODES, DIM)
    half = codes[: CODES // 2]
    yield "gaussian", codes, 1.0
    yield "vqgan", codes / 1024, 1.0
    yield "common mean", 1000 + 0.3 * codes, 0.3
    yield "near duplicates", torch.cat([half, half + 1e-5 * normal(*half.shape)]), 1.0
    yield "last bits", torch.cat([half, torch.nextafter(half, half + 1)]), 1.0
    yield "huge", 1e17 * codes, 1e17
    yield "tiny", 1e-20 * codes, 1e-20
    yield "many sizes", codes * 10.0 ** torch.linspace(-6, 3, CODES)[:, None], 1.0


def vectors(codebook, size, number, generator):
    """A third at random, the others near points halfway between two codes, off by every share of their distance."""
    pair = torch.randint(0, CODES, (2, number), generator=generator)
    middle = (codebook[pair[0]] + codebook[pair[1]]) / 2
    away = 10.0 ** (-8 * torch.rand(number, 1, generator=generator))
    noise = torch.randn(number, DIM, generator=generator) * size
    return torch.where(torch.rand(number, 1, generator=generator) < 1 / 3, noise, middle + away * noise)


def pessimistic_dot(rng):
    """``a b + c`` off by the whole loss that is allowed, up or down by chance."""

    def dot(self, a, b, c, *_):
        product = a.data.astype(np.float64) @ b.data.astype(np.float64) + c.data
        norms = np.linalg.norm(a.data.astype(np.float64), axis=1)[:, None]
        norms = norms * np.linalg.norm(b.data.astype(np.float64), axis=0)[None] + np.abs(c.data)
        loss = rounding.ACCUMULATION * (a.data.shape[1] + 16) * norms
        signs = rng.integers(0, 2, product.shape, dtype=np.int8) * 2 - 1
        return TensorHandle((product + signs * loss).astype(np.float32), c.dtype.scalar)

    return dot


def nearest(x, codebook):
    """The float64 argmin as it is defined."""
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    code = torch.zeros(len(x), dtype=torch.int64)
    for k, vector in enumerate(codebook):
        distance = squared_distance(x, vector)
        code = torch.where(distance < best, k, code)
        best = torch.minimum(best, distance)
    return code


@pytest.mark.slow
@pytest.mark.parametrize(("split", "share"), [(True, 0.3), (False, 0.7)], ids=["two parts", "rounded once"])
def test_no_settled_vector_is_wrong(monkeypatch, split, share):
    """In two parts a vector takes twice the time, so there are fewer."""
    monkeypatch.setattr(nearest_code, "WORKSPACE", 2**28)
    monkeypatch.setattr(codes, "SPLIT_DIM", DIM if split else 0)
    monkeypatch.setattr(codes, "PADDING", CODES)
    monkeypatch.setattr(rounding, "ROUND", rounding.ROUND | {"ELEMENTS": TILE * DIM, "ROWS": TILE})
    monkeypatch.setattr(nearest_code, "ROWS", TILE)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", pessimistic_dot(np.random.default_rng(0)))
    generator = torch.Generator().manual_seed(0)
    books = list(codebooks(generator))
    tile = {"BLOCK_N": TILE, "BLOCK_K": CODES, "BLOCK_D": 64, "num_warps": 4, "num_stages": 1}
    part_settled = {}
    for name, codebook, size in books:
        x = vectors(codebook, size, int(ROWS * share) // len(books), generator)
        found = torch.full((len(x),), -1)
        with tuned.force("nearest_code", tile):
            for part in nearest_code.parts(Vectors.of(x), codebook):
                part.scan()
                part.certify(found, exact=True)
        settled = found >= 0
        part_settled[name] = settled.float().mean().item()
        assert torch.equal(found[settled], nearest(x[settled], codebook)), name
    assert part_settled["gaussian"] > 0.5, part_settled
    assert part_settled["common mean"] > 0.5, part_settled


def test_accumulation_covers_its_model():
    """Blocks of 8 or 16 products are added to a running sum, each term cut off below the 24th bit of the largest."""
    rng = np.random.default_rng(0)
    for block in (8, 16):
        for kind in ("signs", "same", "cancels"):
            p = rng.standard_normal((2000, 256)).astype(np.float16).astype(np.float64)
            q = rng.standard_normal((2000, 256)).astype(np.float16).astype(np.float64)
            if kind == "same":
                p, q = abs(p), abs(q)
            if kind == "cancels":
                q[:, 1::2] = -q[:, ::2]
                p[:, 1::2] = p[:, ::2]
            terms = (p * q).reshape(2000, -1, block)
            total = np.zeros(2000)
            for i in range(terms.shape[1]):
                together = np.concatenate([terms[:, i], total[:, None]], axis=1)
                unit = 2.0 ** (np.floor(np.log2(abs(together).max(1))) - 23)
                total = (np.trunc(together / unit[:, None]) * unit[:, None]).sum(1)
            bound = rounding.ACCUMULATION * (256 + 16) * np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
            assert (abs(total - (p * q).sum(1)) <= bound).all()
