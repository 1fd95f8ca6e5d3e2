"""Whether every kernel is right, in seconds: what ``gpu_report.py`` asks before it measures.

``nearest_code`` is held against the float64 argmin on adversarial inputs; every op against its reference, and all but
``decode_attention`` against a second run, on small random ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from children import write
from small_launches import every_kernel, learns

import dqcore
from dqcore.ops import nearest_code
from dqcore.testing import adversarial_codebooks, assert_close, assert_nearest

Check = Callable[[], None]


def run(device: str, *, tiny: bool) -> Iterator[tuple[str, str | None]]:
    """Every check's name, and what went wrong, or None."""
    for name, check in checks(device, tiny).items():
        try:
            check()
            yield name, None
        except Exception as error:  # the others still tell something
            yield name, f"{type(error).__name__}: {str(error).strip()[:300]}"


def checks(device: str, tiny: bool) -> dict[str, Check]:
    """By name: against the float64 argmin; against the reference; twice the same."""
    every: dict[str, Check] = {}
    sizes = [(33, 40, 8)] if tiny else [(1000, 300, 8), (3000, 1030, 256), (129, 65, 100)]
    for num, size, dim in sizes:
        for case, (x, codebook) in adversarial_codebooks(num, size, dim).items():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                pair = x.to(device, dtype), codebook.to(device, dtype)
                if all(tensor.isfinite().all() for tensor in pair):
                    every[f"nearest_code {case} {num}x{size}x{dim} {dtype}"] = lambda pair=pair: _nearest(*pair)
    for name, launch in every_kernel(device).items():
        if not name.startswith("decode_attention"):  # appends to its caches
            every[f"{name} again"] = lambda launch=launch: _same(*_again(launch, device))
        every[f"{name} against the reference"] = lambda launch=launch: _against_reference(launch)
    # programs that wait for each other: many of them, and few
    for images, size, dim in [(1, 20, 8)] if tiny else [(1, 40, 8), (8, 1024, 256), (64, 4099, 16)]:
        step = learns(device, images, size, dim)
        every[f"codebook_update {images}x{size}x{dim}"] = lambda step=step: _against_reference(step)
        every[f"codebook_update {images}x{size}x{dim} again"] = lambda step=step: _same(*_again(step, device))
    if device == "cuda":
        for num, size in [(700, 1100), (32768, 1024), (300001, 9973), (1048576, 16384)]:
            every[f"code order {num}x{size}"] = lambda num=num, size=size: _order(num, size)
    return every


def _order(num: int, size: int) -> None:
    """Codes in order, as a stable sort puts them; most vectors have the first codes, many have none."""
    from dqcore.kernels.code_order import order_by_code

    keys = (torch.rand(num, device="cuda").square() * (size + 1)).int() - 1
    found, order, offsets, counts = order_by_code(keys, size)
    buckets = torch.where(keys < 0, size, keys)
    expected, places = buckets.sort(stable=True)
    assert torch.equal(order, places), "another order"
    assert torch.equal(found, torch.where(expected == size, -1, expected).int()), "other codes"
    every = torch.arange(size + 1, dtype=torch.int32, device="cuda")
    assert torch.equal(offsets, torch.searchsorted(expected, every)), "codes begin elsewhere"
    assert torch.equal(counts, offsets.diff().float()), "other counts"


def _nearest(x: torch.Tensor, codebook: torch.Tensor) -> None:
    assert_nearest(nearest_code(x, codebook), x, codebook)


def _again(launch: Callable[[], tuple], device: str) -> tuple[tuple, tuple]:
    """The first and the last of some runs, all alive: on a GPU the third is sent as the second was noted."""
    runs = [launch() for _ in range(5 if device == "cuda" else 2)]
    return runs[0], runs[-1]


def _same(first: tuple, second: tuple) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "two runs differ"


def _against_reference(launch: Callable[[], tuple]) -> None:
    actual = launch()
    with dqcore.backend("reference"):
        expected = launch()
    for a, b in zip(actual, expected, strict=True):
        if b.is_floating_point():
            scale = b.double().abs().max().clamp_min(1e-30)
            precision = a.dtype if a.dtype.itemsize == 2 else torch.float32
            assert_close(a.double() / scale, b.double() / scale, precision)
        else:
            assert torch.equal(a, b), "indices differ"


def main() -> None:
    """Write a line a check, so that those before a crash are known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU; --device cpu --tiny needs none")
    for name, fault in run(args.device, tiny=args.tiny):
        write({"name": name, "fault": fault})


if __name__ == "__main__":
    main()
