"""Fixtures for every test: a seed, and the routes an op can take on this machine."""

import gc
import os
import re
import signal
import sys

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers are the threads

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is first imported

import dqcore
from dqcore import backends

gc.disable()  # until all tests are collected

if backends.has_triton() and backends.interpreting():
    import bounds
    import quick_interpreter

    bounds.watch()
    quick_interpreter.quicken()  # half of the time of most tests that interpret a kernel

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; tests interrupt themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


#: What the quick run, of under four minutes on two cores, leaves out beside tests of over five seconds: cases that say
#: nearly the same as others of their test.
_REST = re.compile(
    "|".join(
        (
            r"ops/test_varlen_attention.py::test_matches_reference\[cpu-interpreter-(whole|left|both|right|prefix|scale)-self",
            r"ops/test_varlen_attention.py::test_matches_reference\[cpu-interpreter-causal-cross",
            r"ops/test_patch_entropy.py::test_matches_recording\[cpu-interpreter",
            r"ops/test_patch_entropy.py::test_matches_reference\[cpu-interpreter-.*float16",
            r"ops/test_pack_features.py::test_gradcheck\[sum",
            r"ops/test_registry.py::test_autocast_does_not_reach_inside\[cpu-interpreter-torch.float16",
            r"sampling/test_naive.py::test_previews_and_what_follows_them\[[12]",
            r"sampling/test_naive.py::test_orders\[region-first",
            r"sampling/test_naive.py::test_the_sampler_draws.*global-local-3-sampling[12]",
            r"sampling/test_sampler.py::test_samples_are_valid.*-3\]",
            r"sampling/test_sampler.py::test_cached_logits.*-3\]",
            r"kernels/test_nearest_code.py::test_tiles_and_stretches_change_nothing\[(gaussian|near_duplicates)-\(16",
            r"kernels/test_nearest_code.py::test_what_the_scan_leaves_open_is_settled.*float16",
            r"kernels/test_capture.py::test_a_training_step_is_one_graph\[(cosine|projected)",
            r"test_dqvae.py::test_compiles_whole",
            r"(test_patch_entropy|test_dq_transformer).py::test_compiles",
            r"ops/test_nearest_code_ranges.py::test_dynamic_lookup_agrees\[cpu-interpreter-(True|False-(sub|signed|huge|non))",
            r"ops/test_nearest_code_ranges.py::test_scales_far_apart\[cpu-interpreter-torch.(float16|float32)",
            r"ops/test_codebook_update.py::test_kernel_equals_the_formula\[cpu-interpreter-.*-(0.03|None)",
            r"ops/test_codebook_update.py::test_several_programs_decide_alike\[.*-5-3-1",
            r"ops/test_dynamic_lookup.py::test_any_memory_format\[cpu-interpreter-(planes|strided|last)",
            r"ops/test_dynamic_lookup.py::test_exact_on_adversarial_codes\[cpu-interpreter-duplicates",
            r"ops/test_dynamic_lookup.py::test_gradients_match_reference\[cpu-interpreter-torch.bfloat16-[12]",
            r"ops/test_decode_attention.py::test_matches_varlen_attention\[cpu-interpreter-torch.float16",
            r"ops/test_varlen_attention.py::test_matches_reference\[cpu-interpreter-dropout-grouped",
            r"ops/test_varlen_attention_tables.py::test_tiles_change_only_rounding\[varlen_attention_d",
            r"ops/test_nearest_code.py::test_adversarial\[cpu-interpreter-\(33.*(near_dup|gaussian|all_eq|common|signed)",
            r"ops/test_dynamic_lookup.py::test_matches_reference\[cpu-interpreter-(False|True-torch.float16)",
            r"kernels/test_nearest_code.py::test_scan_never_guesses\[30",
            r"benchmarks/test_bench_defaults.py::test_three_steps\[photos-(32|64-coarse)",
            r"kernels/test_varlen_attention.py::test_nothing_is_compiled_anew",
            r"kernels/test_nearest_code.py::test_tiles_and_stretches_change_nothing\[vqgan_init-\(16",
            r"sampling/test_sampler.py::test_steps_stay_in_their_memory.*(dynamic-3|dq-2)",
            r"sampling/test_naive.py::test_the_sampler_draws.*dq-3-sampling[12]",
            r"quantizer/test_export.py::test_kmeans_starts_in_one_graph\[\{'",
            r"inference/test_export.py::test_torch_programs_compute_what_the_model_does\[True",
            r"compat/test_vector_quantize_pytorch_edges.py::test_where_codes_differ_ours_are_nearer\[False-0",
            r"experiments/test_experiments.py::test_an_experiment_runs.*\[(priors|ratios|learning)",
            r"training/test_two_processes.py::test_(processes_hold|two_processes_equal|both_processes_are)",
            r"training/test_stop.py::.*\[15",
            r"models/test_weights.py::test_verbs_take_the_prior",
            r"cli/test_reproduce.py::test_two_at_once_are_refused",
            r"test_flows.py::test_the_flow_is_the_readmes",
        )
    )
)


#: Of half a minute and more: they begin first, so that no worker ends with one of them alone.
_LONG = re.compile(
    r"test_fashion_mnist.py|test_compile_check.py|test_compile_sectors.py|test_the_demo_learns|test_every_row_runs|"
    r"test_no_settled_vector|test_attacks.py|test_packaging.py|test_sharded.py|cli/test_processes.py"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what the quick run leaves out, and begin with what takes longest."""
    for item in items:
        if _REST.search(item.nodeid):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: not _LONG.search(item.nodeid))


def pytest_collection_finish() -> None:
    """Cycles are looked for more seldom, and not in what is there until the end: that took a sixth of many tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


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


@pytest.fixture
def run_together(monkeypatch):
    """Launches the cooperative kernels of modules with some number of programs at once, in the interpreter."""
    import together  # needs Triton

    return lambda number, *modules: together.run_together(monkeypatch, number, *modules)


@pytest.fixture(scope="session")
def saved_tokenizer(tmp_path_factory):
    """The folder of a small saved tokenizer."""
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    sizes = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dqcore.DQVAE.from_preset("dqvae-dual-tiny", **sizes).save_pretrained(folder)
    return folder
