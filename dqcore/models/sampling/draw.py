"""Drawing from logits with numbers that depend on a seed, a sample and its step alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["Draw", "uniforms"]

#: Bits of a uniform number, and of a probability: their product stays below 2**63.
_BITS, _WEIGHT = 23, 2.0**38


@dataclass(frozen=True)
class Draw:
    """How an index is drawn from logits.

    Attributes:
        temperature: Divides the logits; more than 0.
        top_k: Draw from the so many largest logits (and those equal to the last of them); None for all.
        top_p: Draw from the fewest whose probabilities reach this sum; 1 for all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature: expected more than 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k: expected at least 1, or None, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p: expected a probability in (0, 1], got {self.top_p}")

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """``min {j : sum_{i <= j} p_i > u sum p}``, with probabilities rounded to multiples of ``2**-38``.

        The sums are of integers, so they are exact in any order and an index of probability 0 is never drawn.

        Args:
            logits: ``(S, V)`` floating, -inf where an index may not be drawn; at least one finite value a row.
            uniform: Numbers of :func:`uniforms`, ``(S,)`` int64.

        Returns:
            ``(S,)`` int64.
        """
        logits = logits.float()
        if self.temperature != 1.0:
            logits = logits / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k, sorted=False).values.amin(1, keepdim=True)
            logits = logits.masked_fill(logits < least, -torch.inf)
        probabilities = logits.softmax(1)
        if self.top_p < 1.0:
            probabilities = _nucleus(probabilities, self.top_p)
        sums = probabilities.mul_(_WEIGHT).long().cumsum(1)
        return torch.searchsorted(sums, sums[:, -1:] * uniform[:, None] >> _BITS, right=True)[:, 0]


def uniforms(seed: int, samples: Tensor, count: int) -> Tensor:
    """Random integers in ``[0, 2**23)`` by sample, ``(n, count)`` int64: a hash of seed, sample and place.

    Args:
        seed: Any integer.
        samples: Which samples, ``(n,)`` int64.
        count: Numbers for each.

    Determinism: the same on every device, for any other samples beside.
    """
    streams = _mix(samples + _signed(_mix_number(seed)))
    places = torch.arange(1, count + 1, device=samples.device) * -0x61C8864680B583EB
    return _mix(streams[:, None] + places) >> (64 - _BITS) & (1 << _BITS) - 1


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser: every bit of a 64-bit integer moves every bit of the result."""
    z = (z ^ _shift(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shift(z, 27)) * -0x6B2FB644ECCEEE15
    return z ^ _shift(z, 31)


def _mix_number(z: int) -> int:
    """:func:`_mix` of a Python integer: a CUDA graph holds no copy from the host."""
    mask = (1 << 64) - 1
    z = ((z & mask) ^ (z & mask) >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


def _signed(z: int) -> int:
    return z - (1 << 64) if z >> 63 else z


def _shift(z: Tensor, bits: int) -> Tensor:
    return z >> bits & (1 << 64 - bits) - 1


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Zero all but the fewest largest that reach ``top_p``."""
    ordered = probabilities.sort(1, descending=True).values
    before = ordered.cumsum(1) - ordered
    least = torch.where(before < top_p, ordered, torch.inf).amin(1, keepdim=True)
    return probabilities * (probabilities >= least)
