"""A layer that looks vectors up in its codebook: how a quantizer's forward pass is computed, behind its arguments.

::

    input --_vectors--> vectors --_codes_for--> codes --+--_step_at_once--> one call for all that follows
                                                        |
                                                        +--_step_by_ops---> lookup, loss, output, update
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dqcore import backends
from dqcore.backends import exporting
from dqcore.codebook import fused
from dqcore.codebook.layer import CodebookLayer
from dqcore.codebook.learning import Initialisation, Restart, pull
from dqcore.codebook.modules import Codebook
from dqcore.errors import InputError
from dqcore.estimators import Cosine, Euclidean, Rotation, StraightThrough
from dqcore.nn.arranged import Arranged
from dqcore.nn.lookup import look_up, loss_of
from dqcore.nn.vectors import Vectors, finite_vectors, marked_vectors, project
from dqcore.ops import Lookup
from dqcore.ops.lookup_step import LookupStep
from dqcore.ops.registry import in_backward, is_traced
from dqcore.quantizer.recompute import FirstPasses, substitute

__all__ = ["LookupLayer"]


class LookupLayer(CodebookLayer):
    """Projects vectors, looks them up, learns from them once, whatever repeats a pass, and projects their codes back.

    Args:
        codebook: The codes and their statistics.
        initialisation: How it starts.
        restart: How its unused codes are revived; None for not at all.
        dim: Channels of the maps; where the codes have another dimension, projections lead there and back.
        commitment: Weight of the commitment term.
        metric: How vectors are compared with codes.
        estimator: How the gradient passes the lookup.
        nonfinite: What happens to bad vectors, see :class:`dqcore.DynamicQuantizer`.
        eval_loss: Whether there is a loss in evaluation.

    Attributes:
        portable: Whether to compute with PyTorch's own operations, so that another runtime can run an exported graph.
            ONNX and ``torch.jit.trace`` do so by themselves.
    """

    def __init__(
        self,
        codebook: Codebook,
        initialisation: Initialisation,
        restart: Restart | None,
        *,
        dim: int,
        commitment: float,
        metric: Euclidean | Cosine,
        estimator: StraightThrough | Rotation,
        nonfinite: Literal["raise", "mask"] | None,
        eval_loss: bool,
    ) -> None:
        super().__init__(codebook, initialisation, restart)
        self.dim, self.commitment, self.metric, self.estimator = dim, commitment, metric, estimator
        self.nonfinite, self.eval_loss, self.portable = nonfinite, eval_loss, False
        self._first_passes = FirstPasses()
        self._projected = codebook.dim != dim
        self.project_in = nn.Conv2d(dim, codebook.dim, 1) if self._projected else nn.Identity()
        self.project_out = nn.Conv2d(codebook.dim, dim, 1) if self._projected else nn.Identity()
        #: Neither metric nor estimator does anything to vectors and gradients; and, further, there is no projection.
        self._direct = type(metric) is Euclidean and type(estimator) is StraightThrough
        self._only_looks_up = self._direct and not self._projected

    @property
    def _exported(self) -> bool:
        """Whether the graph that is made is for other runtimes. ``torch.export`` by itself keeps our ops."""
        if torch.compiler.is_compiling():
            return self.portable or (exporting() and torch.onnx.is_in_onnx_export())
        return self.portable or torch._C._is_tracing()

    @property
    def _torch_only(self) -> bool:
        """Whether to compute with PyTorch's own operations: ``torch.func`` transforms do not know our ops."""
        return self._exported or torch._C._are_functorch_transforms_active()

    def _raises_if_bad(self, given: Arranged) -> bool:
        """Whether a bad vector, one with a NaN or an infinity, is an error."""
        default = "raise" if given.maps[-1].device.type == "cpu" else "mask"
        return (self.nonfinite or default) == "raise" and not is_traced()

    def _lookup_skips_bad(self, given: Arranged) -> bool:
        """Whether the lookup itself gives bad vectors code -1, so that they need not be found before."""
        quiet = self._direct and self._ready and not self._exported and not self._raises_if_bad(given)
        return quiet and (self._only_looks_up or (backends.route(given.maps[-1].device) == "gpu" and not is_traced()))

    def _vectors(self, given: Arranged) -> Vectors:
        """What is looked up of an input."""
        if self._lookup_skips_bad(given):
            maps = list(given.maps) if self._only_looks_up else marked_vectors(given.maps, self.project_in)
            return Vectors(maps, None, maps[-1].dtype, marked=True)
        return finite_vectors(given.maps, given.selected, self.project_in, self.metric, self._raises_if_bad(given))

    def _codes_for(self, given: Arranged, vectors: Vectors, learn: bool) -> tuple[Tensor, bool, bool]:
        """The codes that a pass looks up in, started if need be.

        Args:
            given: The input.
            vectors: What is looked up of it.
            learn: Whether the codebook may learn from it.

        Returns:
            The codes ``(K, D)``, not scaled; whether the pass needs the statistics of its codes; whether it learns from
            them. A pass that a checkpoint computes again has the codes and the graph of the first one, and learns not.

        Raises:
            InputError: The codebook waits for its first batch, or is to learn within a ``torch.func`` transform.
        """
        learn = learn and self.training
        if learn and not self.frozen and torch._C._are_functorch_transforms_active():  # its tensors must not outlive it
            raise InputError("learn: no codebook learns within torch.func transforms; call eval(), or pass learn=False")
        if in_backward() and (past := self._first_passes.find(vectors.maps)) is not None:
            return substitute(self.codebook.codes, past.codes), past.learn and not self.frozen, False
        if self._apart and learn:
            self._agree()
        if not self._ready:
            self._initialise(vectors.maps, given.selected, vectors.bad_cells, learn=learn)
        learn, codes = learn and not self.frozen, self.codebook.codes
        if self.training:
            self._first_passes.keep(vectors.maps, codes, learn)
        if codes.requires_grad and self.restart is not None:
            codes = codes.clone()  # a restart writes to the codes before the backward pass
        return codes, learn, learn

    def _step_at_once(self, given: Arranged, vectors: Vectors) -> LookupStep | None:
        """Lookup, loss and update by one call, which costs the host less; None where something comes between them."""
        if vectors.bad_cells is not None or given.mask is not None or self._exported:
            return None
        if not (self._only_looks_up and self._learns_at_once):
            return None
        return fused.step(self.codebook, self.restart, vectors.maps, given.grain, self.commitment)

    def _step_by_ops(
        self, given: Arranged, vectors: Vectors, codes: Tensor, with_sums: bool, learns: bool
    ) -> LookupStep:
        """Lookup, loss, output and update, one after the other.

        Args:
            given: The input.
            vectors: What is looked up of it.
            codes: ``(K, D)``, scaled as the metric wants.
            with_sums: Whether to take the statistics of the codes.
            learns: Whether to learn from them.
        """
        portable = self._torch_only
        lookup = look_up(vectors.maps, given, codes.detach(), vectors.bad_cells, with_sums=with_sums, portable=portable)
        losses, output = self._losses(lookup, codes), self._output(given, vectors, lookup)
        if learns:  # last, so that a pass that fails has taught nothing
            self._learn(vectors.maps, given.grain, lookup)
        return LookupStep(output, lookup.codes, *losses)

    def _losses(self, lookup: Lookup, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, its commitment part and its codebook part."""
        error, dim = lookup.error, self.codebook.dim
        if not (self.training or self.eval_loss):
            return error.new_zeros(()), error.new_zeros(()), error.new_zeros(())
        loss, commitment, rest = loss_of(lookup, dim, self.commitment, portable=self._torch_only)
        if codes.requires_grad and lookup.statistics is not None:
            rest = rest + pull(self.codebook, codes, lookup)
            loss = commitment + rest
        return loss, commitment, rest

    def _output(self, given: Arranged, vectors: Vectors, lookup: Lookup) -> Tensor:
        """The quantized map ``(B, dim, H, W)`` with the estimator's gradient; vectors without a code are 0."""
        if self._only_looks_up and vectors.bad_cells is None:
            return lookup.quantized
        estimated = self.estimator(vectors.maps, given.selected, lookup)
        quantized = project(self.project_out, estimated.to(vectors.dtype))
        some_lack = vectors.bad_cells is not None or (self._projected and (given.mask is not None or vectors.marked))
        return quantized.masked_fill(lookup.codes[:, None] < 0, 0) if some_lack else quantized
