"""What a sampling step does beside its layers, heads and normalizations: four launches against PyTorch's fifty."""

import pytest
import torch
from rows import compare

import dqcore
from dqcore.models.sampling.draw import Draw, uniforms
from dqcore.models.sampling.walk import Plan, TapeWalk
from dqcore.models.tapes import coarse_to_fine_tape
from dqcore.ops.add_rows import add_rows
from dqcore.ops.draw import draw

SLOTS, DIM, CODES = 128, 1024, 1024  # the base model's


class Bookkeeping:
    """A walk in its first steps, with the tables of embeddings and with logits that come from nowhere."""

    def __init__(self, slots, device):
        tape = coarse_to_fine_tape((16, 16), 2, CODES, 1, "row-first").to(device)
        self.walk, samples = TapeWalk(tape, slots), torch.arange(slots, device=device)
        plan = Plan(tape, torch.zeros_like(samples)[None], uniforms(0, samples, 2 * len(tape)))
        self.walk.load(samples >= 0, plan)
        self.lengths = torch.zeros(slots, dtype=torch.int32, device=device)
        self.active = torch.ones(slots, dtype=torch.bool, device=device)
        dtype = torch.bfloat16
        self.tables = [torch.randn(rows, DIM, device=device, dtype=dtype) for rows in (CODES + 3, 1285, 1285, 2)]
        self.states = torch.randn(slots, DIM, device=device, dtype=dtype)
        self.logits = torch.randn(2, slots, CODES + 3, device=device, dtype=dtype)

    def step(self):
        """Read a token, draw a position and its code; the walk goes on, and after the last entry it rests."""
        walk = self.walk
        x = add_rows(None, self.tables, [walk.contents, walk.rows, self.lengths, walk.grains])
        walk.take_entry(self.logits[0], Draw(), 1.0)
        states = add_rows(self.states, self.tables[1:2], [walk.rows])
        walk.take_content(self.logits[1, :, :CODES], Draw(top_k=300), 1.0, self.lengths, self.active)
        return x, states


def bench_bookkeeping(benchmark, device):
    """Meant to take a fourth of the time of the same in PyTorch's operations, both from a CUDA graph."""
    if device == "cpu":
        pytest.skip("a CPU runs the same operations either way")
    ours, other = Bookkeeping(SLOTS, device), Bookkeeping(SLOTS, device)

    def eager():
        with dqcore.backend("reference"):
            return other.step()

    with torch.inference_mode():
        compare(benchmark, device, ours.step, {"torch": eager}, {"speedup": {"torch": 4.0}}, shape=[SLOTS, DIM, CODES])


@pytest.mark.parametrize("how", [(1.0, None, 1.0), (1.0, 300, 1.0), (1.0, 300, 0.9)], ids=["all", "top_k", "top_p"])
def bench_draw(benchmark, device, how):
    """A code for each slot."""
    if device == "cpu":
        pytest.skip("a CPU runs the same operations either way")
    logits = torch.randn(SLOTS, CODES, device=device, dtype=torch.bfloat16)
    numbers = uniforms(0, torch.arange(SLOTS, device=device), 1)[:, 0]

    def eager():
        with dqcore.backend("reference"):
            return draw(logits, numbers, *how)

    drawn, expected = draw(logits, numbers, *how), eager()
    assert int((drawn != expected).sum()) <= 1  # where a number falls between two roundings
    compare(benchmark, device, lambda: draw(logits, numbers, *how), {"torch": eager}, shape=[SLOTS, CODES])
