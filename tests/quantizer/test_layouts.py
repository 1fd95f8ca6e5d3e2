"""Every layout of features: codes, maps, memory formats, masks, and ``embed`` as the inverse."""

import pytest
import torch

from dqcore import DynamicQuantizer
from dqcore.errors import InputError
from dqcore.estimators import Cosine, Rotation

GRIDS = [(), (7,), (3, 5), (2, 3, 5), (2, 2, 3, 2)]
WAYS = [{}, {"codebook_dim": 3}, {"metric": Cosine()}, {"estimator": Rotation()}]


def pair(grid, **options):
    """A quantizer with channels first and one with channels last, and the same features for both."""
    first = DynamicQuantizer(6, 20, **options).eval()
    last = DynamicQuantizer(6, 20, channel_last=True, **options).eval()
    last.load_state_dict(first.state_dict())
    return first, last, torch.randn(4, 6, *grid)


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_grid_and_its_embedding(grid, options):
    first, last, x = pair(grid, **options)
    mask = torch.rand(4, *grid) > 0.3
    expected = first(x.flatten(2)[..., None] if grid else x[..., None, None])
    for quantizer, features, axis in ((first, x, 1), (last, x.movedim(1, -1), -1)):
        out = quantizer(features)
        assert out.map.shape == features.shape and out.codes.shape == (4, *grid)
        assert torch.equal(out.codes.flatten(), expected.codes.flatten())
        torch.testing.assert_close(out.map.movedim(axis, 1).flatten(), expected.map.flatten())
        torch.testing.assert_close(out.loss, expected.loss)
        masked = quantizer(features, mask=mask)
        assert torch.equal(masked.codes < 0, ~mask)
        for result in (out, masked):
            for dtype in (torch.int64, torch.int32, torch.int8):
                again = quantizer.embed(result.codes.to(dtype))
                if quantizer.codebook.dim == quantizer.dim:
                    assert torch.equal(again, result.map)
                else:  # a convolution may round otherwise where memory lies otherwise
                    torch.testing.assert_close(again, result.map)
    hole = torch.full((1, *grid), 20)
    padding = first.project_out(first.metric(first.codebook.weight, 1)[20].view(1, -1, 1, 1)).flatten()
    torch.testing.assert_close(last.embed(hole), padding.expand(1, *grid, 6))


def test_granularities_embed_too():
    maps = [torch.randn(2, 6, 2 << g, 3 << g) for g in range(2)]
    quantizer, grain = DynamicQuantizer(6, 20, 2, codebook_dim=3).eval(), torch.randint(0, 2, (2, 2, 3))
    out = quantizer(maps, grain, torch.rand(2, 2, 3) > 0.3)
    assert torch.equal(quantizer.embed(out.codes), out.map)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_memory_formats_are_kept(options):
    first, last, x = pair((3, 5), **options)
    wide = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    out = first(wide)
    assert out.map.is_contiguous(memory_format=torch.channels_last) and not out.map.is_contiguous()
    out.map.sum().backward()
    assert torch.equal(out.codes, first(x).codes) and first(x).map.is_contiguous()
    volume = torch.randn(2, 6, 2, 3, 4).contiguous(memory_format=torch.channels_last_3d)
    assert first(volume).map.is_contiguous(memory_format=torch.channels_last_3d)
    for grid in GRIDS:
        assert last(torch.randn(2, *grid, 6)).map.is_contiguous()
    maps = [torch.randn(2, 6, 2 << g, 2 << g).contiguous(memory_format=torch.channels_last) for g in range(2)]
    out = DynamicQuantizer(6, 20, 2, **options)(maps, torch.ones(2, 2, 2, dtype=torch.int64))
    assert out.map.is_contiguous(memory_format=torch.channels_last)


def test_lengths_are_masks():
    first, last, x = pair((7,))
    lengths = torch.tensor([7, 0, 3, 5], dtype=torch.int32)
    mask = torch.arange(7) < lengths[:, None]
    for quantizer, features in ((first, x), (last, x.mT)):
        out, expected = quantizer(features, lengths=lengths), quantizer(features, mask=mask)
        assert torch.equal(out.codes, expected.codes) and torch.equal(out.loss, expected.loss)
        both = quantizer(features, mask=torch.arange(7) > 1, lengths=lengths)
        assert torch.equal(both.codes >= 0, mask & (torch.arange(7) > 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q: q(torch.randn(4)), "features: expected"),
        (lambda q: q(torch.randn(2, 5, 7)), r"features: expected \(B, dim, N\) with dim=6, got \(2, 5, 7\)"),
        (lambda q: q(torch.randn(2, 6, 7), lengths=torch.tensor([1.0, 2])), "lengths: expected 2 integers"),
        (lambda q: q(torch.randn(2, 6, 7), lengths=torch.tensor([1])), "lengths: expected 2 integers"),
        (
            lambda q: q(torch.randn(2, 6, 7), lengths=torch.tensor([8, 1])),
            r"lengths: expected values in \[0, 7\], got \[1, 8",
        ),
        (lambda q: q(torch.randn(2, 6, 7), lengths=torch.tensor([0, -1])), r"lengths: .* got \[-1, 0\]"),
        (lambda q: q(torch.randn(2, 6, 7, 2), lengths=torch.tensor([1, 2])), "lengths: expected sequences"),
        (lambda q: q(torch.randn(2, 6, 7), mask=torch.ones(2, 6, dtype=torch.bool)), "mask: expected shape"),
        (lambda q: q.embed(torch.tensor(3)), "codes: expected"),
        (lambda q: q.embed(torch.tensor([True])), "codes: expected"),
        (lambda q: q.embed(torch.tensor([21])), r"codes: expected values in \[-1, 20\]"),
        (lambda q: q.embed(torch.tensor([-2])), r"codes: expected values in \[-1, 20\]"),
        (lambda q: DynamicQuantizer(6, 20, 2)(torch.randn(2, 6, 7), torch.zeros(2, 7).long()), "features: expected"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(DynamicQuantizer(6, 20))
