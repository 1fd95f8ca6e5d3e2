"""What the configs of all tokenizers have in common."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

from dqcore.errors import InputError, at_least
from dqcore.fields import check_fields
from dqcore.nn.position import Position

__all__ = ["TokenizerConfig"]


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
    linear_path: bool = False  # also one linear layer from pixels to codes and one back, which learn colour at once
    convolutions: Literal["torch", "variance"] = "torch"  # how their weights start; variance: see keep_variance

    def __post_init__(self) -> None:
        check_fields(self)
        self._check_strides()
        strides = self.strides
        at_least(1, codebook_size=self.codebook_size, latent_channels=self.latent_channels)
        at_least(1, num_blocks=self.num_blocks, resolution=self.resolution)
        if not 0 <= self.commitment < math.inf:
            raise InputError(f"commitment: expected a number from 0 up, got {self.commitment}")
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
        if self.linear_path and strides[-1] < 2:
            raise InputError(f"linear_path: expected strides of at least 2, got {strides}")
        if self.resolution % strides[0]:
            raise InputError(f"resolution: expected a multiple of {strides[0]}, got {self.resolution}")

    def _check_strides(self) -> None:
        strides = self.strides
        halves = all(coarse == 2 * fine for coarse, fine in itertools.pairwise(strides))
        if not strides or min(strides) < 1 or strides[0] & (strides[0] - 1) or not halves:
            raise InputError(f"strides: expected powers of two, each half of the one before, got {strides}")

    @property
    def num_granularities(self) -> int:
        """G, the number of strides."""
        return len(self.strides)
