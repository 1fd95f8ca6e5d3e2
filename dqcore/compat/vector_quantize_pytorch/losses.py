"""The terms of the layer's loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.compat.vector_quantize_pytorch.layout import merge_heads
from dqcore.compat.vector_quantize_pytorch.search import unit
from dqcore.errors import InputError

__all__ = ["LossBreakdown", "code_cross_entropy", "commitment", "masked_mean", "total"]


class LossBreakdown(NamedTuple):
    """The terms before their weights; 0 where a term is not used."""

    commitment: Tensor
    codebook_diversity: Tensor
    orthogonal_reg: Tensor
    inplace_optimize: Tensor


def commitment(
    layer: Any,
    vectors: Tensor,
    z: Tensor,
    sequence: Tensor,
    mask: Tensor | None,
    top: int | None,
    codes: Tensor,
    similarities: Tensor | None,
    frozen: bool,
) -> Tensor | None:
    """The commitment of ``z (C, B', N, d)`` to its codes' ``vectors``; with top-k one for each code, ``(B, N, k)``.

    Under a mask the vectors of a layer with one head and no projection are compared with the input ``sequence``, which
    differs from ``z`` with ``use_cosine_sim``: so the other package does it. None where there is none: in evaluation
    without top-k, and without weight.
    """
    if not (layer.has_commitment_loss if layer.training else top is not None):
        return None
    if layer.training and layer.commitment_use_cross_entropy_loss:
        assert similarities is not None
        if mask is not None:
            codes = codes.masked_fill(~mask.view(*mask.shape, *[1] * (codes.dim() - 2)), -1)
        return code_cross_entropy(similarities, codes, layer.heads, layer.separate_codebook_per_head)
    if layer.training and (frozen or not layer.learnable_codebook):
        vectors = vectors.detach()
    if top is not None:
        each = F.mse_loss(vectors, z, reduction="none").mean(-1).squeeze(0)
        return each if mask is None else each.masked_fill(~mask.unsqueeze(-1), 0)
    if mask is None:
        return F.mse_loss(vectors, z)
    target = sequence.unsqueeze(0) if layer.heads == 1 and not layer.has_projections else z
    return masked_mean(F.mse_loss(vectors, target, reduction="none"), mask)


def total(
    layer: Any, commit: Tensor | None, similarities: Tensor | None, codes: Tensor, in_place: Tensor | None
) -> tuple[Tensor, LossBreakdown]:
    """The weighted sum of the terms, and the terms. While training it always has a gradient, be it that of nothing."""
    zero = layer.zero.detach()
    spread = orthogonal = zero
    loss = zero
    if layer.training and layer.has_codebook_diversity_loss:
        assert similarities is not None
        spread = diversity(similarities, layer.codebook_diversity_temperature)
        loss = loss + spread * layer.codebook_diversity_loss_weight
    if commit is not None:
        loss = loss + commit * (layer.commitment_weight if layer.has_commitment_loss else 1)
    if layer.training and layer.has_codebook_orthogonal_loss:
        orthogonal = orthogonality(layer, codes)
        loss = loss + orthogonal * layer.orthogonal_reg_weight
    if loss is zero:
        loss = zero.clone()
    if layer.training and not loss.requires_grad:
        loss.requires_grad_()
    return loss, LossBreakdown(
        zero if commit is None else commit, spread, orthogonal, zero if in_place is None else in_place
    )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``values (C, B', N, d)`` where the mask ``(B, N)`` of the sequences holds."""
    repeats = values.shape[1] // len(mask)
    return values[:, mask.repeat_interleave(repeats, 0) if repeats > 1 else mask].mean()


def code_cross_entropy(similarities: Tensor, codes: Tensor, heads: int, separate: bool) -> Tensor:
    """Cross entropy of the softmax over similarities ``(C, B', N, K)`` to ``codes``; codes of -1 do not count."""
    logits = merge_heads(similarities, heads, separate)
    if codes.shape[:1] != logits.shape[:1] or codes.numel() != logits[..., 0].numel():
        raise InputError(f"indices: expected shape {tuple(logits.shape[:-1])}, got {tuple(codes.shape)}")
    return F.cross_entropy(logits.flatten(0, -2), codes.reshape(-1), ignore_index=-1)


def diversity(similarities: Tensor, temperature: float) -> Tensor:
    """Negative entropy of the softmax over codes, this a mean over the samples at each position of the sequence."""
    mean = (similarities * temperature).softmax(-1).flatten(0, -3).mean(0)
    return -(-mean * mean.clamp_min(1e-5).log()).sum(-1).mean()


def orthogonality(layer: Any, codes: Tensor) -> Tensor:
    """How far the codebook's directions are from orthogonal (arXiv:2112.00384, equation 2)."""
    embed = layer._codebook.embed
    if layer.orthogonal_reg_active_codes_only:
        embed = embed[:, torch.unique(codes)]
    most = layer.orthogonal_reg_max_codes
    if most is not None and embed.shape[1] > most:
        embed = embed[:, torch.randperm(embed.shape[1], device=embed.device)[:most]]
    directions, size = unit(embed), embed.shape[1]
    products = directions @ directions.transpose(-1, -2)
    return products.square().sum() / (len(embed) * size**2) - 1 / size
