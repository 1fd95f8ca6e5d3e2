"""Counting: what lies beside what, as the writer meets it."""

import pytest
import torch

import dqcore
from dqcore.errors import InputError
from dqcore.stream import CodeCounts, code_classes, fit_tables, read_stream, write_stream
from dqcore.stream.walk import MapWalk


class Recorder:
    """A coder that notes which pairs of a neighbour's class and a number it was given."""

    def __init__(self):
        self.pairs = []

    def code(self, predictor, left, upper, number):
        self.pairs += [(beside, number) for beside in (left, upper) if beside >= 0]
        return number


@pytest.mark.parametrize("num_granularities", [1, 2, 3])
def test_pairs_are_those_that_the_writer_meets(tables_of, photo, num_granularities):
    tables = tables_of(30, num_granularities)
    classes = tables.classes
    counts = CodeCounts(classes, num_granularities)
    expected = torch.zeros_like(counts.code_pairs)
    grains, occur = torch.zeros_like(counts.grain_pairs), torch.zeros(num_granularities, dtype=torch.int64)
    for seed in range(3):
        codes, grain = photo(6, 5, tables, seed)
        counts.add(codes[None], grain[None])
        occur += torch.stack([(grain == g).sum() for g in range(num_granularities)])
        walk = MapWalk(tables, grain.clone().numpy(), codes.clone().numpy())
        walk.take_grain(recorder := Recorder())
        for before, after in recorder.pairs:
            grains[before, after] += 1
        for g in range(num_granularities):
            walk.take_codes(recorder := Recorder(), g)
            for before, after in recorder.pairs:
                expected[g, before, after] += 1
    assert torch.equal(counts.code_pairs, expected)
    if num_granularities > 1:  # one alone is not written, so nobody walks over it
        assert torch.equal(counts.grain_pairs, grains)
    assert torch.equal(counts.grains, occur)
    assert torch.equal(counts.codes.sum(1), occur * 4 ** torch.arange(num_granularities))
    assert int(counts.code_pairs.sum()) > 100 and counts.images == 3


def test_classes_hold_similar_codes():
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    codebook = centres.repeat(20, 1) + torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) * 1e-3
    classes = code_classes(codebook, 3).view(20, 3)
    assert (classes == classes[0]).all() and len(set(classes[0].tolist())) == 3
    assert code_classes(torch.zeros(8, 2)).tolist() == [0] * 8


@pytest.mark.parametrize(("size", "classes"), [(1, 1), (3, 1), (7, 1), (41, 10)])
def test_a_class_holds_four_codes_on_average_at_least(size, classes):
    found = code_classes(torch.rand(size, 4, dtype=torch.bfloat16))
    assert len(found) == size and found.unique().tolist() == list(range(classes))


def test_fitted_tables_make_shorter_streams(identity):
    torch.manual_seed(0)
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", channels=8, latent_channels=16, dim=16).eval()
    smooth = torch.nn.functional.interpolate(torch.rand(6, 3, 4, 4) * 2 - 1, size=(128, 128), mode="bilinear")
    tables = fit_tables(model, smooth[:4].split(2))
    encoding = model.encode(smooth[5:])
    maps = encoding.codes[0], encoding.grain[0]
    plain = dqcore.stream.CodeTables.uniform(256, 2)
    shorter, longer = (write_stream(*maps, (128, 128), t, identity) for t in (tables, plain))
    assert len(shorter) < 0.9 * len(longer)
    assert torch.equal(read_stream(shorter, tables, identity).codes, maps[0])
    with pytest.raises(InputError, match="batches: expected at least one image"):
        fit_tables(model, [])
