"""A tokenizer beside its peers on the same photos: codecs at the same bytes, and the curve of rate and distortion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.inference.measure import Measured
from dqcore.inference.peers import CODECS, Decibels, PeerFile, PeerNumbers, PeerTotals, PictureFormat, ladders
from dqcore.inference.rate import StreamCost
from dqcore.inference.reconstruct import Reconstruction, measure_reconstruction
from dqcore.models.tokenizers.base import Encoding

__all__ = ["Comparison", "CurvePoint", "Shown", "State", "check_details"]


@dataclass(frozen=True)
class State:
    """A photo at one setting of the tokenizer.

    Attributes:
        detail: The share of detail that was asked for, or None for what the evaluation itself used.
        result: The reconstruction.
        peers: The codecs' files of at most as many bytes, by the codec's name; of those that can hold the photo.
    """

    detail: float | None
    result: Reconstruction
    peers: dict[str, PeerFile]


@dataclass(frozen=True)
class Shown:
    """A photo that is kept, at all settings: first the evaluation's own, then by detail."""

    image: Tensor
    states: list[State] = field(default_factory=list)


@dataclass(frozen=True)
class CurvePoint:
    """All photos at one share of detail; means are over photos.

    Attributes:
        detail: In [0, 1], see :meth:`dqcore.inference.encode_batch.EncodedImages.at`.
        psnr: dB.
        bytes_per_image: Mean size of a stream.
        bits_per_pixel: Bits of all streams over the pixels of all photos.
        peers: PSNR of the codecs on the same photos, each file with at most the bytes of the photo's stream.
    """

    detail: float
    psnr: float
    bytes_per_image: float
    bits_per_pixel: float
    peers: tuple[PeerNumbers, ...]


def check_details(details: Sequence[float], config: Any) -> None:
    """Raise unless a curve can be drawn at these shares of detail."""
    if any(not 0 <= detail <= 1 for detail in details):
        raise InputError(f"ratios: expected numbers in [0, 1], got {', '.join(map(str, details))}")
    if details and config.num_granularities == 1:
        raise InputError("ratios: this tokenizer has one granularity, its number of codes is fixed")


class Comparison:
    """Measures peers and the curve; called with each batch of an evaluation.

    Args:
        model: The tokenizer of the evaluation.
        cost: Counts its bytes.
        details: Shares of detail for the curve, in [0, 1].
        codecs: The peers; none to leave them out.
        limit: Photos after this many are not compared.
        keep: Whether :attr:`shown` holds the photos.
    """

    def __init__(
        self,
        model: Any,
        cost: StreamCost,
        *,
        details: Sequence[float] = (),
        codecs: Sequence[PictureFormat] = CODECS,
        limit: int | None = None,
        keep: bool = False,
    ) -> None:
        check_details(details, model.config)
        self._model, self._cost, self._keep, self._left = model, cost, keep, limit
        self._codecs = tuple(codecs)
        names = [codec.name for codec in self._codecs]
        self._points: dict[float | None, _Point] = {None: _Point([PeerTotals(name) for name in names])}
        self._points |= {detail: _Point([Decibels(name) for name in names]) for detail in details}
        self._own = PeerTotals("this tokenizer")
        self.shown: list[Shown] = []

    def __call__(self, measured: Measured) -> None:
        """Compare the photos of a batch."""
        count = len(measured.images) if self._left is None else min(len(measured.images), self._left)
        if self._left is not None:
            self._left -= count
        if not count:
            return
        photos = [Shown(image.cpu()) for image in measured.images[:count]]
        rungs = [ladders(photo.image, self._codecs) for photo in photos]
        for detail, point in self._points.items():
            encoding = measured.encoding if detail is None else measured.encoded.at(detail)
            for index, (photo, made) in enumerate(zip(photos, rungs, strict=True)):
                done = measured.results[index] if detail is None else None
                result = measure_reconstruction(
                    self._model, photo.image, measured.padded[index], _only(encoding, index), self._cost, done
                )
                state = State(detail, result, {rung.codec.name: rung.within(result.num_bytes) for rung in made})
                point.add(state)
                if detail is None and self._keep:
                    self._own.add(photo.image, result.reconstruction, result.num_bytes)
                if self._keep:
                    photo.states.append(state)
        if self._keep:
            self.shown += photos

    def join(self, world: World) -> None:
        """Take in the numbers of the other processes, not what they show; every one calls this."""
        for point in self._points.values():
            point.join(world)
        self._own.join(world)

    @property
    def own(self) -> PeerNumbers:
        """The tokenizer at the bytes of the evaluation, on the photos that are kept."""
        return self._own.numbers()

    @property
    def peers(self) -> tuple[PeerNumbers, ...]:
        """The codecs at the bytes of the evaluation."""
        return self._points[None].numbers(0.0).peers

    @property
    def curve(self) -> list[CurvePoint]:
        """The points of the curve, in the order of the details."""
        return [point.numbers(detail) for detail, point in self._points.items() if detail is not None]


class _Point:
    """The numbers of a point of the curve, added up photo by photo."""

    def __init__(self, peers: Sequence[PeerTotals]) -> None:
        self._rows: list[list[float]] = []
        self._peers = {peer.name: peer for peer in peers}

    def add(self, state: State) -> None:
        result = state.result
        self._rows.append([result.psnr, result.num_bytes, result.image.shape[1] * result.image.shape[2]])
        for name, totals in self._peers.items():
            if (coded := state.peers.get(name)) is None:
                totals.leave_out()
            else:
                totals.add(result.image, coded.pixels(), len(coded.data), coded.fits)

    def join(self, world: World) -> None:
        self._rows = [row for rows in world.gather(self._rows) for row in rows]
        for totals in self._peers.values():
            totals.join(world)

    def numbers(self, detail: float) -> CurvePoint:
        decibels, size, pixels = torch.tensor(self._rows, dtype=torch.float64).mean(0).tolist()
        peers = tuple(totals.numbers() for totals in self._peers.values() if not totals.empty)
        return CurvePoint(detail, decibels, size, 8 * size / pixels, peers)


def _only(encoding: Encoding, index: int) -> Encoding:
    """The encoding of one image of a batch, as a batch of 1."""
    parts: Any = (None if part is None else part[index : index + 1] for part in encoding)
    return Encoding(*parts)
