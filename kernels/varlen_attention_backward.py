"""Packed attention, backward: two kernels without atomics, each of which computes the weights again.

One for the queries' gradient, one for the keys' and values'. The work of a fused kernel is 5/7 of theirs, but it would
add to ``dq`` from many programs at once, in an order that changes from run to run.
"""

from __future__ import annotations

from torch import Tensor

from dqcore.kernels.setting import Setting
from dqcore.kernels.varlen_attention_dkv import varlen_attention_dkv
from dqcore.kernels.varlen_attention_dq import varlen_attention_dq


def varlen_attention_bwd(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, setting: Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``q (T, H, d)``, ``k`` and ``v (S, Hkv, d)``."""
    grad_q, delta = varlen_attention_dq(grad, q, k, v, out, lse, setting)
    return grad_q, *varlen_attention_dkv(grad, q, k, v, lse, delta, setting)
