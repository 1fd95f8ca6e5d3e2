"""Drawing from logits with random numbers that depend on nothing but a seed, a sample and a place on the tape."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.fields import check_fields
from dqcore.kernels.tape import BITS
from dqcore.ops.draw import draw

__all__ = ["Draw", "check_draw", "uniforms"]

#: No row of logits is longer; the ops take no integer of more than 64 bits.
_ALL = (1 << 31) - 1


@dataclass(frozen=True)
class Draw:
    """How an index is drawn from logits.

    Attributes:
        temperature: Divides the logits; more than 0.
        top_k: Draw from the ``top_k`` largest logits (and from those equal to the last of them); None for all.
        top_p: Draw from the smallest set of most probable indices whose probabilities reach this sum (and from those as
            probable as the last of them); 1 for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_draw(self.temperature, self.top_k, self.top_p)

    @property
    def settings(self) -> tuple[float, int | None, float]:
        """Temperature, ``top_k`` and ``top_p``: the last arguments of the ops that draw."""
        return self.temperature, None if self.top_k is None else min(int(self.top_k), _ALL), self.top_p

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """``min {j : sum_{i <= j} p_i > u sum_i p_i}``, with probabilities rounded down to multiples of ``2**-38``.

        Integers are added, so that the sums are exact in any order and an index of probability 0 is never drawn.

        Args:
            logits: ``(S, V)`` floating, -inf where an index may not be drawn; each row has at least one finite value.
            uniform: A number of :func:`uniforms` for each row, ``(S,)`` int64; ``u`` is this number over ``2**23``.

        Returns:
            ``(S,)`` int64. A GPU rounds probabilities in another way than a CPU, and may draw another index where ``u``
                falls between the two.
        """
        return draw(logits, uniform, *self.settings)


def check_draw(temperature: float, top_k: int | None, top_p: float, prefix: str = "") -> None:
    """Raise :class:`InputError` unless these are settings of a :class:`Draw`; ``prefix`` goes before their names."""
    if not 1e-30 <= temperature <= 1e30:  # beyond, quotients leave float32
        raise InputError(f"{prefix}temperature: expected more than 0, from 1e-30 to 1e30, got {temperature}")
    if top_k is not None and (not isinstance(top_k, Integral) or top_k < 1):
        raise InputError(f"{prefix}top_k: expected at least 1 and whole, or None, got {top_k}")
    if not 0 < top_p <= 1:
        raise InputError(f"{prefix}top_p: expected a probability in (0, 1], got {top_p}")


def uniforms(seed: int, samples: Tensor, count: int) -> Tensor:
    """Random integers in ``[0, 2**23)``: a hash of the seed, the sample and the number's index.

    Args:
        seed: Any integer; of more than 64 bits the lowest 64 count.
        samples: Indices of the samples, ``(n,)`` int64.
        count: How many numbers each sample gets.

    Returns:
        ``(n, count)`` int64.

    Determinism: the same on every device, and whichever other samples are asked for.
    """
    streams = _mix(samples + _signed(_mix_number(seed)))
    places = torch.arange(1, count + 1, device=samples.device) * -0x61C8864680B583EB
    return _mix(streams[:, None] + places) >> (64 - BITS) & (1 << BITS) - 1


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of a 64-bit integer can change every bit of the result."""
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift(z, 31)


def _mix_number(z: int) -> int:
    """:func:`_mix` of a Python integer. The seed never becomes a tensor: a CUDA graph cannot copy one from the host."""
    mask = (1 << 64) - 1
    z = int(z) & mask  # NumPy's integers have no bits beyond 64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


def _signed(z: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return z - (1 << 64) if z >> 63 else z


def _shift(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: zeros come in, not copies of the sign."""
    return z >> bits & (1 << 64 - bits) - 1
