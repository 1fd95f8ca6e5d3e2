"""The fields of a DQ-VAE, and its presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from dqcore.errors import InputError
from dqcore.models.tokenizers.config import TokenizerConfig
from dqcore.nn.allocation import target_shares
from dqcore.nn.position import Position
from dqcore.nn.router import Gate

__all__ = ["PRESETS", "DQVAEConfig"]


@dataclass(frozen=True)
class DQVAEConfig(TokenizerConfig):
    """A tokenizer with a router and one granularity for each stride; the defaults are ``dqvae-dual``.

    Fields not listed here: :class:`TokenizerConfig`.
    """

    strides: tuple[int, ...] = (16, 8)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2)
    encoder_attention: tuple[int, ...] = (8, 16)
    decoder_attention: tuple[int, ...] = (8,)
    position: Position = "fourier+learned"
    router: Literal["feature", "entropy", "random", "gain"] = "feature"  # what decides a region's granularity
    target_ratio: tuple[float, ...] = (0.5,)  # share of regions of each granularity above the coarsest
    budget_weight: float = 10.0  # lambda (supplement, table 1)
    budget: Literal["paper", "released"] = "paper"  # released: the loss that the authors' code computes
    gate: Gate = "silu"  # feature router: two layers with this activation, or "linear" for one layer
    router_groups: int = 32  # feature router: groups of its normalizations, 0 for no normalizations
    temperature: float = 1.0  # feature router: temperature of the Gumbel-softmax
    entropy_bins: tuple[float, float] = (-1.0, 1.0)  # entropy router: histogram range; (0, 1) for the released weights

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = target_shares("target_ratio", self.target_ratio, len(self.strides))
        object.__setattr__(self, "target_ratio", ratio)
        if self.router == "feature" and self.router_groups and self.latent_channels % self.router_groups:
            raise InputError(f"router_groups: expected a divisor of {self.latent_channels}, got {self.router_groups}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"temperature: expected more than 0, got {self.temperature}")
        if not 0 <= self.budget_weight < math.inf:
            raise InputError(f"budget_weight: expected at least 0, got {self.budget_weight}")
        if not self.entropy_bins[0] < self.entropy_bins[1]:
            raise InputError(f"entropy_bins: expected two rising numbers, got {self.entropy_bins}")

    def _check_strides(self) -> None:
        if len(self.strides) < 2:
            raise InputError(f"strides: expected at least two granularities, got {self.strides}; VQGAN has one")
        super()._check_strides()


_TINY = DQVAEConfig(
    codebook_size=256,
    dim=64,
    latent_channels=64,
    channels=16,
    encoder_multipliers=(1, 2, 4, 4, 4),
    decoder_multipliers=(1, 2, 4, 4),
    num_blocks=1,
    groups=8,
    router_groups=8,
    resolution=128,
    restart=True,
    convolutions="variance",
)
#: What the weights in the package were trained for: no layer above stride 4 and no attention, so that a CPU codes a
#: photograph in a second and any size is like the crops of training.
_DUAL_SMALL = DQVAEConfig(
    codebook_size=2048,
    dim=32,
    latent_channels=64,
    stem=4,
    channels=16,
    encoder_multipliers=(4, 6, 9),
    decoder_multipliers=(6, 10),
    encoder_attention=(),
    decoder_attention=(),
    middle_attention=False,
    num_blocks=2,
    groups=8,
    position="none",
    router="gain",
    initialisation="kmeans",
    restart=True,
    convolutions="variance",
)
#: Narrower still, and a codebook that follows the encoder quickly: what a CPU trains in minutes.
_SMALL = replace(
    _DUAL_SMALL,
    codebook_size=512,
    encoder_multipliers=(3, 4, 6),
    decoder_multipliers=(4, 8),
    num_blocks=1,
    decay=0.95,
    linear_path=True,
)
_TRIPLE = DQVAEConfig(
    strides=(32, 16, 8),
    encoder_multipliers=(1, 1, 2, 2, 4, 4),
    encoder_attention=(8, 16, 32),
    target_ratio=(0.3, 0.3),
    budget_weight=1.0,
)

PRESETS: dict[str, DQVAEConfig] = {
    "dqvae-dual": DQVAEConfig(),
    "dqvae-dual-entropy": DQVAEConfig(router="entropy"),
    "dqvae-triple": _TRIPLE,
    "dqvae-small": _SMALL,
    "dqvae-dual-small": _DUAL_SMALL,
    "dqvae-dual-tiny": _TINY,
    "dqvae-dual-entropy-tiny": replace(_TINY, router="entropy"),
    "dqvae-triple-tiny": replace(
        _TINY,
        strides=_TRIPLE.strides,
        encoder_multipliers=(1, 2, 4, 4, 4, 4),
        encoder_attention=_TRIPLE.encoder_attention,
        target_ratio=_TRIPLE.target_ratio,
    ),
}
