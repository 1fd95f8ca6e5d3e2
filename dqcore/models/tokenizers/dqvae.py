"""DQ-VAE: the tokenizer that gives each region as many codes as its information needs (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.errors import InputError
from dqcore.models.tokenizers.base import Encoding, Tokenizer, TokenizerConfig, TokenizerOutput
from dqcore.models.tokenizers.choices import Choices
from dqcore.nn.allocation import allocate, counts_wanted, target_shares
from dqcore.nn.budget import BudgetLoss, ReleasedBudgetLoss
from dqcore.nn.gain import GainRouter
from dqcore.nn.position import Position
from dqcore.nn.router import EntropyRouter, FeatureRouter, Gate, RandomRouter, Routing

__all__ = ["DQVAE", "PRESETS", "DQVAEConfig"]


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
        if len(self.strides) < 2:
            raise InputError(f"strides: expected at least two granularities, got {self.strides}; VQGAN has one")
        super().__post_init__()
        ratio = target_shares("target_ratio", self.target_ratio, len(self.strides))
        object.__setattr__(self, "target_ratio", ratio)  # for two granularities the user may give one number
        for name, known in {
            "router": ("feature", "entropy", "random", "gain"),
            "budget": ("paper", "released"),
            "gate": ("silu", "relu", "linear"),
        }.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.router == "feature" and self.router_groups and self.latent_channels % self.router_groups:
            raise InputError(f"router_groups: expected a divisor of {self.latent_channels}, got {self.router_groups}")
        if self.temperature <= 0:
            raise InputError(f"temperature: expected more than 0, got {self.temperature}")


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


class DQVAE(Tokenizer):
    """A tokenizer whose code length follows the image.

    ::

        images (B, 3, H, W)
          |-- encoder ------- a feature map for each granularity, coarse to fine
          |                     |-- quant_conv --------------.
          |                     |                            |
          '-- router (reads images or maps) -- grain map --- quantizer -- code map
                                                             |
                                    images -- decoder -- post_quant_conv -- quantized map

    The router picks a granularity for each region, and only the codes of that granularity are looked up. Height and
    width of the images may be any multiples of the coarsest stride.

    Args:
        config: A :class:`DQVAEConfig`; see also :meth:`from_preset`.
    """

    Config = DQVAEConfig
    PRESETS = PRESETS
    config: DQVAEConfig

    def __init__(self, config: DQVAEConfig) -> None:
        super().__init__(config)
        self.router = _router(config)
        loss = BudgetLoss if config.budget == "paper" else ReleasedBudgetLoss
        self.budget = loss(config.target_ratio, config.budget_weight)

    def encode(
        self,
        images: Tensor,
        ratio: float | Sequence[float] | None = None,
        num_codes: int | Tensor | None = None,
    ) -> Encoding:
        """Codes and grain map of images. The caller may set how many codes an image gets, without retraining.

        Args:
            images: ``(B, 3, H, W)``, floating, in [-1, 1].
            ratio: Share of regions at the finest granularity in every image, in [0, 1], rounded to whole regions. With
                more than two granularities a tuple: one share for each above the coarsest, coarse to fine.
            num_codes: Number of codes of every image, or int64 ``(B,)`` with a number for each. An image gets this
                number, or the next smaller one that whole regions add up to.

        Returns:
            An :class:`Encoding`. With ``ratio`` or ``num_codes``, the regions for which the router prefers fine
            granularities most (by gate logits or entropy) get them; ties go in raster order.

        Raises:
            ValueError: Images of the wrong shape, both ``ratio`` and ``num_codes``, or one out of range.

        In training mode the router is noisy and the codebook learns, as in ``forward``.
        """
        return self._encode(images, ratio, num_codes)[0]

    @torch.no_grad()
    def scan(self, images: Tensor) -> tuple[list[Tensor], Routing]:
        """What the networks say of images: feature maps as the quantizer takes them, and the router's choice."""
        self._check_images(images)
        maps: list[Tensor] = self.encoder(images)
        return [self.quant_conv(values) for values in maps], self.router(images, maps)

    @torch.no_grad()
    def encode_scanned(
        self, images: Tensor, scanned: tuple[list[Tensor], Routing], ratio: Any = None, num_codes: Any = None
    ) -> Encoding:
        """What :meth:`encode` gives in evaluation, from what :meth:`scan` gave."""
        (features, routing), counts = scanned, self._counts(images, ratio, num_codes)
        routing = routing if counts is None else self._routed(routing, counts)
        quantized, codes, _ = self.quantizer(features, routing.grain)
        return Encoding(codes, routing.grain, quantized, routing.gate_logits, routing.entropy)

    @torch.no_grad()
    def choices(self, images: Tensor) -> Choices:
        """The codes of images ``(B, 3, H, W)`` at every granularity, for callers who try grain maps; in evaluation."""
        features, routing = self.scan(images)
        alike = [torch.full_like(routing.grain, g) for g in range(len(features))]
        codes = torch.stack([self.quantizer(features, grain, learn=False).codes for grain in alike])
        return Choices(codes, self.router.refinement_scores(routing), routing.grain)

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Encode, quantize and decode images ``(B, 3, H, W)`` in [-1, 1].

        Gradient: to all parameters; an EMA codebook has none. A feature router gets its gradient through its
        straight-through gate and through the budget loss.
        """
        encoding, routing, commitment_loss, features = self._encode(images)
        reconstruction = self.decode_quantized(encoding.quantized)
        budget_loss = torch.zeros_like(commitment_loss) if routing.gate is None else self.budget(routing.gate)
        if self.training and isinstance(self.router, GainRouter):

            def reconstruct(some: slice, grain: Tensor) -> Tensor:
                quantized = self.quantizer([values[some] for values in features], grain, learn=False).map
                return self.decode_quantized(quantized)

            budget_loss = self.router.loss(routing, images, reconstruction, reconstruct)
        return TokenizerOutput(reconstruction, commitment_loss, budget_loss, encoding.codes, encoding.grain)

    if TYPE_CHECKING:  # a module's own gives Any

        def __call__(self, images: Tensor) -> TokenizerOutput: ...  # noqa: D102

    def _encode(
        self, images: Tensor, ratio: float | Sequence[float] | None = None, num_codes: int | Tensor | None = None
    ) -> tuple[Encoding, Routing, Tensor, list[Tensor]]:
        self._check_images(images)
        counts = self._counts(images, ratio, num_codes)
        maps: list[Tensor] = self.encoder(images)
        routing = self.router(images, maps)
        if counts is not None:
            routing = self._routed(routing, counts)
        elif self.training and routing.gate is not None:
            maps = _pass_gate(maps, routing.gate, routing.grain)
        features = [self.quant_conv(values) for values in maps]
        quantized, codes, loss = self.quantizer(features, routing.grain)
        encoding = Encoding(codes, routing.grain, quantized, routing.gate_logits, routing.entropy)
        return encoding, routing, loss, features

    def _routed(self, routing: Routing, counts: Callable[[Tensor], Tensor]) -> Routing:
        """The routing with as many regions of each granularity as ``counts`` says."""
        scores = self.router.refinement_scores(routing)
        return routing._replace(grain=allocate(scores, counts(scores)), gate=None)

    def _counts(self, images: Tensor, ratio: Any, num_codes: Any) -> Callable[[Tensor], Tensor] | None:
        stride = self.config.strides[0]
        regions = (images.shape[2] // stride) * (images.shape[3] // stride)
        return counts_wanted(images.shape[0], regions, self.config.num_granularities, ratio, num_codes)


def _router(config: DQVAEConfig) -> FeatureRouter | EntropyRouter | RandomRouter | GainRouter:
    if config.router == "feature":
        return FeatureRouter(
            config.latent_channels, config.num_granularities, config.gate, config.router_groups, config.temperature
        )
    if config.router == "entropy":
        return EntropyRouter(config.target_ratio, config.strides[0], config.entropy_bins)
    if config.router == "gain":
        return GainRouter(config.latent_channels, config.target_ratio)
    return RandomRouter(config.target_ratio)


def _pass_gate(maps: Sequence[Tensor], gate: Tensor, grain: Tensor) -> list[Tensor]:
    """Multiply every region of the maps by its gate, which is 1 but carries the gradient to the router."""
    chosen = gate.gather(1, grain[:, None])
    return [values * F.interpolate(chosen, scale_factor=float(2**g)).to(values) for g, values in enumerate(maps)]
