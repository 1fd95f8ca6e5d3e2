"""VQGAN: the tokenizer that gives every region the same number of codes, the paper's baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.models.tokenizers.base import Encoding, Tokenizer, TokenizerOutput
from dqcore.models.tokenizers.config import TokenizerConfig
from dqcore.nn.routing import Routing

__all__ = ["PRESETS", "VQGAN", "VQGANConfig"]


@dataclass(frozen=True)
class VQGANConfig(TokenizerConfig):
    """A tokenizer with one stride; the defaults are ``vqgan-f16``. Fields: :class:`TokenizerConfig`."""

    def _check_strides(self) -> None:
        if len(self.strides) != 1:
            raise InputError(f"strides: expected one stride for a fixed-length tokenizer, got {self.strides}")
        super()._check_strides()


_F8 = VQGANConfig(
    strides=(8,),
    encoder_multipliers=(1, 1, 2, 2),
    decoder_multipliers=(1, 1, 2, 2),
    encoder_attention=(8,),
    decoder_attention=(8,),
)

#: The fixed-length twin of ``dqvae-small``, with its widths.
_F16_SMALL = VQGANConfig(
    codebook_size=512,
    dim=32,
    latent_channels=64,
    stem=4,
    channels=16,
    encoder_multipliers=(3, 4, 6),
    decoder_multipliers=(4, 8, 8),
    encoder_attention=(),
    decoder_attention=(),
    middle_attention=False,
    num_blocks=1,
    groups=8,
    decay=0.95,
    initialisation="kmeans",
    restart=True,
    convolutions="variance",
    linear_path=True,
)

PRESETS: dict[str, VQGANConfig] = {
    "vqgan-f16": VQGANConfig(),
    "vqgan-f8": _F8,
    "vqgan-f16-small": _F16_SMALL,
    "vqgan-f8-small": replace(_F16_SMALL, strides=(8,), encoder_multipliers=(3, 4), decoder_multipliers=(4, 8)),
    "vqgan-f16-tiny": VQGANConfig(
        codebook_size=256,
        dim=64,
        latent_channels=64,
        channels=16,
        encoder_multipliers=(1, 2, 4, 4, 4),
        decoder_multipliers=(1, 2, 4, 4, 4),
        num_blocks=1,
        groups=8,
        resolution=128,
        restart=True,
        convolutions="variance",
    ),
    "vqgan-f8-tiny": VQGANConfig(
        strides=(8,),
        codebook_size=256,
        dim=64,
        latent_channels=64,
        channels=16,
        encoder_multipliers=(1, 2, 4, 4),
        decoder_multipliers=(1, 2, 4, 4),
        encoder_attention=(8,),
        decoder_attention=(8,),
        num_blocks=1,
        groups=8,
        resolution=128,
        restart=True,
        convolutions="variance",
    ),
}


class VQGAN(Tokenizer):
    """A fixed-length tokenizer: one code per cell of the grid.

    Height and width of the images may be any multiples of the stride.

    Args:
        config: A :class:`VQGANConfig`; see also :meth:`from_preset`.
    """

    Config = VQGANConfig
    PRESETS = PRESETS
    config: VQGANConfig

    def encode(self, images: Tensor) -> Encoding:
        """Codes of images ``(B, 3, H, W)``, floating, in [-1, 1]; the grain map is all 0."""
        return self._encode(images)[0]

    @torch.no_grad()
    def scan(self, images: Tensor) -> tuple[list[Tensor], Routing]:
        """The feature map of images, as the quantizer takes it, in a list; and a routing with a grain map of zeros."""
        self._check_images(images)
        maps = [self.quant_conv(values) for values in self.encoder(images)]
        grain = torch.zeros_like(maps[0][:, 0], dtype=torch.int64)
        return maps, Routing(grain)

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Encode, quantize and decode images ``(B, 3, H, W)`` in [-1, 1]; the budget loss is 0."""
        encoding, commitment_loss = self._encode(images)
        reconstruction = self.decode_quantized(encoding.quantized)
        budget_loss = torch.zeros_like(commitment_loss)
        return TokenizerOutput(reconstruction, commitment_loss, budget_loss, encoding.codes, encoding.grain)

    if TYPE_CHECKING:  # nn.Module's own __call__ returns Any

        def __call__(self, images: Tensor) -> TokenizerOutput: ...  # noqa: D102

    def _encode(self, images: Tensor) -> tuple[Encoding, Tensor]:
        self._check_images(images)
        (features,) = self.encoder(images)
        quantized, codes, loss = self.quantizer(self.quant_conv(features))
        return Encoding(codes, torch.zeros_like(codes), quantized), loss
