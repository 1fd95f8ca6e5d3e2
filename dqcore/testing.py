"""What tests and benchmarks share: devices, tolerances by dtype, adversarial inputs."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

#: Relative and absolute tolerance of a result against its float64 reference, by the input's dtype.
TOLERANCE = {
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
    torch.float32: (1e-5, 1e-5),
    torch.float64: (1e-10, 1e-10),
}


def devices() -> list[str]:
    """The devices that tests run on: the CPU, and the GPU where there is one."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Compare in float64 with the tolerance of ``dtype`` (by default ``actual``'s)."""
    rtol, atol = TOLERANCE[dtype or actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=rtol, atol=atol)


def nearest_code_oracle(x: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances ``(N, K)`` in float64 from exact differences."""
    return (x.double()[:, None] - codebook.double()[None]).square().sum(-1)


def assert_nearest(codes: Tensor, x: Tensor, codebook: Tensor) -> None:
    """Each of ``codes`` must be the float64 argmin, or tie with it within float64 rounding."""
    distances = nearest_code_oracle(x, codebook)
    best = distances.min(1).values
    chosen = distances.gather(1, codes[:, None])[:, 0]
    slack = 4 * x.shape[1] * 2.0**-53 * best
    wrong = ((chosen > best + slack) | chosen.isnan()).nonzero()[:, 0]
    assert wrong.numel() == 0, f"{wrong.numel()} of {len(codes)} rows are not nearest, the first is row {int(wrong[0])}"


def adversarial_codebooks(num: int, size: int, dim: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Named ``(x, codebook)`` pairs, float32, on which common nearest-code formulas go wrong."""
    gen = torch.Generator().manual_seed(size * dim + num)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen)

    x, c = normal(num, dim), normal(size, dim)
    half = c[: (size + 1) // 2]
    return {
        "gaussian": (x, c),
        "vqgan_init": (x, (torch.rand(size, dim, generator=gen) * 2 - 1) / size),
        "common_mean": (1000 + 0.3 * x, 1000 + 0.3 * c),
        "near_duplicates": (x, torch.cat([half, half + 1e-6 * normal(*half.shape)])[:size]),
        "duplicates": (x, torch.cat([half, half])[:size].flip(0)),
        "all_equal": (x, c[:1].expand(size, dim).contiguous()),
        "huge": (x * 1e18, c * 1e18),
        "tiny": (x * 1e-30, c * 1e-30),
        "subnormal": (x * 1e-41, c * 1e-41),
        "zeros": (torch.zeros_like(x), c),
        "far": (x * 1e12, c),
        "self": (c[torch.arange(num) % size], c),
    }


def interleaved_medians(*calls: Callable[[], object], rounds: int = 15) -> list[float]:
    """Median seconds of each call, taken in turn so that whatever else the machine does meets all of them alike."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 2):
        for times, call in zip(seconds, calls, strict=True):
            start = time.perf_counter()
            call()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[2:]) for times in seconds]


def medians(
    calls: dict[str, Callable[[], object]], device: torch.device | str, rounds: int = 15
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of each call, in turn; and why those that fail were left out. The first call may not fail.

    On a GPU calls are replayed from CUDA graphs, so that the host's part is not counted.
    """
    ready: dict[str, Callable[[], float]] = {}
    failed: dict[str, str] = {}
    for name, call in calls.items():
        try:
            ready[name] = replayed(call) if torch.device(device).type == "cuda" else functools.partial(_timed, call)
            ready[name]()
        except RuntimeError as error:
            if not ready:
                raise
            failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            ready.pop(name, None)
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, run in ready.items():
            seconds[name].append(run())
    return {name: statistics.median(times) for name, times in seconds.items()}, failed


def replayed(call: Callable[[], object], repeats: int = 10) -> Callable[[], float]:
    """Capture ``repeats`` calls in a CUDA graph; what is returned replays it and gives the seconds of one."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / repeats

    return run


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
