"""Drawing a code and ending a step, against the specification: given and special contents, guidance, idle slots."""

import pytest
import torch
from walks import CODES, TAPES, assert_alike, even_logits, walked

import dqcore
from dqcore.kernels.tape import ENTRY, LEAST, MOST
from dqcore.ops.take_content import take_content

BLOCK = 16  # of a long row in short


def state_of(walk, route):
    rows = walk.copies * len(walk.status)
    lengths, active = torch.randint(0, 9, (rows,), dtype=torch.int32), torch.rand(rows) < 0.7
    return [tensor.to(route) for tensor in (walk._here, walk.taken, lengths, active)]


@pytest.mark.parametrize(
    ("tape", "copies", "how"),
    [
        ("dq-1", 1, (1.0, None, 1.0)),
        ("dq-2", 1, (1e30, 3, 0.9)),
        ("dq-3", 2, (1e-30, 1, 1.0)),
        ("raster-1", 1, (0.5, 300, 1e-9)),
        ("raster-2", 2, (2.0, None, 0.5)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_end_as_specified(route, tape, copies, how, dtype):
    tape = TAPES[tape]()
    for steps in (1, tape.max_tokens):
        walk = walked(tape, 4, steps, copies)
        walk._here[:, ::2, 0, MOST] = walk._here[:, ::2, 0, LEAST]  # half of the contents are known, the others not
        walk._here[:, 1::2, 0, LEAST], walk._here[:, 1::2, 0, MOST] = 0, 1 << 62
        logits = even_logits(4 * copies, CODES + 3, dtype).to(route)[:, :CODES]  # as heads give them, with more columns
        here, _, lengths, active = state = state_of(walk, route)
        after = assert_alike(take_content, state, (logits, 3.0, *how))
        assert torch.equal(after[2], lengths + active)
        going = (here[:, :, 0, ENTRY] < len(tape) - 1).flatten()
        assert torch.equal(after[3], going)
        known = after[0][0, ::2, 0, LEAST] == here[0, ::2, 0, LEAST]
        assert bool(known.all()) and bool((after[0][0, 1::2, 0, LEAST] < CODES).all())


def test_logits_that_are_no_numbers_give_some_code(route):
    if dqcore.backends.route(torch.device(route)) != "gpu":
        pytest.skip("PyTorch's searchsorted returns one past the end")
    walk = walked(TAPES["dq-1"](), 3, 1)
    walk._here[..., MOST] = 1 << 62
    state = state_of(walk, route)
    take_content(*state, torch.full((3, CODES), torch.nan, device=route), 1.0, 1.0, 3, 0.5)
    assert bool((state[0][..., LEAST] >= 0).all())
    assert bool((state[1] < CODES + 4).all())


@pytest.mark.parametrize(
    ("tape", "copies", "how"),
    [("dq-1", 1, (1.0, None, 1.0)), ("dq-2", 2, (1e30, 3, 0.9)), ("raster-1", 2, (2.0, None, 0.5))],
)
def test_steps_end_as_specified_in_blocks(blocks, tape, copies, how):
    walk = walked(TAPES[tape](), 2, 1, copies)
    walk._here[..., LEAST], walk._here[..., MOST] = 0, 1 << 62
    logits = even_logits(2 * copies, CODES, torch.bfloat16).to(blocks)
    assert_alike(take_content, state_of(walk, blocks), (logits, 3.0, *how))


def test_long_rows_end_steps_as_specified(route):
    walk = walked(TAPES["dq-2"](), 1, 1, copies=2)
    walk._here[..., LEAST], walk._here[..., MOST] = 0, 1 << 62
    logits = even_logits(2, 16389, torch.float16).to(route)[:, :16384]
    assert_alike(take_content, state_of(walk, route), (logits, 3.0, 1.0, 9000, 1.0))


def test_it_is_an_op(route):
    state = state_of(walked(TAPES["dq-1"](), 2, 1), route)
    args = (*state, torch.zeros(2, CODES, device=route), 1.0, 1.0, None, 1.0)
    torch.library.opcheck(torch.ops.dqcore.take_content, args, test_utils=("test_schema", "test_faketensor"))
