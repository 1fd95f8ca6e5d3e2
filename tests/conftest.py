"""Fixtures for every test: a seed, and the routes an op can take on this machine."""

import os
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is first imported

import dqcore
from dqcore import backends


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
