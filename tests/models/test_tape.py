"""The tape: its layout against the reference's recorded sequences, and the rules that make a walk valid."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import dqcore
from dqcore.models.sampling.draw import uniforms
from dqcore.models.sampling.walk import Plan, TapeWalk
from dqcore.models.tape import NULL
from dqcore.models.tapes import coarse_to_fine_tape, raster_tape
from dqcore.ops.reference.take_content import fill
from dqcore.ops.reference.take_entry import blocked_entries, go

GRID = (3, 4)


def random_sequence(batch, granularities, order="row-first", grid=GRID, size=50):
    grain = torch.randint(0, granularities, (batch, *grid))
    codes = torch.randint(0, size, (batch, *(side << granularities - 1 for side in grid)))
    return dqcore.pack_codes(codes, grain, order=order, num_granularities=granularities)


@pytest.mark.parametrize("order", ["row-first", "region-first"])
@pytest.mark.parametrize("granularities", [1, 2, 3])
def test_layout_is_the_papers(order, granularities):
    sequence = random_sequence(3, granularities, order)
    labels = torch.tensor([0, 5, NULL])
    tape = coarse_to_fine_tape(GRID, granularities, 50, 7, order)
    tokens = tape.lay_out(sequence, labels)
    contents, columns, offset, row = [], [], 0, []
    for image, label in zip(sequence, labels.tolist(), strict=True):
        offset = 0
        for g in range(granularities):
            mine, cells = image.grains == g, 12 * 4**g
            contents += [52 + label, *image.codes[mine].tolist(), 51]
            part = [cells + 2 + label, *image.positions[mine].tolist(), cells + 1]
            columns += part
            row += [offset + p for p in part]
            offset += cells + 2 + 7
    assert tokens.contents.tolist() == contents
    assert tokens.columns.tolist() == columns
    assert tokens.rows.tolist() == row
    lengths = (sequence.lengths + 2 * granularities - 1).tolist()
    assert tokens.cu_seqlens.diff().tolist() == lengths
    assert tokens.steps.tolist() == [i for n in lengths for i in range(n)]
    ends = torch.tensor(lengths).add(1).cumsum(0) - 1
    assert set(tokens.inputs.tolist()) == set(range(len(contents))) - set(ends.tolist())


@pytest.mark.parametrize("granularities", [1, 2, 3])
def test_layout_does_not_care_for_the_order_it_gets(granularities):
    tape = coarse_to_fine_tape(GRID, granularities, 50, 1, "row-first")
    grain = torch.randint(0, granularities, (2, *GRID))
    codes = torch.randint(0, 50, (2, *(side << granularities - 1 for side in GRID)))
    one, other = (dqcore.pack_codes(codes, grain, o, granularities) for o in ("row-first", "region-first"))
    labels = torch.zeros(2, dtype=torch.int64)
    for mine, theirs in zip(tape.lay_out(one, labels), tape.lay_out(other, labels), strict=True):
        assert torch.equal(mine, theirs)


def tapes(granularities):
    return [
        coarse_to_fine_tape(GRID, granularities, 50, 1, "row-first"),
        coarse_to_fine_tape(GRID, granularities, 50, 1, "region-first"),
        raster_tape(GRID, granularities, 50),
    ]


def plan_of(tape, slots):
    return Plan(tape, torch.zeros(1, slots, dtype=torch.int64), uniforms(0, torch.arange(slots), 2 * len(tape)))


def take(walk, entries, codes):
    """What a step changes once it is drawn."""
    go(walk._here, walk.status, walk.tokens, walk.tape.rules, entries)
    fill(walk._here, walk.taken, codes)


@pytest.mark.parametrize("granularities", [1, 2, 3])
def test_random_walks_are_valid_and_reach_every_granularity(granularities):
    for tape in tapes(granularities):
        slots = 40
        walk = TapeWalk(tape, slots)
        walk.load(torch.ones(slots, dtype=torch.bool), plan_of(tape, slots))
        before = walk.entries.clone()
        for _ in range(tape.max_tokens):
            entries = torch.where(blocked_entries(walk.status), 0.0, torch.rand(slots, len(tape)) + 1e-3).argmax(1)
            assert bool(((entries > before) | (before == len(tape) - 1)).all())
            before = entries
            take(walk, entries, torch.randint(0, 50, (slots,)))
        assert bool(walk.complete().all())
        sequence = tape.to_sequence(walk.taken, "row-first")
        codes, grain = dqcore.unpack_codes(sequence)  # raises unless each region is covered exactly once
        assert dqcore.pack_codes(codes, grain, num_granularities=granularities) == sequence
        assert grain.unique().tolist() == list(range(granularities))


@pytest.mark.parametrize("granularities", [1, 2, 3])
def test_walks_allow_exactly_what_images_have(granularities):
    """Every token of a real image is open when its turn comes, and only ever entries that some image could take."""
    for tape in tapes(granularities):
        sequence = random_sequence(1, granularities)
        tokens = tape.lay_out(sequence, torch.zeros(1, dtype=torch.int64))
        walk = TapeWalk(tape, 1)
        walk.load(torch.tensor([True]), plan_of(tape, 1))
        for entry in tokens.entries[1:]:
            assert not blocked_entries(walk.status)[0, entry]
            take(walk, entry[None], torch.tensor([3]))
        assert bool(walk.complete())


def test_averages_of_priors_with_their_tables():
    sizes = {"codebook_size": 8, "region_grid": (2, 2), "num_granularities": 2, "num_classes": 3}
    prior = dqcore.DQTransformer.from_preset("dqtransformer-tiny", **sizes)
    average = AveragedModel(prior, use_buffers=True)
    for _ in range(3):
        average.update_parameters(prior)
    for name, table in prior.named_buffers():
        assert torch.equal(average.module.get_buffer(name), table), name
