"""DQ-VAE: the tokenizer that gives each region as many codes as its information needs (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.models.tokenizers.base import Encoding, Tokenizer, TokenizerOutput
from dqcore.models.tokenizers.choices import Choices
from dqcore.models.tokenizers.dqvae_config import PRESETS, DQVAEConfig
from dqcore.nn.allocation import allocate, counts_wanted
from dqcore.nn.budget import BudgetLoss, ReleasedBudgetLoss
from dqcore.nn.gain import GainRouter
from dqcore.nn.router import EntropyRouter, FeatureRouter, RandomRouter
from dqcore.nn.routing import Router, Routing

__all__ = ["DQVAE", "PRESETS", "DQVAEConfig"]


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
            TypeError: Images that are no floating-point tensor.

        In training mode the router is noisy and the codebook learns, as in ``forward``.
        """
        return self._encode(images, ratio, num_codes)[0]

    @torch.no_grad()
    def scan(self, images: Tensor) -> tuple[list[Tensor], Routing]:
        """The feature maps of images, as the quantizer takes them, and the router's choice."""
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

        def reconstruct(some: slice, grain: Tensor) -> Tensor:
            quantized = self.quantizer([values[some] for values in features], grain, learn=False).map
            return self.decode_quantized(quantized)

        budget_loss = self.router.loss(routing, images, reconstruction, reconstruct) if self.training else None
        if budget_loss is None:
            budget_loss = torch.zeros_like(commitment_loss) if routing.gate is None else self.budget(routing.gate)
        return TokenizerOutput(reconstruction, commitment_loss, budget_loss, encoding.codes, encoding.grain)

    if TYPE_CHECKING:  # nn.Module's own __call__ returns Any

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


def _router(config: DQVAEConfig) -> Router:
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
