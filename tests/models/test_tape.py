"""The tape: its layout against the reference's recorded sequences, and the rules that make a walk valid."""

import pytest
import torch

import dqcore
from dqcore.models.sampling.draw import Draw, uniforms
from dqcore.models.sampling.walk import Plan, Walk
from dqcore.models.tape import NULL
from dqcore.models.tapes import coarse_to_fine_tape, raster_tape

GRID = (3, 4)


def random_sequence(batch, levels, order="row-first", grid=GRID, size=50):
    grain = torch.randint(0, levels, (batch, *grid))
    codes = torch.randint(0, size, (batch, *(side << levels - 1 for side in grid)))
    return dqcore.pack_codes(codes, grain, order=order, num_granularities=levels)


@pytest.mark.parametrize("order", ["row-first", "region-first"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_layout_is_the_papers(order, levels):
    sequence = random_sequence(3, levels, order)
    labels = torch.tensor([0, 5, NULL])
    tape = coarse_to_fine_tape(GRID, levels, 50, 7, order)
    tokens = tape.lay_out(sequence, labels)
    contents, columns, offset, row = [], [], 0, []
    for image, label in zip(sequence, labels.tolist(), strict=True):
        offset = 0
        for g in range(levels):
            mine, cells = image.grains == g, 12 * 4**g
            contents += [52 + label, *image.codes[mine].tolist(), 51]
            part = [cells + 2 + label, *image.positions[mine].tolist(), cells + 1]
            columns += part
            row += [offset + p for p in part]
            offset += cells + 2 + 7
    assert tokens.contents.tolist() == contents
    assert tokens.columns.tolist() == columns
    assert tokens.rows.tolist() == row
    lengths = (sequence.lengths + 2 * levels - 1).tolist()
    assert tokens.cu_seqlens.diff().tolist() == lengths
    assert tokens.steps.tolist() == [i for n in lengths for i in range(n)]
    ends = torch.tensor(lengths).add(1).cumsum(0) - 1
    assert set(tokens.inputs.tolist()) == set(range(len(contents))) - set(ends.tolist())


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_layout_does_not_care_for_the_order_it_gets(levels):
    tape = coarse_to_fine_tape(GRID, levels, 50, 1, "row-first")
    grain, codes = torch.randint(0, levels, (2, *GRID)), torch.randint(0, 50, (2, *(s << levels - 1 for s in GRID)))
    one, other = (dqcore.pack_codes(codes, grain, o, levels) for o in ("row-first", "region-first"))
    labels = torch.zeros(2, dtype=torch.int64)
    for mine, theirs in zip(tape.lay_out(one, labels), tape.lay_out(other, labels), strict=True):
        assert torch.equal(mine, theirs)


def tapes(levels):
    return [
        coarse_to_fine_tape(GRID, levels, 50, 1, "row-first"),
        coarse_to_fine_tape(GRID, levels, 50, 1, "region-first"),
        raster_tape(GRID, levels, 50),
    ]


def plan_of(tape, slots):
    return Plan(tape, torch.zeros(1, slots, dtype=torch.int64), uniforms(0, torch.arange(slots), 2 * len(tape)))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_random_walks_are_valid_and_reach_every_granularity(levels):
    for tape in tapes(levels):
        slots = 40
        walk = Walk(tape, slots)
        walk.load(torch.ones(slots, dtype=torch.bool), plan_of(tape, slots))
        before = walk.entries.clone()
        for _ in range(tape.max_tokens):
            entries = torch.where(walk.blocked(), 0.0, torch.rand(slots, len(tape)) + 1e-3).argmax(1)
            assert bool(((entries > before) | (before == len(tape) - 1)).all())
            before = entries
            walk.go(entries)
            walk.fill(torch.randint(0, 50, (slots,)))
        assert bool(walk.complete().all())
        sequence = tape.to_sequence(walk.taken, "row-first")
        codes, grain = dqcore.unpack_codes(sequence)  # raises unless each region is covered exactly once
        assert dqcore.pack_codes(codes, grain, num_granularities=levels) == sequence
        assert grain.unique().tolist() == list(range(levels))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_walks_allow_exactly_what_images_have(levels):
    """Every token of a real image is open when its turn comes, and only ever entries that some image could take."""
    for tape in tapes(levels):
        sequence = random_sequence(1, levels)
        tokens = tape.lay_out(sequence, torch.zeros(1, dtype=torch.int64))
        walk = Walk(tape, 1)
        walk.load(torch.tensor([True]), plan_of(tape, 1))
        for entry in tokens.entries[1:]:
            assert not walk.blocked()[0, entry]
            walk.go(entry[None])
            walk.fill(torch.tensor([3]))
        assert bool(walk.complete())


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, 0.5]]).expand(40_000, -1)
    numbers = uniforms(7, torch.arange(40_000), 1)[:, 0]
    drawn = Draw(temperature=0.7)(logits, numbers)
    shares = torch.bincount(drawn, minlength=5) / 40_000
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(0), atol=0.01, rtol=0)
    assert shares[2] == 0


def test_draws_respect_top_k_and_top_p():
    logits = torch.randn(500, 30)
    numbers = uniforms(3, torch.arange(500), 1)[:, 0]
    best = logits.argsort(1, descending=True)
    assert bool((Draw(top_k=4)(logits, numbers)[:, None] == best[:, :4]).any(1).all())
    assert torch.equal(Draw(top_k=1)(logits, numbers), best[:, 0])
    kept = (logits.softmax(1).gather(1, best).cumsum(1) < 0.6).sum(1)  # the one that passes 0.6 is kept as well
    places = (Draw(top_p=0.6)(logits, numbers)[:, None] == best).int().argmax(1)
    assert bool((places <= kept).all())
    assert bool((places == kept).any())


def test_extreme_numbers_never_draw_what_is_forbidden():
    logits = torch.full((2, 6), -torch.inf)
    logits[:, 2:4] = torch.tensor([1.0, 1.0])
    assert Draw()(logits, torch.tensor([0, 2**23 - 1])).tolist() == [2, 3]


def test_uniforms_depend_on_seed_and_sample_alone():
    numbers = uniforms(5, torch.arange(100), 50)
    assert torch.equal(uniforms(5, torch.tensor([70, 3]), 50), numbers[[70, 3]])
    assert torch.equal(uniforms(5, torch.arange(100), 20), numbers[:, :20])
    assert not torch.equal(uniforms(6, torch.arange(100), 50), numbers)
    values = numbers.double() / 2**23
    assert abs(float(values.mean()) - 0.5) < 0.02
    assert abs(float(torch.corrcoef(values.T).triu(1).sum())) < 60  # of 1225 pairs
    assert numbers.unique().numel() > 4990
    assert uniforms(-1, torch.tensor([0]), 1).shape == uniforms(2**70, torch.tensor([0]), 1).shape


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_draw_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Draw(**wrong)
