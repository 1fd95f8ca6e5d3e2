"""How large a photo's stream may be: left to the router, or said in regions, codes, bytes or bits per pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.inference.codec import Codec
from dqcore.inference.encode_batch import encode
from dqcore.models.tokenizers.choices import Choices

__all__ = ["Budget", "ByteBudget", "CodeBudget", "Coded", "RouterBudget", "budget_of"]


class Coded(NamedTuple):
    """One photo's codes and its stream.

    Attributes:
        codes: Code map, int64, ``(H, W)``.
        grain: Grain map, int64, ``(h, w)``.
        data: The stream.
    """

    codes: Tensor
    grain: Tensor
    data: bytes


class Budget(Protocol):
    """Chooses a grain map."""

    def encode(self, codec: Codec, image: Tensor, size: tuple[int, int]) -> Coded:
        """Encode one photo, ``(1, 3, H, W)`` in [-1, 1], padded, on the model's device; ``size`` is as it was before.

        Raises:
            InputError: The photo cannot be had within the budget.
        """
        ...


@dataclass(frozen=True)
class RouterBudget:
    """As many fine regions as the router likes, or this share of them.

    Attributes:
        ratio: Share of fine regions, see :meth:`dqcore.DQVAE.encode`.
    """

    ratio: float | tuple[float, ...] | None = None

    def encode(self, codec: Codec, image: Tensor, size: tuple[int, int]) -> Coded:
        """See :class:`Budget`."""
        return _coded(codec, encode(codec.model, image, self.ratio), size)


@dataclass(frozen=True)
class CodeBudget:
    """This number of codes, or the next smaller one that whole regions add up to.

    Attributes:
        number: Of each photo, or of each million pixels.
        per_megapixel: Whether it is of each million pixels, the photo's padding not counted.
        exact: Raise where the number cannot be had, rather than take the next smaller one.
    """

    number: float
    per_megapixel: bool = False
    exact: bool = False

    def encode(self, codec: Codec, image: Tensor, size: tuple[int, int]) -> Coded:
        """See :class:`Budget`."""
        wanted = int(self.number * size[0] * size[1] / 1e6 if self.per_megapixel else self.number)
        result = _coded(codec, encode(codec.model, image, None, wanted), size)
        found = int((4**result.grain).sum())
        if self.exact and found != wanted:
            most = result.grain.numel() * 4 ** (codec.model.config.num_granularities - 1)
            nearest = f"{found} or {found + 3}" if found < most else f"{found}, all regions being fine"
            raise InputError(f"num_codes: {wanted} codes cannot be had, the nearest are {nearest}")
        return result


@dataclass(frozen=True)
class ByteBudget:
    """A stream as long as possible, but not longer.

    The encoder network runs once. Then the stream itself is written for one number of refinements after another, in the
    order of the router's scores. Where the next refinement does not fit, others that come after it are tried.

    Attributes:
        limit: Bytes of each photo, or bits of each pixel.
        per_pixel: Whether it is bits of each pixel, the photo's padding not counted.
    """

    limit: float
    per_pixel: bool = False

    def encode(self, codec: Codec, image: Tensor, size: tuple[int, int]) -> Coded:
        """See :class:`Budget`."""
        if codec.model.config.num_granularities == 1:
            raise InputError("bytes, bpp: this tokenizer has one granularity, its number of codes is fixed")
        limit = int(self.limit * size[0] * size[1] / 8 if self.per_pixel else self.limit)
        search = _Search(codec, codec.model.choices(image), size)
        return search.longest(limit, "bpp" if self.per_pixel else "bytes")


class _Search:
    """Looks for the longest stream within a limit."""

    def __init__(self, codec: Codec, choices: Choices, size: tuple[int, int]) -> None:
        self._codec, self._size = codec, size
        self._choices = Choices(*(values.cpu() for values in choices))
        self._order = self._choices.refinements()[0]

    def longest(self, limit: int, name: str) -> Coded:
        """The result; at least 99.5 % of the limit, where the photo allows it. An error has the limit's ``name``.

        Raises:
            InputError: The coarsest codes alone take more bytes.
        """
        low, high = 0, len(self._order)
        best, worst = self._first(low), self._first(high)
        if len(best.data) > limit:
            size = f"{self._size[1]}x{self._size[0]}"
            needed = f"at least {len(best.data)} bytes are needed for {size} pixels, {limit} are allowed"
            raise InputError(f"{name}: {needed}")
        if len(worst.data) <= limit:
            return worst
        above, turn = len(worst.data), 0
        while high - low > 1 and len(best.data) < 0.995 * limit:
            turn += 1  # interpolation closes in from one side; a halving now and then moves the other
            share = 0.5 if turn % 3 == 0 else (limit - len(best.data)) / (above - len(best.data))
            middle = min(high - 1, max(low + 1, low + int(share * (high - low))))
            tried = self._first(middle)
            if len(tried.data) <= limit:
                low, best = middle, tried
            else:
                high, above = middle, len(tried.data)
        return best if len(best.data) >= 0.995 * limit else self._fill(low, best, limit)

    def _fill(self, number: int, best: Coded, limit: int) -> Coded:
        """Try refinements after the first ``number`` and the one that did not fit."""
        taken = self._order[:number]
        for region in self._order[number + 1 : number + 33].tolist():
            tried = self._with(torch.cat([taken, torch.tensor([region])]))
            if len(best.data) < len(tried.data) <= limit:
                best, taken = tried, torch.cat([taken, torch.tensor([region])])
        return best

    def _first(self, number: int) -> Coded:
        return self._with(self._order[:number])

    def _with(self, regions: Tensor) -> Coded:
        grain = self._choices.refined(regions)
        codes = self._choices.at(grain)
        return Coded(codes[0], grain[0], self._codec.write(codes[0], grain[0], self._size))


def budget_of(
    ratio: float | None = None,
    num_codes: float | None = None,
    per_megapixel: bool = False,
    exact: bool = False,
    num_bytes: int | None = None,
    bpp: float | None = None,
) -> Budget:
    """The budget that options ask for; see :class:`RouterBudget`, :class:`CodeBudget` and :class:`ByteBudget`.

    Raises:
        InputError: More than one is asked for, or one is out of range.
    """
    asked = {"ratio": ratio, "num_codes": num_codes, "bytes": num_bytes, "bpp": bpp}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{', '.join(given)}: expected one of them")
    for name, value in given.items():
        if name != "ratio" and not 0 < value < float("inf"):
            raise InputError(f"{name}: expected more than 0, and a finite number, got {value}")
    if (per_megapixel or exact) and num_codes is None:
        raise InputError(f"{'per_megapixel' if per_megapixel else 'exact'}: expected num_codes with it")
    if num_codes is not None:
        return CodeBudget(num_codes, per_megapixel, exact)
    if num_bytes is not None:
        return ByteBudget(num_bytes)
    return RouterBudget(ratio) if bpp is None else ByteBudget(bpp, per_pixel=True)


def _coded(codec: Codec, encoding: Any, size: tuple[int, int]) -> Coded:
    codes, grain = encoding.codes[0].cpu(), encoding.grain[0].cpu()
    return Coded(codes, grain, codec.write(codes, grain, size))
