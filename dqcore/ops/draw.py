"""``draw``: an index for each row of logits, by a random number that is given.

Gradient: none. Determinism: the same bits in every run, and a row does not depend on the others. Probabilities are
added as whole numbers, exactly in any order; how exponentials and their sum are rounded depends on the device, so that
a GPU may draw another index than a CPU where a random number falls between the two.
Cost: on a GPU one launch, one multiprocessor to a row, which reads the logits once; see ``kernels/draw.py``. Rows of
more than 8192 are read again for each step, from the cache if they fit: 4 times, with ``top_k`` 5 to 10 times more (at
most 16), with ``top_p`` 15 times more.
"""

from __future__ import annotations

from torch import Tensor

from dqcore.ops.reference.draw import draw_reference
from dqcore.ops.registry import Implementation, register

__all__ = ["draw"]


def draw(
    logits: Tensor, numbers: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> Tensor:
    """``min {j : sum_{i <= j} p_i > u sum_i p_i}``, with probabilities rounded down to multiples of ``2**-38``.

    Arguments are not checked: :class:`dqcore.models.sampling.draw.Draw` has checked its settings, and calls this.

    Args:
        logits: ``(S, V)`` floating, -inf where an index may not be drawn; each row has at least one finite value.
        numbers: Random numbers in ``[0, 2**23)``, ``(S,)`` int64; ``u`` is this number over ``2**23``.
        temperature: Divides the logits.
        top_k: Draw from the ``top_k`` largest logits, and from those equal to the last of them; None for all.
        top_p: Draw from the smallest set of most probable indices whose probabilities reach this sum, and from those
            as probable as the last of them; 1 for all.

    Returns:
        ``(S,)`` int64.
    """
    out: Tensor = _op.overload(logits, numbers, temperature, top_k, top_p)
    return out


def _fake(logits: Tensor, numbers: Tensor, *args: object) -> Tensor:
    return numbers.new_empty(len(logits))


def _triton(logits: Tensor, *args: object) -> Tensor:
    from dqcore.kernels.draw import draw_fwd

    return draw_fwd(logits, *args)  # type: ignore[arg-type]


_op = register("draw", draw_reference, fake=_fake, gpu=Implementation(_triton, "triton"))
