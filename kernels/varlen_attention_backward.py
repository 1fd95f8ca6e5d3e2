"""Packed attention, backward: one kernel for the queries' gradient and one for the keys' and values', without atomics.

Each computes the attention weights again. A single kernel would do 5/7 of their work, but many of its programs would
add to the same rows of ``dq`` at once, in an order that changes from run to run.
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
    grad_q, sums = varlen_attention_dq(grad, q, k, v, out, lse, setting)
    return grad_q, *varlen_attention_dkv(grad, q, k, v, sums, setting)
