"""``Quantized``: what a quantizer returns."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree

from dqcore.drawing import as_html, code_figures, different, line, readable

__all__ = ["Quantized"]


class _Three(NamedTuple):
    map: Tensor
    codes: Tensor
    loss: Tensor


class Quantized(_Three):
    """What a quantizer returns: three values, ``quantized, codes, loss = out``, and the two parts of the loss.

    Attributes:
        map: The quantized features, in the layout, dtype and memory format of the input; a coarse code fills its block;
            gradients pass through it.
        codes: ``(B, *grid)`` int64 code map, -1 where masked or not finite.
        loss: Scalar float32, already weighted: ``commitment_loss + codebook_loss``.
        commitment_loss: Scalar, ``beta`` times the mean squared error; its gradient goes to the encoder.
        codebook_loss: Scalar, the mean squared error; its gradient goes to a ``Gradient()`` codebook, if there is one.

    The two parts are attributes of this object and not fields of the tuple. What builds the tuple anew from its three
    fields, as ``torch.utils._pytree.tree_map`` does, and PyTorch where a layer has a ``register_full_backward_hook``,
    leaves them None; ``_replace`` keeps them, unless ``loss`` is new.
    """

    commitment_loss: Tensor | None = None
    codebook_loss: Tensor | None = None

    def __new__(
        cls,
        map: Tensor,
        codes: Tensor,
        loss: Tensor,
        commitment_loss: Tensor | None = None,
        codebook_loss: Tensor | None = None,
    ) -> Quantized:
        """Three fields, and the parts of the loss beside them."""
        self = super().__new__(cls, map, codes, loss)
        self.commitment_loss, self.codebook_loss = commitment_loss, codebook_loss
        return self

    def _replace(self, **changes: Any) -> Quantized:
        """This object with other fields; another loss has no known parts."""
        parts = () if "loss" in changes else (self.commitment_loss, self.codebook_loss)
        return Quantized(*super()._replace(**changes), *parts)

    def __repr__(self) -> str:
        return line("Quantized", map=self.map, codes=different(self.codes), loss=self.loss)

    def _repr_html_(self) -> str | None:
        codes = readable(self.codes)
        if codes is None or codes.ndim not in (2, 3) or codes.size == 0:
            return None
        return as_html(repr(self), code_figures(codes if codes.ndim == 3 else codes[:, None]))


#: By this name torch.export.save writes what an exported layer returns; who loads the program imports dqcore before.
_pytree._register_namedtuple(Quantized, serialized_type_name="dqcore.Quantized")
