"""What holds for every registered op."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dqcore.ops import dynamic_lookup, nearest_code, registry
from dqcore.ops.reference.nearest_code import nearest_code_reference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_reach_inside(route, dtype):
    """A lookup under autocast is as exact as without: its product stays in float32."""
    x, codebook = torch.randn(1024, 32, device=route), torch.randn(256, 32, device=route)
    expected = nearest_code_reference(x, codebook, "exact")
    maps, grain = [x.T.reshape(1, 32, 32, 32)], torch.zeros(1, 32, 32, dtype=torch.int64, device=route)
    with torch.autocast(torch.device(route).type, dtype):
        assert torch.equal(nearest_code(x, codebook), expected)
        assert torch.equal(dynamic_lookup(maps, grain, codebook).codes.flatten(), expected)
        assert torch.is_autocast_enabled(torch.device(route).type)


@pytest.mark.parametrize("grad", [False, True])
def test_a_default_device_does_not_reach_inside(grad):
    maps, grain, codebook = [torch.randn(1, 4, 2, 2)], torch.zeros(1, 2, 2, dtype=torch.int64), torch.randn(8, 4)
    expected = dynamic_lookup(maps, grain, codebook)
    with torch.device("meta"), torch.set_grad_enabled(grad):
        result = dynamic_lookup(maps, grain, codebook)
    assert torch.equal(result.codes, expected.codes) and torch.equal(result.error, expected.error)


def found(op, *args):
    """What an op gives below autograd, and whether PyTorch's dispatcher led there."""
    dispatched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(op.__dict__, "overload", lambda *args: dispatched.append(args) or real(*args))
        result = op.below_autograd(*args)
    return result[0], bool(dispatched)


real = torch.ops.dqcore.lookup_loss.default


class Own(torch.Tensor):
    """A kind of tensor that might wait in the dispatcher."""


def test_the_dispatcher_is_passed_by_unless_somebody_waits_there():
    op = registry.Op("dqcore::lookup_loss")
    args = (torch.rand(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), 8, 0.25)
    expected, ways = real(*args)[0], []
    loss, dispatched = found(op, *args)
    assert torch.equal(loss, expected) and not dispatched
    assert not found(op, torch.nn.Parameter(args[0]), *args[1:])[1]
    assert found(op, args[0].as_subclass(Own), *args[1:])[1]
    assert found(op, args[0].to("meta"), args[1].to("meta"), *args[2:])[1]
    torch.jit.trace(lambda error: ways.append(found(op, error, *args[1:])[1]) or error, args[0], check_trace=False)
    assert ways and all(ways)
    with FlopCounterMode(display=False):
        assert found(op, *args)[1]
    with torch.device("meta"):
        assert torch.equal(found(op, *args)[0], expected)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert found(op, *args)[1]
    assert "dqcore::lookup_loss" in {event.name for event in profile.events()}


def test_the_imaginary_part_of_a_conjugate_has_its_sign_turned(route):
    values = torch.rand(1, 2, 2, device=route)
    op, x = registry.Op("dqcore::lookup_loss"), torch.complex(values, -values).conj().imag
    assert x.is_neg()  # memory holds the opposite
    codes = torch.zeros(1, 2, 2, dtype=torch.int64, device=route)
    loss, dispatched = found(op, x, codes, 8, 0.25)
    assert dispatched
    torch.testing.assert_close(loss, x.clone().mean() * 1.25 / 8)


def test_what_the_choice_depends_on():
    x = torch.zeros(2, dtype=torch.float64)
    assert registry._kind_of([1, None, [torch.zeros(1), (x,)], 2.0]) == (torch.device("cpu"), True, True)
    assert registry._kind_of([True, "exact"]) == (None, False, True)
