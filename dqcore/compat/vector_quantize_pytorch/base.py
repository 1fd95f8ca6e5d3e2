"""The layer without its forward pass: how it is built, its codebook, and what reads or writes codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dqcore.compat.vector_quantize_pytorch.codebook import Codebook
from dqcore.compat.vector_quantize_pytorch.layout import layout_of, mask_of, rows_mask, split_heads
from dqcore.compat.vector_quantize_pytorch.options import resolve
from dqcore.compat.vector_quantize_pytorch.search import lookup
from dqcore.errors import InputError

__all__ = ["VectorQuantizeBase"]

#: Arguments that the codebook takes as they are.
PASSED_ON = (
    "codebook_size",
    "kmeans_init",
    "kmeans_iters",
    "sync_kmeans",
    "decay",
    "eps",
    "threshold_ema_dead_code",
    "ema_update",
    "manual_ema_update",
    "use_cosine_sim",
    "vq_bridge",
    "stochastic_sample_codes",
    "sample_codebook_temp",
    "straight_through",
)


class VectorQuantizeBase(nn.Module):
    """Everything of :class:`VectorQuantize` but ``forward``."""

    # Arguments that the layer keeps under their own names. Each may be changed later and counts from the next call.
    dim: int
    codebook_size: int
    heads: int
    separate_codebook_per_head: bool
    eps: float
    freeze_codebook: bool
    use_cosine_sim: bool
    channel_last: bool
    accept_image_fmap: bool
    accept_3d_fmap: bool
    commitment_weight: float
    commitment_use_cross_entropy_loss: bool
    orthogonal_reg_weight: float
    orthogonal_reg_active_codes_only: bool
    orthogonal_reg_max_codes: int | None
    codebook_diversity_loss_weight: float
    codebook_diversity_temperature: float
    rotation_trick: bool
    directional_reparam: bool
    directional_reparam_variance: float
    manual_in_place_optimizer_update: bool
    learnable_codebook: bool
    sync_update_v: float
    return_zeros_for_masked_padding: bool
    route_gradients_to_input: bool

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_diversity_loss_weight: float = 0.0,
        codebook_diversity_temperature: float = 100.0,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        straight_through: bool = False,
        rotation_trick: bool | None = None,
        directional_reparam: bool = False,
        directional_reparam_variance: float = 5e-3,
        sync_codebook: bool | None = None,
        sync_affine_param: bool = False,
        ema_update: bool | None = None,
        vq_bridge: nn.Module | None = None,
        manual_ema_update: bool = False,
        learnable_codebook: bool | None = None,
        in_place_codebook_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        manual_in_place_optimizer_update: bool = False,
        affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        sync_update_v: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
    ) -> None:
        given = locals()
        super().__init__()
        options = resolve(given)
        for name in VectorQuantizeBase.__annotations__:
            setattr(self, name, options[name])
        self._build(options)

    def _build(self, options: dict[str, Any]) -> None:
        """Projections and codebook, in the order in which the other package draws its random numbers."""
        width = options["codebook_dim"] * self.heads
        self.has_projections = width != self.dim
        self.project_in: nn.Module = nn.Identity()
        self.project_out: nn.Module = nn.Identity()
        if self.has_projections:
            self.project_in = nn.Linear(self.dim, width)
            if options["layernorm_after_project_in"]:
                self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(width))
            self.project_out = nn.Linear(width, self.dim)
        self.has_commitment_loss = self.commitment_weight > 0 and not options["directional_reparam"]
        self.has_codebook_orthogonal_loss = options["orthogonal_reg_weight"] > 0
        self.has_codebook_diversity_loss = options["codebook_diversity_loss_weight"] > 0
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._codebook = Codebook(
            options["codebook_dim"],
            num_codebooks=self.heads if self.separate_codebook_per_head else 1,
            use_ddp=several if options["sync_codebook"] is None else options["sync_codebook"],
            learnable_codebook=self.has_codebook_orthogonal_loss or options["learnable_codebook"],
            **{name: options[name] for name in PASSED_ON},
        )
        make = options["in_place_codebook_optimizer"]
        self.in_place_codebook_optimizer = None if make is None else make(self._codebook.parameters())
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    @property
    def ema_update(self) -> bool:
        """Whether the codes follow moving averages of the vectors that chose them."""
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """The codes ``(K, d)``, or ``(heads, K, d)`` with a codebook for each head. Can be set."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed.squeeze(0)

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        with torch.no_grad():
            self._codebook.embed.copy_(codes if self.separate_codebook_per_head else codes.unsqueeze(0))

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The vectors of codes as ``forward`` returns them, not projected; channels in their place.

        Args:
            indices: ``(B, ...)`` int64, with heads ``(B, ..., heads)``.

        Returns:
            ``(B, ..., d)``; of heads that share one codebook ``(B, ..., heads, d)``, of heads with a codebook each
            ``(B, ..., heads * d)``.
        """
        return self._channels_in_place(self._codes_of(indices))

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What ``forward`` returned for these codes in evaluation."""
        codes = self._codes_of(indices)
        together = self.heads > 1 and not self.separate_codebook_per_head
        return self._channels_in_place(self.project_out(codes.flatten(-2) if together else codes))

    def _codes_of(self, indices: Tensor) -> Tensor:
        if not self.separate_codebook_per_head:
            return self.codebook[indices]
        wrong = (indices < 0) | (indices >= self.codebook_size)  # or it would be another head's code
        indices = indices.masked_fill(wrong, self.heads * self.codebook_size)
        return lookup(self.codebook, indices.movedim(-1, 0)).movedim(0, -2).flatten(-2)

    def _channels_in_place(self, codes: Tensor) -> Tensor:
        last = self.channel_last and not self.accept_image_fmap and not self.accept_3d_fmap
        return codes if last or codes.dim() < 3 else codes.movedim(-1, 1)

    def expire_codes_(self, x: Tensor) -> None:
        """Replace unused codes, while training, by vectors drawn from ``x (B, N, dim)``.

        As in the other package ``x`` is not projected, and without heads only its first sample is drawn from.
        """
        width = self.heads * self._codebook.embed.shape[-1]
        if not isinstance(x, Tensor) or x.shape[-1] != width:
            raise InputError(f"x: expected (B, N, {width}), got {getattr(x, 'shape', type(x).__name__)}")
        self._codebook.expire_codes_(self.maybe_split_heads_from_input(self._codebook.transform_input(x)))

    def maybe_split_heads_from_input(self, x: Tensor) -> Tensor:
        """``(B, N, heads * d)`` as ``(heads, B, N, d)``, or ``(1, B * heads, N, d)``; without heads as it is."""
        return x if self.heads == 1 else self._split(x)

    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """Move the codebook as a training step would that gave ``x`` these codes.

        Args:
            x: An input of the layer.
            indices: Its codes, as ``forward`` returns them; -1 counts as code 0 unless the mask leaves it out.
            mask: Which vectors of a sequence count, ``(B, N)`` bool.
        """
        layout = layout_of(self, x)
        kept = mask_of(self, layout, len(x), mask, None)
        with torch.no_grad():
            z = self._vectors(layout.sequence(x)).float()
            if indices.shape[:1] != x.shape[:1] or indices.numel() * z.shape[-1] != z.numel():
                raise InputError(f"indices: expected a code for each vector of x, got shape {tuple(indices.shape)}")
            codes = indices.reshape(len(x), -1, *([self.heads] if self.heads > 1 else []))
            codes = self._split(codes).reshape(z.shape[:-1]).clamp_min(0)
            self._codebook.update_codebook(
                z.flatten(1, 2), codes.flatten(1, 2), None if kept is None else rows_mask(kept, z)
            )

    update_ema_indices = update_indices

    def update_in_place_optimizer(self) -> None:
        """Let the codebook's own optimizer take a step with the gradients it has, if there is such an optimizer."""
        if self.in_place_codebook_optimizer is None:
            return
        if self._codebook.use_ddp:
            for parameter in self._codebook.parameters():
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= dist.get_world_size()
        self.in_place_codebook_optimizer.step()
        self.in_place_codebook_optimizer.zero_grad()

    def _split(self, x: Tensor) -> Tensor:
        return split_heads(x, self.heads, self.separate_codebook_per_head)

    def _vectors(self, sequence: Tensor) -> Tensor:
        """What is looked up for ``(B, N, dim)``: ``(C, B', N, d)``, contiguous."""
        return self._codebook.transform_input(self._split(self.project_in(sequence)).contiguous())
