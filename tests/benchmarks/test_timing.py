"""The clocks of the benchmarks, on a CPU."""

import pytest
import report_rows
import rows
import timing


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


def wants(argument):
    raise AssertionError("never called right")


def test_a_peer_that_fails_in_any_way_costs_our_row_nothing():
    def silent():
        raise NotImplementedError

    benchmark = report_rows.Benchmark("cpu")
    peers = {"signature": wants, "silent": silent, "good": lambda: None}
    seconds = rows.compare(benchmark, "cpu", lambda: None, peers, waits={"late": wants, "fine": lambda: None})
    assert seconds.keys() == {"dqcore", "good", "fine"}
    left_out = benchmark.extra_info["left_out"]
    assert left_out.keys() == {"signature", "silent", "late"}
    assert left_out["late"].startswith("TypeError: wants()") and left_out["silent"].startswith("NotImplementedError")
    assert benchmark.extra_info["speedup_launched_alike"].keys() == {"fine"}
    rows.beside(benchmark, lambda: None, peers, 1, {"speedup": {"signature": 2}})
    assert benchmark.extra_info["left_out"].keys() == {"signature", "silent"} and benchmark.extra_info["met"] is None


class Graph:
    """Stands for the seconds of a replayed graph."""

    def __init__(self, call):
        if call.__name__ == "waits":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    def __call__(self):
        return 7.0


def test_a_call_that_no_graph_can_hold_must_be_known(monkeypatch):
    def ours():
        pass

    def waits():
        pass

    monkeypatch.setattr(timing, "replayed", Graph)
    calls = {"dqcore": ours, "cudnn": waits}
    with pytest.raises(timing.CannotBeCaptured, match="cudnn cannot be captured") as raised:
        timing.medians(calls, "cuda")
    assert raised.value.name == "cudnn"
    seconds, failed = timing.medians(calls, "cuda", alone=["cudnn"])
    assert seconds["dqcore"] == 7.0 and 0 < seconds["cudnn"] < 1 and failed == {}
    monkeypatch.setattr(timing, "LAUNCHED_ALONE", {"cudnn"})  # what gpu_report.py says at its second try
    assert timing.medians(calls, "cuda")[0]["cudnn"] < 1


def test_a_rehearsal_runs_each_call_once(monkeypatch):
    order = []
    monkeypatch.setattr(timing, "REHEARSAL", True)
    monkeypatch.setattr(timing, "replayed", Graph)
    seconds, _ = timing.medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, "cuda")
    assert order == ["a", "b"] and max(seconds.values()) < 1
    timing.interleaved_medians(lambda: order.append("c"), rounds=9)
    assert order == ["a", "b", "c"]
