"""How ``pytest benchmarks/`` runs: each benchmark once as a check, or measured and recorded with ``--benchmark``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import report_rows
import torch
from machine import RESULTS, keep, machine, name_of, versions
from timing import finished_time

from dqcore.testing import devices


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--benchmark`` beside pytest-benchmark's own flags."""
    parser.addoption("--benchmark", action="store_true", help="measure, and write benchmarks/results/<machine>.json")


def pytest_configure(config: pytest.Config) -> None:
    """Collect ``bench_*`` files and functions; without ``--benchmark`` each is called once and not timed."""
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("benchmarks need pytest-benchmark: pip install -e '.[test]'")
    if config.getoption("--benchmark") and getattr(config.option, "numprocesses", None):
        raise pytest.UsageError("--benchmark measures in one process: leave out -n, whose processes disturb each other")
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")
    if not config.getoption("--benchmark") and not config.option.benchmark_only:
        config.option.benchmark_disable = True
    config.stash[_ROWS] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the clock of every benchmark wait for the GPU, so that none has to."""
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=finished_time))


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> str:
    """Each device of this machine."""
    return request.param


_ROWS = pytest.StashKey[dict[str, dict[str, Any]]]()


def name_of_row(item: pytest.Function) -> str:
    """Pytest's; on a GPU that of ``gpu_report.py``, so that both write the same row."""
    given = dict(item.callspec.params) if hasattr(item, "callspec") else {}
    device = given.pop("device", "cuda" if torch.cuda.is_available() else "cpu")
    if device != "cuda" or report_rows.stem_of(item.path.stem) in report_rows.LEFT_OUT:
        return f"{item.path.stem}::{item.name}"
    return report_rows.row_name(item.function, given)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Keep the numbers of a benchmark that passed."""
    report = yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if report.when == "call" and report.passed and benchmark is not None and benchmark.stats:
        stats = benchmark.stats.stats
        item.config.stash[_ROWS][name_of_row(item)] = {
            "median": stats.median,
            "iqr": stats.iqr,
            "rounds": stats.rounds,
            "extra_info": dict(benchmark.extra_info),
        }
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the measured rows into this machine's file, leaving its other rows as they are."""
    rows = session.config.stash[_ROWS]
    if not rows or not session.config.getoption("--benchmark"):
        return
    about, now = machine(), versions()
    path = RESULTS / f"{name_of(about)}.json"
    keep(path, {"machine": about, "rows": [{"name": name, **row, "versions": now} for name, row in rows.items()]})
    print(f"\n{len(rows)} rows written to {os.path.relpath(path)}")
