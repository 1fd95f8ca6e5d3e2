"""What the tokenizers share: encoder, quantizer, decoder, and checks of images and code maps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from dqcore.codebook import EMA, KMeans, RandomRestart, Uniform
from dqcore.drawing import as_html, code_figures, different, line, percentages, photo, readable
from dqcore.models.pretrained import Pretrained
from dqcore.models.tokenizers.checks import check_codes, check_images, check_quantized
from dqcore.models.tokenizers.config import TokenizerConfig
from dqcore.nn.decoder import Decoder
from dqcore.nn.encoder import Encoder
from dqcore.quantizer import DynamicQuantizer

__all__ = ["Encoding", "Tokenizer", "TokenizerConfig", "TokenizerOutput", "keep_variance"]


class Encoding(NamedTuple):
    """What ``encode`` returns.

    Attributes:
        codes: Code map on the finest grid, int64, ``(B, H, W)``.
        grain: Grain map, int64, ``(B, h, w)``; all 0 for a fixed-length tokenizer.
        quantized: Quantized map, ``(B, dim, H, W)``; gradients pass straight through it to the encoder.
        gate_logits: Logits of a feature router, float32, ``(B, h, w, G)``; None for other routers.
        entropy: Entropy of each region if the router is an entropy router, nats, float32, ``(B, h, w)``; else None.
    """

    codes: Tensor
    grain: Tensor
    quantized: Tensor
    gate_logits: Tensor | None = None
    entropy: Tensor | None = None

    def __repr__(self) -> str:
        fields = {"quantized": self.quantized, "gate_logits": self.gate_logits, "entropy": self.entropy}
        return line("Encoding", *_counted(self.grain), codes=different(self.codes), grain=self.grain, **fields)

    def _repr_html_(self) -> str | None:
        figures = _figures(self.codes, self.grain)
        return as_html(repr(self), figures) if figures else None


torch.serialization.add_safe_globals([Encoding])  # which people keep in files


class TokenizerOutput(NamedTuple):
    """What a tokenizer's forward pass returns.

    Attributes:
        reconstruction: ``(B, 3, H, W)``, not clamped.
        commitment_loss: Scalar, already multiplied by its weight.
        budget_loss: Scalar, already multiplied by its weight; 0 without a learned router.
        codes: Code map, int64, ``(B, H, W)``.
        grain: Grain map, int64, ``(B, h, w)``.
    """

    reconstruction: Tensor
    commitment_loss: Tensor
    budget_loss: Tensor
    codes: Tensor
    grain: Tensor

    def __repr__(self) -> str:
        fields = {**self._asdict(), "codes": different(self.codes)}
        return line("TokenizerOutput", *_counted(self.grain), **fields)

    def _repr_html_(self) -> str | None:
        figures = _figures(self.codes[:1], self.grain[:1])
        if not figures or (pixels := photo(self.reconstruction[0])) is None:
            return None
        return as_html(repr(self), [("reconstruction of image 0", pixels), *figures])


for _kind in (Encoding, TokenizerOutput):  # the names by which torch.export.save writes them
    _pytree._register_namedtuple(_kind, serialized_type_name=f"dqcore.{_kind.__name__}")


def _counted(grain: Any) -> list[str]:
    """How many codes a grain map has, in how many images, and the shares of its granularities."""
    grains = readable(grain)
    if grains is None or grains.ndim != 3 or not grains.size:
        return []
    counts = [int((grains == g).sum()) for g in range(max(2, int(grains.max()) + 1))]
    codes = sum(count * 4**g for g, count in enumerate(counts))
    shares = f", regions by granularity {percentages(counts, grains.size)}" if grains.any() else ""
    return [f"{codes} codes in {len(grains)} image{'s' if len(grains) > 1 else ''}{shares}"]


def _figures(codes: Any, grain: Any) -> list[tuple[str, Any]]:
    """Pictures of a code map ``(B, H, W)`` and its grain map; none if they cannot be read."""
    cells, grains = readable(codes), readable(grain)
    if cells is None or grains is None or cells.ndim != 3 or grains.ndim != 3 or not cells.size:
        return []
    scale = cells.shape[1] // grains.shape[1]
    return code_figures(cells, grains.repeat(scale, 1).repeat(scale, 2), scale.bit_length())


def keep_variance(module: nn.Module) -> None:
    """Draw the weights of a convolution anew, so that its output varies as much as its input.

    PyTorch's own draw gives a third of the variance, layer after layer: small networks then reconstruct in grey for
    their first hundreds of steps. Other modules are left as they are.
    """
    if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # a draw without values takes seconds of imports
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Tokenizer(Pretrained):
    """The parts of a tokenizer: encoder, 1x1 convolution, quantizer, 1x1 convolution, decoder."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(
            config.strides,
            config.channels,
            config.encoder_multipliers,
            config.num_blocks,
            config.encoder_attention,
            config.latent_channels,
            config.groups,
            config.stem,
            config.middle_attention,
            config.linear_path,
        )
        self.quant_conv = nn.Conv2d(config.latent_channels, config.dim, 1)
        self.quantizer = DynamicQuantizer.paper(
            config.dim,
            config.codebook_size,
            config.num_granularities,
            commitment=config.commitment,
            learning=EMA(decay=config.decay),
            initialisation=KMeans() if config.initialisation == "kmeans" else Uniform(),
            restart=RandomRestart() if config.restart else None,
        )
        self.post_quant_conv = nn.Conv2d(config.dim, config.latent_channels, 1)
        self.decoder = Decoder(
            config.latent_channels,
            config.channels,
            config.decoder_multipliers,
            config.num_blocks,
            config.decoder_attention,
            config.position,
            config.resolution // config.strides[-1],
            config.groups,
            config.stem,
            config.middle_attention,
            config.linear_path,
        )
        if config.convolutions == "variance":
            self.apply(keep_variance)
        if self.decoder.linear is not None:
            for parameter in self.decoder.linear.parameters():
                nn.init.zeros_(parameter)

    def facts(self) -> dict[str, str]:
        """Strides, codes, and the router if there is one."""
        config = self.config
        named = {"router": f"{config.router} router"} if hasattr(config, "router") else {}
        strides = " and ".join(map(str, config.strides))
        plural = "s" if len(config.strides) > 1 else ""
        codes = f"{config.codebook_size} codes of {config.dim} channels"
        return {"strides": f"stride{plural} {strides}", "codes": codes, **named}

    def decode(self, codes: Tensor, grain: Tensor | None = None) -> Tensor:
        """Images from a code map.

        Args:
            codes: ``(B, H, W)`` int64 in ``[0, K]``. Code K is a hole (the codebook's padding row), so that one can
                look at code maps that are not complete.
            grain: ``(B, h, w)``. Only its shape is checked, because a code map holds all that the decoder needs.

        Returns:
            Images, ``(B, 3, H * stride, W * stride)`` with the finest stride, about [-1, 1] but not clamped.

        Raises:
            InputError: Another shape, dtype or device, or on the CPU a code out of range.
        """
        scale = self.config.strides[0] // self.config.strides[-1]
        check_codes(codes, grain, scale, self.config.codebook_size, self.post_quant_conv.weight)
        return self.decode_quantized(self.quantizer.embed(codes))

    def decode_quantized(self, quantized: Tensor) -> Tensor:
        """Images from a quantized map ``(B, dim, H, W)``, such as :attr:`Encoding.quantized`; not clamped."""
        check_quantized(quantized, self.config.dim)
        return self.decoder(self.post_quant_conv(quantized))

    def _check_images(self, images: Tensor) -> None:
        check_images(images, self.config.strides[0], self.quant_conv.weight)
