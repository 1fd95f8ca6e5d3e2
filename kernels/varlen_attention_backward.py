"""Packed attention, backward: one kernel for the queries' gradient and one for the keys' and values', without atomics.

Each computes the attention weights again. A single kernel would do 5/7 of their work, but many of its programs would
add to the same rows of ``dq`` at once, in an order that changes from run to run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.kernels.setting import Setting
from dqcore.kernels.varlen_attention_dkv import varlen_attention_dkv
from dqcore.kernels.varlen_attention_dq import varlen_attention_dq


def varlen_attention_bwd(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    setting: Setting,
    grads: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``q (T, H, d)``, ``k`` and ``v (S, Hkv, d)``; written into ``grads``, if these are given."""
    if grads is None:
        q_like, k_like, v_like = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        grads = (q_like, k_like, v_like)
    sums = varlen_attention_dq(grad, q, k, v, out, lse, setting, grads[0])
    varlen_attention_dkv(grad, q, k, v, sums, setting, grads[1:])
    return grads
