"""What tests and benchmarks share: devices, tolerances by dtype, exact answers, difficult inputs, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

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


def exact_distances(x: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances ``(N, K)`` in float64 from exact differences."""
    return (x.double()[:, None] - codebook.double()[None]).square().sum(-1)


def assert_nearest(codes: Tensor, x: Tensor, codebook: Tensor) -> None:
    """Each of ``codes (N,)`` must be the float64 argmin of its row of ``x``, or tie with it within float64 rounding.

    It must be -1 where the row, or every code, has a NaN or an infinity.
    """
    distances = exact_distances(x, codebook).nan_to_num(nan=torch.inf, posinf=torch.inf)
    best = distances.min(1).values
    assert ((codes >= -1) & (codes < len(codebook))).all(), "a code is out of range"
    chosen = distances.gather(1, codes[:, None].clamp_min(0))[:, 0]
    slack = 4 * x.shape[1] * 2.0**-53 * best
    wrong = torch.where(best == torch.inf, codes != -1, (codes < 0) | (chosen > best + slack)).nonzero()[:, 0]
    assert wrong.numel() == 0, f"{wrong.numel()} of {len(codes)} rows are not nearest, the first is row {int(wrong[0])}"


def adversarial_codebooks(num: int, size: int, dim: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Pairs ``(x, codebook)`` by name, float32, for which common formulas of the nearest code give wrong answers.

    Args:
        num: Rows of ``x``.
        size: Codes of the codebook.
        dim: Width of both.
    """
    gen = torch.Generator().manual_seed(size * dim + num)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen)

    x, c = normal(num, dim), normal(size, dim)
    powers = [10.0 ** (rows * 70 - 35) for rows in torch.rand(num + size, 1, generator=gen).split([num, size])]
    strange_x, strange_c = x.clone(), c.clone()
    strange_x[::4, -1], strange_x[1::4, 0], strange_x[3::8] = torch.nan, -torch.inf, torch.inf
    strange_c[::5, 0], strange_c[1::5, -1] = torch.inf, torch.nan
    few = torch.tensor([0.0, -0.0, 1.0, -1.0])
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
        "extreme_ranges": (x.sign() * x.abs().clamp(1e-7, 1) * 3.4e38, c.sign() * c.abs().clamp(1e-7, 1) * 3.4e38),
        "mixed_scales": (x * powers[0], c * powers[1]),
        "signed_zeros": (
            few[torch.randint(4, (num, dim), generator=gen)],
            few[torch.randint(4, (size, dim), generator=gen)],
        ),
        "non_finite": (strange_x, strange_c),
        "self": (c[torch.arange(num) % size], c),
    }


def captured(call: Callable[[], Result], repeats: int = 1) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A CUDA graph of ``repeats`` calls, and the result of the last, whose tensors each replay fills anew.

    Before the capture the call runs three times.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats - 1):
            call()
        result = call()
    return graph, result
