"""``VectorQuantize``: the layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.compat.vector_quantize_pytorch.base import VectorQuantizeBase
from dqcore.compat.vector_quantize_pytorch.codebook import Averages, Weight
from dqcore.compat.vector_quantize_pytorch.layout import layout_of, mask_of, merge_heads
from dqcore.compat.vector_quantize_pytorch.losses import code_cross_entropy, commitment, masked_mean, total
from dqcore.compat.vector_quantize_pytorch.passing import pass_and_commit, pass_direction
from dqcore.compat.vector_quantize_pytorch.quantize import Found, Transform, Wish
from dqcore.errors import InputError, whole_given

__all__ = ["VectorQuantize"]


class VectorQuantize(VectorQuantizeBase):
    """Replace every vector by the nearest code of a codebook, as vector-quantize-pytorch 1.32 does.

    Arguments, attributes, state-dict keys and, from the same seed, random numbers are those of that package. Not
    supported, and refused when the layer is built: ``affine_param`` and the arguments that belong to it.

    What differs: the codes are exact (see the package's docstring); bad arguments raise
    :class:`dqcore.errors.InputError`; ``get_output_from_indices`` also serves feature maps with projections, and masks
    serve heads and projections, where that package fails; with the rotation trick the result is the code itself, not
    a vector within rounding of it.

    Attributes:
        codebook: The codes; see :attr:`VectorQuantizeBase.codebook`.
        project_in, project_out: Linear layers where ``heads * codebook_dim`` is not ``dim``, else the identity.
    """

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Transform | None = None,
        ema_update_weight: Weight | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> tuple[Any, ...]:
        """Quantize ``x``; while training also move the codebook.

        Args:
            x: ``(B, N, dim)``; ``(B, dim, N)`` unless ``channel_last``; ``(B, dim, H, W)`` with ``accept_image_fmap``;
                ``(B, dim, T, H, W)`` with ``accept_3d_fmap``; or one vector for each sample, ``(B, dim)``.
            indices: Codes of a target: the second result is then the cross entropy to them, and the last.
            mask: Which vectors of a sequence there are, ``(B, N)`` bool. The others get code -1, the vector 0 (or their
                input, without ``return_zeros_for_masked_padding``), and no part in loss and codebook.
            lens: The lengths of the sequences, ``(B,)``, in place of a mask.
            topk: The k nearest codes of each vector, the nearest first; the codebook does not move.
            sample_codebook_temp: Temperature of this call with ``stochastic_sample_codes``.
            freeze_codebook: Whether the codebook stays as it is in this call.
            return_loss_breakdown: Return the loss's terms as a fourth result.
            codebook_transform_fn: Makes ``(C, B, N, K, d)`` codes, one set for each vector, from ``(C, K, d)``.
            ema_update_weight: Factors of each code's step, ``(K,)`` or ``(C, K)``, or a function of (sums, counts).
            accum_ema_update: Keep this batch's statistics for the next call that does not ask for it.
            ema_update: Whether the codes follow the moving averages in this call.

        Returns:
            Quantized vectors in the layout of ``x``; codes int64, without the channels, heads last; the loss ``()``,
            0 in evaluation; with top-k there is a dimension k more before the channels, after the codes, and the loss
            is one for each code.
        """
        layout, top = layout_of(self, x), self._top(topk)
        kept = mask_of(self, layout, len(x), mask, lens)
        routed = self.training and x.requires_grad and self.route_gradients_to_input
        sequence = layout.sequence(x)
        z = self._vectors(sequence)
        wish = self._wish(top, sample_codebook_temp, codebook_transform_fn, indices is not None, routed)
        frozen = self.freeze_codebook if freeze_codebook is None else freeze_codebook
        averages = (ema_update_weight, accum_ema_update, ema_update) if top is None else None
        found, in_place = self._find(z, kept, wish, None if frozen or not self.training else averages, frozen)
        vectors = found.vectors.to(x.dtype)
        target = z if top is None else z.unsqueeze(-2).expand_as(vectors)
        passed, commit = self._pass(vectors, target, routed, frozen, kept is None and top is None)
        if indices is not None:
            return self._against(indices, passed, found)
        codes = merge_heads(found.codes, self.heads, self.separate_codebook_per_head)
        if commit is None:
            commit = commitment(self, vectors, target, sequence, kept, top, codes, found.similarities, frozen)
        loss, terms = total(self, commit, found.similarities, codes, in_place)
        codes = codes if kept is None else codes.masked_fill(~_spread_mask(kept, codes), -1)
        loss = layout.spread(loss) if loss.dim() > 1 else loss
        result = layout.vectors(self._join(passed, sequence, kept, top)), layout.spread(codes), loss
        return (*result, terms) if return_loss_breakdown else result

    def _top(self, topk: int | None) -> int | None:
        """The k of top-k, at most the size of the codebook."""
        if topk is None:
            return None
        whole_given(1, topk=topk)
        if self.heads > 1:
            raise InputError("topk: cannot be used with heads")
        if self.training and self.commitment_use_cross_entropy_loss:
            raise InputError("topk: cannot be used with commitment_use_cross_entropy_loss while training")
        if self.training and self.in_place_codebook_optimizer is not None:
            raise InputError("topk: cannot be used with in_place_codebook_optimizer while training")
        return min(int(topk), self.codebook_size)

    def _wish(
        self, top: int | None, temperature: float | None, transform: Transform | None, compared: bool, routed: bool
    ) -> Wish:
        """How this call chooses codes, and whether it needs the similarities of all of them."""
        book, training = self._codebook, self.training
        temperature = book.sample_codebook_temp if temperature is None else temperature
        compared = compared or (training and self.has_codebook_diversity_loss)
        compared = compared or (training and self.has_commitment_loss and self.commitment_use_cross_entropy_loss)
        return Wish(
            cosine=self.use_cosine_sim,
            temperature=temperature if training and book.stochastic_sample_codes else 0.0,
            top=top,
            transform=transform,
            similarities=compared,
            soft=temperature if training and book.straight_through and not routed else 0.0,
        )

    def _find(
        self, z: Tensor, kept: Tensor | None, wish: Wish, averages: Averages | None, frozen: bool
    ) -> tuple[Found, Tensor | None]:
        """The codes of ``z``; with an optimizer of the codebook's own, those after its step, and that step's loss."""
        found: Found = self._codebook(z, wish, kept, averages)
        if self.in_place_codebook_optimizer is None or not self.training or frozen:
            return found, None
        if kept is None:
            error = F.mse_loss(found.vectors, z.detach())
        else:
            error = masked_mean(F.mse_loss(found.vectors, z.detach(), reduction="none"), kept)
        error.backward()
        if not self.manual_in_place_optimizer_update:
            self.update_in_place_optimizer()
        return self._codebook(z, wish, kept, None), error

    def _pass(
        self, vectors: Tensor, target: Tensor, routed: bool, frozen: bool, whole: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The codes' vectors with their gradient to ``target``, and the commitment where both come from one pass."""
        commit = None
        if routed and self.directional_reparam:
            vectors = pass_direction(target, vectors, self.directional_reparam_variance)
        elif routed:
            plain = self.has_commitment_loss and not self.commitment_use_cross_entropy_loss
            together = plain and whole and (frozen or not self.learnable_codebook)
            vectors, commit = pass_and_commit(target, vectors, self.rotation_trick, together)
        if self.training and self.sync_update_v > 0:
            vectors = vectors + self.sync_update_v * (vectors - vectors.detach())
        return vectors, commit

    def _against(self, indices: Tensor, passed: Tensor, found: Found) -> tuple[Tensor, Tensor]:
        """The quantized vectors, and the cross entropy of the similarities to the codes of a target."""
        assert found.similarities is not None
        wanted = code_cross_entropy(found.similarities, indices, self.heads, self.separate_codebook_per_head)
        return passed.squeeze(0) if self.heads == 1 else passed, wanted

    def _join(self, passed: Tensor, sequence: Tensor, kept: Tensor | None, top: int | None) -> Tensor:
        """Heads side by side, projected, and filled where there is no vector: ``(B, N, dim)``, ``(B, N, k, dim)``."""
        merged = merge_heads(passed, self.heads, self.separate_codebook_per_head)
        quantized: Tensor = self.project_out(merged if self.heads == 1 else merged.flatten(-2))
        if kept is None:
            return quantized
        there = _spread_mask(kept, quantized)
        if self.return_zeros_for_masked_padding:
            return quantized.masked_fill(~there, 0)
        return torch.where(there, quantized, sequence if top is None else sequence.unsqueeze(-2))


def _spread_mask(kept: Tensor, x: Tensor) -> Tensor:
    """A mask ``(B, N)`` with dimensions of size 1 for all others of ``x (B, N, ...)``."""
    return kept.view(*kept.shape, *[1] * (x.dim() - 2))
