"""What ``dqcore encode`` says of the streams that it has written."""

from __future__ import annotations

from collections.abc import Sequence

from dqcore.inference.stream_file import Written
from dqcore.printing import say
from dqcore.progress import counted

__all__ = ["print_written", "say_written"]

_FEW = 24  # photos that get a line each


def print_written(results: Sequence[tuple[str, Written]]) -> None:
    """A line for each photo where they are few, and one for all."""
    if not results:
        return
    for name, result in results if len(results) <= _FEW else ():
        say(f"{name}: {say_written(result)}")
    areas = [result.size[0] * result.size[1] for _, result in results]
    size = sum(len(result.data) for _, result in results)
    estimate = sum(result.estimate * area for (_, result), area in zip(results, areas, strict=True)) / sum(areas)
    photos = counted(len(results), "photo")
    say(
        f"written: {photos}, {size} bytes, {8 * size / sum(areas):.4f} bits per pixel as written "
        f"(estimate without entropy coding {estimate:.4f})"
    )


def say_written(result: Written) -> str:
    """The numbers of a photo's stream."""
    return (
        f"{len(result.data)} bytes, {result.bits_per_pixel:.4f} bits per pixel as written "
        f"(estimate without entropy coding {result.estimate:.4f}), {counted(result.num_codes, 'code')}"
        f"{', every region in detail: the most this model can spend' if result.finest else ''}"
    )
