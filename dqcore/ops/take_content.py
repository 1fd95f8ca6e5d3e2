"""``take_content``: the second half of a sampling step's bookkeeping, from logits of codes to the end of the step.

Gradient: none. Determinism: as :mod:`dqcore.ops.draw`.
Cost: on a GPU one launch, which reads the logits once, those of more than 8192 codes as :mod:`dqcore.ops.draw`.
"""

from __future__ import annotations

from torch import Tensor

from dqcore.ops.reference.take_content import take_content_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["take_content"]


def take_content(
    here: Tensor,
    taken: Tensor,
    lengths: Tensor,
    active: Tensor,
    logits: Tensor,
    guidance: float,
    temperature: float,
    top_k: int | None,
    top_p: float,
) -> None:
    """Draw the code at the entry that each slot has just taken; a content that is known stays as it is.

    For :class:`dqcore.models.sampling.walk.TapeWalk`, which made the tensors: they are contiguous and are not checked.

    Args:
        here: The token at which each slot stands, ``(copies, S, 1, W)`` int64. **Written to**: its content.
        taken: Contents at the entries taken so far, -1 elsewhere, ``(S, L)`` int64. **Written to.**
        lengths: Tokens that each row has read, ``(copies * S,)`` int32. **Written to**: 1 is added where ``active``.
        active: Rows that took part in this step, ``(copies * S,)`` bool. **Written to**: those that go on.
        logits: ``(copies * S, K)`` floating; the last stride is 1.
        guidance: ``s`` in ``second + s (first - second)``, of the two copies' logits; without effect for one copy.
        temperature: As in :func:`dqcore.ops.draw.draw`, as are the next two.
        top_k: The same.
        top_p: The same.
    """
    _op.overload(here, taken, lengths, active, logits, guidance, temperature, top_k, top_p)


def _fake(*args: object) -> None:
    return None


def _triton(here: Tensor, taken: Tensor, lengths: Tensor, active: Tensor, logits: Tensor, *args: object) -> None:
    from dqcore.kernels.take_content import take_content_fwd

    take_content_fwd(here, taken, lengths, active, logits, *args)  # type: ignore[arg-type]


_op = register(
    "take_content",
    take_content_reference,
    fake=_fake,
    gpu=Implementation(_triton, "triton"),
    mutates_args=("here", "taken", "lengths", "active"),
)
