"""What the tokenizers share: encoder, quantizer, decoder, and checks of images and code maps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from dqcore.codebook import EMA, KMeans, RandomRestart, Uniform
from dqcore.drawing import as_html, code_figures, different, line, percentages, photo, readable
from dqcore.errors import InputError
from dqcore.models.pretrained import Pretrained
from dqcore.models.tokenizers.checks import check_codes, check_images, check_quantized
from dqcore.nn.decoder import Decoder
from dqcore.nn.encoder import Encoder
from dqcore.nn.position import Position
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


@dataclass(frozen=True)
class TokenizerConfig:
    """The fields that all tokenizers have; the defaults are the paper's."""

    strides: tuple[int, ...] = (16,)  # down-sampling factor of each granularity, coarse to fine
    codebook_size: int = 1024  # K
    dim: int = 256  # channels of a code
    latent_channels: int = 256  # channels between encoder and quantizer, and between quantizer and decoder
    stem: int = 1  # stride of the highest resolution that encoder and decoder compute at; 1: pixels
    channels: int = 128  # width of encoder and decoder at that stride
    encoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # widths from stride stem to the coarsest stride
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)  # widths from stride stem to the finest stride
    encoder_attention: tuple[int, ...] = (16,)  # strides with attention (not resolutions: any image size works)
    decoder_attention: tuple[int, ...] = (16,)
    middle_attention: bool = True  # whether the encoder's heads and the decoder's first blocks have attention
    num_blocks: int = 2  # residual blocks of an encoder level; a decoder level has one more
    groups: int = 32  # of every GroupNorm; must divide every width
    position: Position = "none"  # what is added to the decoder's input to tell it where a cell lies
    resolution: int = 256  # height and width, in pixels, that learned position tables are made for
    commitment: float = 0.25  # beta
    decay: float = 0.99  # of the codebook's moving averages
    initialisation: Literal["uniform", "kmeans"] = "uniform"  # of the codebook; kmeans looks at the first batch
    restart: bool = False  # of unused codes; off in the paper, on in the released configs
    convolutions: Literal["torch", "variance"] = "torch"  # how their weights start; variance: see keep_variance

    def __post_init__(self) -> None:
        strides = self.strides
        for name, value in {"codebook_size": self.codebook_size, "num_blocks": self.num_blocks}.items():
            if value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}")
        halves = all(coarse == 2 * fine for coarse, fine in itertools.pairwise(strides))
        if not strides or min(strides) < 1 or strides[0] & (strides[0] - 1) or not halves:
            raise InputError(f"strides: expected powers of two, each half of the one before, got {strides}")
        if self.stem < 1 or strides[-1] % self.stem or self.stem & (self.stem - 1):
            raise InputError(f"stem: expected a power of two, at most the finest stride {strides[-1]}, got {self.stem}")
        for name, stride in {"encoder_multipliers": strides[0], "decoder_multipliers": strides[-1]}.items():
            expected = (stride // self.stem).bit_length()
            if len(getattr(self, name)) != expected:
                raise InputError(
                    f"{name}: expected {expected} widths, from stride {self.stem} to stride {stride}, "
                    f"got {getattr(self, name)}"
                )
        widths = [self.channels * m for m in (*self.encoder_multipliers, *self.decoder_multipliers)]
        for width in widths:
            if width < 1 or self.groups < 1 or width % self.groups:
                raise InputError(f"groups: expected a divisor of every width {sorted(set(widths))}, got {self.groups}")
        if self.position not in ("none", "fourier", "learned", "fourier+learned"):
            raise InputError(f"position: expected none, fourier, learned or fourier+learned, got {self.position!r}")
        if self.resolution % strides[0]:
            raise InputError(f"resolution: expected a multiple of {strides[0]}, got {self.resolution}")
        if self.initialisation not in ("uniform", "kmeans"):
            raise InputError(f"initialisation: expected uniform or kmeans, got {self.initialisation!r}")
        if self.convolutions not in ("torch", "variance"):
            raise InputError(f"convolutions: expected torch or variance, got {self.convolutions!r}")

    @property
    def num_granularities(self) -> int:
        """G, the number of strides."""
        return len(self.strides)


def keep_variance(module: nn.Module) -> None:
    """Draw the weights of a convolution anew, so that its output varies as much as its input.

    PyTorch's own draw gives a third of the variance, layer after layer: small networks then reconstruct in grey for
    their first hundreds of steps. Other modules are left as they are.
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Tokenizer(Pretrained):
    """The parts of a tokenizer: encoder, 1x1 convolution, quantizer, 1x1 convolution, decoder."""

    def __init__(self, config: Any) -> None:
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
        )
        if config.convolutions == "variance":
            self.apply(keep_variance)

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
