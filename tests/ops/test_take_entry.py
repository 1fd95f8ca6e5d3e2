"""Drawing and taking an entry, against the specification: every tape, given codes, previews, idle slots."""

import pytest
import torch
from walks import CODES, TAPES, assert_alike, even_logits, given_codes, walked

import dqcore
from dqcore.kernels.tape import BITS, ENTRY, FOR_POSITION, WIDTH
from dqcore.models.tapes import coarse_to_fine_tape
from dqcore.ops.reference.take_entry import go
from dqcore.ops.take_entry import take_entry

BLOCK = 4  # of a long tape in short; some entries that are taken begin one

SETTINGS = [(1.0, None, 1.0), (1e-30, 1, 1.0), (1e30, 2, 1e-9), (0.5, None, 0.5)]


def take(walk, route, logits, guidance, how):
    """Entries taken, after a comparison of all that is written."""
    tape = walk.tape
    tensors = (walk._here, walk.status, walk.tokens, tape.columns, tape.rules)
    here, status, *rest = (tensor.to(route) for tensor in tensors)
    rest += [None if logits is None else logits.to(route), guidance, *how]
    before, (after, _) = here[0, :, 0, ENTRY], assert_alike(take_entry, (here, status), rest)
    last = len(tape) - 1
    assert bool(((after[0, :, 0, ENTRY] > before) | (before == last)).all())
    return after[0, :, 0, ENTRY]


@pytest.mark.parametrize("how", SETTINGS)
@pytest.mark.parametrize("tape", TAPES)
def test_walks_go_on_as_specified(route, tape, how):
    tape = TAPES[tape]()
    walk = walked(tape, 4, int(torch.randint(0, tape.max_tokens, ())))
    columns = int(tape.columns.max()) + 2
    take(walk, route, even_logits(4, columns, torch.bfloat16)[:, : columns - 1], 1.0, how)


@pytest.mark.parametrize("tape", TAPES)
def test_without_logits_the_first_that_may_come_is_taken(route, tape):
    tape = TAPES[tape]()
    for steps in (0, tape.max_tokens // 2, tape.max_tokens):
        take(walked(tape, 4, steps), route, None, 1.0, SETTINGS[0])


@pytest.mark.parametrize(
    "options", [{"given": True}, {"closed": 1}, {"stop": 1}, {"given": True, "closed": 1, "stop": 1}]
)
@pytest.mark.parametrize("guidance", [3.0, 0.25, -1.0])
def test_guided_walks_with_given_codes(route, options, guidance):
    tape = TAPES["dq-3"]()
    if "given" in options:
        options = options | {"given": given_codes(tape, 3)}
    walk = walked(tape, 3, 4, copies=2, **options)
    take(walk, route, even_logits(6, int(tape.columns.max()) + 1), guidance, SETTINGS[0])


def test_draws_follow_the_logits_of_open_entries(route):
    """Any logits: where another number nearby draws the same entry, the kernel draws it too."""
    tape = TAPES["dq-2"]()
    walk, logits = walked(tape, 6, 2), 3 * torch.randn(6, int(tape.columns.max()) + 1)
    how, found = (0.8, 5, 0.9), []
    here, numbers = walk._here.clone(), walk._here[0, :, 0, FOR_POSITION].clone()
    for shift in (-100, 100):
        walk._here[0, :, 0, FOR_POSITION] = (numbers + shift).clamp(0, (1 << BITS) - 1)
        with dqcore.backend("reference"):
            found.append(take(walk, "cpu", logits, 1.0, how))
    walk._here = here
    clear = found[0] == found[1]
    state = [tensor.clone().to(route) for tensor in (here, walk.status)]
    rest = (tensor.to(route) for tensor in (walk.tokens, tape.columns, tape.rules, logits))
    take_entry(*state, *rest, 1.0, *how)
    assert clear.sum() >= 4 and torch.equal(state[0][0, :, 0, ENTRY].cpu()[clear], found[0][clear])


def test_logits_that_are_no_numbers_lead_to_the_end(route):
    if dqcore.backends.route(torch.device(route)) != "gpu":
        pytest.skip("PyTorch's searchsorted returns one past the end")
    tape = TAPES["dq-2"]()
    walk = walked(tape, 2, 1)
    state = [tensor.to(route) for tensor in (walk._here, walk.status)]
    rest = [tensor.to(route) for tensor in (walk.tokens, tape.columns, tape.rules)]
    take_entry(*state, *rest, torch.full((2, 60), torch.nan, device=route), 1.0, 1.0, None, 1.0)
    assert state[0][0, :, 0, ENTRY].tolist() == [len(tape) - 1] * 2
    assert not state[1][:, :-1].any()


@pytest.mark.parametrize("how", [None, *SETTINGS])
@pytest.mark.parametrize("tape", ["dq-2", "raster-2"])
def test_walks_go_on_as_specified_in_blocks(blocks, tape, how):
    tape = TAPES[tape]()
    for steps in (1, tape.max_tokens // 2):
        walk, columns = walked(tape, 2, steps, copies=2), int(tape.columns.max()) + 1
        logits = None if how is None else even_logits(4, columns, torch.bfloat16)
        take(walk, blocks, logits, 3.0, how or SETTINGS[0])


@pytest.mark.parametrize("steps", [1, 7000])
@pytest.mark.parametrize("how", [None, *SETTINGS[:2]])
def test_walks_on_long_tapes_go_on_as_specified(route, how, steps):
    tape = coarse_to_fine_tape((48, 48), 2, CODES, 4, "row-first")
    walk = walked(tape, 1, 1)
    if steps > 1:  # from the midst of the tape
        go(walk._here, walk.status, walk.tokens, tape.rules, torch.tensor([steps]))
    logits = None if how is None else even_logits(1, int(tape.columns.max()) + 1)
    take(walk, route, logits, 1.0, how or SETTINGS[0])


def test_logits_that_are_no_numbers_lead_to_the_end_in_blocks(blocks):
    test_logits_that_are_no_numbers_lead_to_the_end(blocks)


def test_it_is_an_op(route):
    tape = TAPES["dq-1"]()
    walk = walked(tape, 2, 1)
    tensors = (walk._here, walk.status, walk.tokens, tape.columns, tape.rules, torch.zeros(2, 20))
    assert walk.tokens.shape[-1] == WIDTH
    args = (*(tensor.to(route) for tensor in tensors), 1.0, 1.0, None, 1.0)
    torch.library.opcheck(torch.ops.dqcore.take_entry, args, test_utils=("test_schema", "test_faketensor"))
