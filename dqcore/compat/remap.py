"""Codes numbered anew: a file lists the codes that are in use, and each code becomes its place in that list."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import torch
from torch import Tensor, nn

from dqcore.compat.lookup import as_map, check_map, lookup
from dqcore.errors import InputError, number_given

__all__ = ["MapQuantizer", "Remapped"]


class Remapped(nn.Module):
    """A quantizer whose codes may be numbered anew.

    Attributes:
        remap: The file, or None.
        used: The codes in use, ``(U,)``; only with ``remap``.
        unknown_index: What a code that is not in use becomes: ``"random"``, or this number; only with ``remap``.
        re_embed: How many different codes there are after renumbering.
    """

    used: Tensor
    unknown_index: int | str

    def _read_remap(self, remap: str | PathLike | None, unknown_index: int | str, num_codes: int) -> None:
        """Load the list of used codes; ``"extra"`` gives all unknown codes one more number, the last."""
        self.remap = remap
        self.re_embed = num_codes
        if remap is None:
            return
        if unknown_index not in ("random", "extra") and not isinstance(unknown_index, (int, np.integer)):
            raise InputError(f"unknown_index: expected 'random', 'extra' or a number, got {unknown_index!r}")
        self.register_buffer("used", torch.tensor(np.load(remap)))
        self.re_embed = self.used.shape[0]
        self.unknown_index = int(self.re_embed) if unknown_index == "extra" else unknown_index
        self.re_embed += unknown_index == "extra"

    def remap_to_used(self, inds: Tensor) -> Tensor:
        """Old numbers to new ones; ``inds`` has two dimensions or more, and the result its shape.

        With ``unknown_index="random"`` each unknown code draws its number from PyTorch's CPU generator.
        """
        _check_inds(inds)
        used, place = self.used.to(inds).sort(stable=True)
        slot = torch.searchsorted(used, inds.contiguous()).clamp_max_(len(used) - 1)
        new = place[slot]
        unknown = used[slot] != inds
        if self.unknown_index == "random":
            number = torch.randint(0, self.re_embed, size=(int(unknown.sum()),))
            new[unknown] = number.to(new.device)
        else:
            new[unknown] = int(self.unknown_index)
        return new

    def unmap_to_all(self, inds: Tensor) -> Tensor:
        """New numbers to old ones, in the shape of ``inds``; the extra number becomes the first used code."""
        _check_inds(inds)
        used = self.used.to(inds)
        inds = inds.contiguous()
        if self.re_embed > len(used):
            inds = torch.where(inds >= len(used), 0, inds)
        return used.index_select(0, inds.flatten()).view(inds.shape)


class MapQuantizer(Remapped):
    """What taming's ``VectorQuantizer2`` and diffusers' ``VectorQuantizer`` share: all but names and ``forward``."""

    def __init__(
        self,
        num_codes: int,
        dim: int,
        beta: float,
        remap: str | PathLike | None,
        unknown_index: int | str,
        sane_index_shape: bool,
        legacy: bool,
    ) -> None:
        super().__init__()
        number_given(beta=beta)
        self.n_e, self.beta, self.legacy = num_codes, beta, legacy
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / num_codes, 1.0 / num_codes)
        self._read_remap(remap, unknown_index, num_codes)
        self.sane_index_shape = sane_index_shape

    def _quantize(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        check_map("z", z, self.embedding.weight.shape[1])
        found = lookup(z, self.embedding.weight)
        if self.legacy:
            loss = found.commitment + self.beta * found.codebook
        else:
            loss = self.beta * found.commitment + found.codebook
        codes = found.codes
        if self.remap is not None:
            codes = self.remap_to_used(codes.reshape(z.shape[0], -1)).reshape(-1, 1)
        if self.sane_index_shape:
            codes = codes.reshape(z.shape[0], *z.shape[2:])
        return found.quantized.contiguous(), loss, (None, None, codes)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None) -> Tensor:
        """The vectors of codes: a map where ``shape`` is ``(B, H, W, D)``; renumbered codes need the shape."""
        if self.remap is not None:
            if shape is None:
                raise InputError("shape: expected (B, H, W, D), as the codes are renumbered image by image; got None")
            indices = self.unmap_to_all(indices.reshape(shape[0], -1)).reshape(-1)
        return as_map(self.embedding(indices), shape)


def _check_inds(inds: Tensor) -> None:
    if inds.dim() < 2:
        raise InputError(f"inds: expected at least 2 dimensions, the first over images, got shape {tuple(inds.shape)}")
