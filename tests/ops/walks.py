"""Walks in the midst of random tapes, and logits whose probabilities every device rounds alike."""

from __future__ import annotations

import torch

from dqcore import backend
from dqcore.models.sampling.draw import uniforms
from dqcore.models.sampling.walk import Plan, TapeWalk
from dqcore.models.tapes import coarse_to_fine_tape, raster_tape
from dqcore.ops.reference.take_content import fill
from dqcore.ops.reference.take_entry import blocked_entries, go

GRID, CODES = (2, 3), 20
TAPES = {
    "dq-1": lambda: coarse_to_fine_tape(GRID, 1, CODES, 4, "row-first"),
    "dq-2": lambda: coarse_to_fine_tape(GRID, 2, CODES, 4, "region-first"),
    "dq-3": lambda: coarse_to_fine_tape(GRID, 3, CODES, 4, "row-first"),
    "raster-1": lambda: raster_tape(GRID, 1, CODES),
    "raster-2": lambda: raster_tape(GRID, 2, CODES),
}


def walked(tape, slots, steps, copies=1, **options):
    """A walk after so many random steps; half of its slots end early, and rest."""
    walk = TapeWalk(tape, slots, copies)
    labels = torch.randint(0, 3, (copies, slots))
    plan = Plan(tape, labels, uniforms(steps, torch.arange(slots), 2 * len(tape)), **options)
    walk.load(torch.arange(slots) % 4 < 3, plan)
    for _ in range(steps):
        entries = torch.where(blocked_entries(walk.status), 0.0, torch.rand(slots, len(tape)) + 1e-3).argmax(1)
        go(walk._here, walk.status, walk.tokens, tape.rules, entries)
        fill(walk._here, walk.taken, torch.randint(0, CODES, (slots,)))
    return walk


def given_codes(tape, slots, granularity=0):
    """Random codes of a granularity in some regions, ``(slots, L)``, -1 elsewhere."""
    mine = (tape.grains == granularity) & (tape.positions >= 0)
    region = tape.rules[..., 0].amin(1)  # the first entry of an entry's region stands for it
    kept = torch.rand(slots, len(tape))[:, region] < 0.5
    return torch.where(mine & kept, torch.randint(0, CODES, (slots, len(tape))), -1)


def even_logits(rows, columns, dtype=torch.float32):
    """0, -200 or -400: exponentials are 1 or 0, so that probabilities are quotients of small whole numbers."""
    return (-200.0 * torch.randint(0, 3, (rows, columns))).to(dtype)


def assert_alike(op, written, rest):
    """The op writes what its specification writes, bit for bit."""
    expected, actual = ([tensor.clone() for tensor in written] for _ in range(2))
    with backend("reference"):
        op(*expected, *rest)
    op(*actual, *rest)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
    return actual
