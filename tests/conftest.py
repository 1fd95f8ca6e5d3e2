"""Fixtures for every test: a seed, and the routes an op can take on this machine."""

import os
import sys

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers are the threads

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is first imported

import dqcore
from dqcore import backends


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """``pytest`` alone, of no named file, uses all cores where pytest-xdist is installed; ``-n 0`` leaves it at one."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # a worker runs this hook too, and starts no workers of its own
        return
    option = config.option
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    if whole and getattr(option, "numprocesses", 0) is None and not (option.usepdb or option.collectonly):
        option.numprocesses = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)
        option.dist = "worksteal"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_compiled():
    """Compiled code of one test does not count towards the next one's limit of recompilations."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _routes() -> list[str]:
    routes = ["cpu", "cpu-reference"]
    if backends.has_triton() and backends.interpreting():
        routes.append("cpu-interpreter")
    if torch.cuda.is_available():
        routes.append("cuda")
    return routes


@pytest.fixture(params=_routes())
def route(request: pytest.FixtureRequest):
    """Yields the device of each way to run an op: fast CPU path, reference, interpreted Triton kernel, GPU kernel."""
    device, _, name = request.param.partition("-")
    with dqcore.backend(name or "auto"):
        yield device
