"""``pytest benchmarks/`` for a newcomer: what it needs it says in a sentence, and a GPU's rows have one name."""

import subprocess
import sys
import types
from pathlib import Path

import bench_quantizer
import bench_varlen_attention
import pytest
import report_rows

ROOT = Path(__file__).parents[2]


def pytest_says(*options):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "benchmarks/bench_lookup_loss.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(["-p", "no:benchmark"], "pip install -e '.[test]'"), (["--benchmark", "-n", "2"], "leave out -n")],
)
def test_what_cannot_be_measured_is_one_sentence(options, sentence):
    code, said = pytest_says(*options)
    assert code == pytest.ExitCode.USAGE_ERROR and sentence in said and "INTERNALERROR" not in said


def test_a_gpus_row_has_one_name(benchmark_conftest):
    """Else two runs of one file would keep both, each with its own commit."""
    names = {name for name, *_ in report_rows.rows(["varlen_attention", "quantizer"])}
    for function, given in (
        (bench_varlen_attention.bench_varlen_attention, {"direction": "forward", "dropout_p": 0.1, "index": 2}),
        (bench_quantizer.bench_eager_training_step, {}),
    ):
        item = types.SimpleNamespace(
            path=Path(f"{function.__module__}.py"), name="as pytest has it", function=function,
            callspec=types.SimpleNamespace(params=given | {"device": "cuda"}),
        )  # fmt: skip
        assert benchmark_conftest.name_of_row(item) in names
        item.callspec.params["device"] = "cpu"
        assert benchmark_conftest.name_of_row(item) == f"{function.__module__}::as pytest has it"


@pytest.fixture
def benchmark_conftest():
    import importlib.util

    spec = importlib.util.spec_from_file_location("benchmark_conftest", ROOT / "benchmarks" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    monkeypatch.setattr(bench_quantizer, "SHAPES", {"cpu": bench_quantizer.TINY})
    benchmark = report_rows.Benchmark("cpu")
    bench_quantizer.bench_eager_training_step(benchmark, "cpu")
    ((name, why),) = benchmark.extra_info["left_out"].items()
    assert name == "vector_quantize_pytorch" and why.startswith("ModuleNotFoundError")
