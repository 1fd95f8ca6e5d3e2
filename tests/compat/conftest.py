"""The recorded behaviour of other libraries' quantizers, and how ours is held against it."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dqcore.compat.vector_quantize_pytorch import VectorQuantize
from dqcore.ops.reference.nearest_code import squared_distance

spec = importlib.util.spec_from_file_location("record", Path(__file__).with_name("record.py"))
record = importlib.util.module_from_spec(spec)
spec.loader.exec_module(record)


def cases(library):
    return list(record.CASES[library])


def pytest_generate_tests(metafunc):
    """A test with an argument ``case`` runs for each case of the library that its module names in ``LIBRARY``."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases(metafunc.module.LIBRARY))


@pytest.fixture
def recorded(request, case):
    """Ours of a case, started from the recorded state, and all that was recorded."""
    library = request.module.LIBRARY
    every = load_file(record.FIXTURES / f"{library}.safetensors")
    theirs = {name.removeprefix(f"{case}/"): value for name, value in every.items() if name.startswith(f"{case}/")}
    quantizer = record.build(library, case, request.module.OURS)
    first = {name.removeprefix("first/"): value for name, value in theirs.items() if name.startswith("first/")}
    absent = {name: value for name, value in quantizer.state_dict().items() if name == "codebook_used"}
    quantizer.load_state_dict(first | absent, strict=True)
    entry = record.CASES[library][case][2]
    return SimpleNamespace(quantizer=quantizer, theirs=theirs, inputs=every["inputs"], entry=entry)


@pytest.fixture
def check_trace():
    return _check_trace


@pytest.fixture
def record_module():
    return record


def _check_trace(recorded):
    """Same bits of codes and vectors; losses, gradients and states within the tolerances of the contract."""
    ours = record.trace(recorded.quantizer, recorded.inputs, recorded.entry)
    compare(ours, {n: v for n, v in recorded.theirs.items() if not n.startswith("first/") and n != "far"})


@pytest.fixture
def compare_traces():
    return compare


def compare(ours, wanted):
    assert ours.keys() == wanted.keys()
    for name, expected in wanted.items():
        actual = ours[name]
        assert actual.shape == expected.shape and actual.dtype == expected.dtype, name
        if expected.dtype == torch.int64 or name in ("train.0", "eval.0"):
            assert torch.equal(actual, expected), name
        elif "/grad/" in name or "/state/" in name:
            assert _relative(actual, expected) <= 1e-5, (name, _relative(actual, expected))
        else:
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def _relative(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


@pytest.fixture
def check_far():
    return _check_far


def _check_far(recorded, unit=False):
    """Codes of vectors far from the origin, where float32's distances cancel; returns how often theirs differ."""
    rows, ours, codebook = record.far(recorded.quantizer, recorded.inputs)
    if unit:
        rows, codebook = (torch.nn.functional.normalize(values, dim=1) for values in (rows, codebook))
    return nearer(rows, codebook, ours, recorded.theirs["far"])


@pytest.fixture
def check_nearer():
    return nearer


def nearer(x, codebook, ours, theirs):
    """Ours is the float64 argmin of ``x (N, D)``; theirs is further off wherever it differs. Returns how often."""
    distance = squared_distance(x[:, None], codebook)
    assert torch.equal(ours, distance.argmin(1))
    differ = ours != theirs
    rows = differ.nonzero().flatten()
    assert (distance[rows, ours[rows]] <= distance[rows, theirs[rows]]).all()
    return float(differ.float().mean())


@pytest.fixture
def pair():
    """Makes a ``VectorQuantize`` of theirs and one of ours, from one seed."""
    package = pytest.importorskip("vector_quantize_pytorch")

    def make(**options):
        layers = []
        for kind in (package.VectorQuantize, VectorQuantize):
            torch.manual_seed(0)
            layers.append(kind(**{"dim": 12, "codebook_size": 40, **options}))
        return layers

    return make
