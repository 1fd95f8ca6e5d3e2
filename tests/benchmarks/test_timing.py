"""The clocks of the benchmarks, on a CPU."""

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
timing = importlib.import_module("timing")


def test_calls_take_turns():
    order = []
    seconds = timing.interleaved_medians(lambda: order.append("a"), lambda: order.append("b"), rounds=3)
    assert order == ["a", "b"] * 5  # two rounds to warm up
    assert len(seconds) == 2 and min(seconds) > 0


def test_a_call_that_fails_is_left_out_with_its_reason():
    def fails():
        raise RuntimeError("no kernel\nand more")

    seconds, failed = timing.medians({"dqcore": lambda: None, "peer": fails}, "cpu", rounds=2)
    assert list(seconds) == ["dqcore"]
    assert failed == {"peer": "RuntimeError: no kernel"}
    with pytest.raises(RuntimeError, match="no kernel"):
        timing.medians({"dqcore": fails}, "cpu")
