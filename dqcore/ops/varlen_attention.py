"""``varlen_attention``: attention over sequences of any lengths packed end to end, ``softmax(q k^T scale + mask) v``.

Dimensions: ``T`` packed queries, ``S`` packed keys, ``H`` query heads, ``Hkv`` key heads, ``d`` channels a head.

Gradient: of the output to ``q``, ``k`` and ``v``, once; not of the lse. Deterministic, without atomics. A sequence's
results do not depend on the other sequences, except that dropout counts queries over the whole batch.
Cost: the work grows with the number of scores that are seen; memory grows with T, never with T x S (on the CPU with
dropout, with the scores of the longest sequence).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.kernels.setting import Setting
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.cpu.varlen_attention import varlen_attention_backward_cpu, varlen_attention_cpu
from dqcore.ops.dropout_mask import check_seed, draw_seed, keep_of
from dqcore.ops.reference.varlen_attention import varlen_attention_backward_reference, varlen_attention_reference
from dqcore.ops.registry import Implementation, register
from dqcore.ops.sequences import check_prefixes, check_seqlens, check_window, scale_of

__all__ = ["Precision", "varlen_attention"]

Grads = tuple[Tensor, Tensor, Tensor]
Precision = Literal["ieee", "tf32x3", "tf32"]
MAX_HEAD_DIM = 256

#: The fields of :class:`Setting` as the schemas of the registered ops list them.
SETTING = (
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor? prefix_lengths, Tensor? seed, "
    "SymInt left, SymInt right, float scale, SymInt keep, str precision"
)


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_size: tuple[int, int] = (-1, -1),
    *,
    prefix_lengths: Tensor | None = None,
    return_lse: bool = False,
    dropout_seed: Tensor | None = None,
    precision: Precision = "tf32x3",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention within each packed sequence, ``o_i = sum_j m_ij softmax_j(scale q_i . k_j) v_j / keep``.

    Query i of a sequence of ``n`` queries and ``m`` keys stands at key ``p = i + m - n``: the last query at the last
    key. It sees key j if ``p - left <= j <= p + right``, or if j lies in the sequence's prefix.

    Args:
        q: Queries ``(T, H, d)``, d up to 256; float16, bfloat16, float32, float64; channels that lie apart cost a copy.
        k: Keys ``(S, Hkv, d)``; Hkv divides H, and head h reads key head ``h // (H / Hkv)``.
        v: Values, as ``k``.
        cu_seqlens_q: Sequence b is rows ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]`` of ``q``; ``(B + 1,)`` int32
            from 0 on. A sequence may be empty, and rows may be left over after the last one.
        cu_seqlens_k: The same for keys and values; by default ``cu_seqlens_q``.
        max_seqlen_q: Not needed; where given, the CPU checks that no sequence has more queries.
        max_seqlen_k: Not needed; where given, the CPU checks that no sequence has more keys.
        dropout_p: Probability that a weight is dropped, rounded to n/256; the others are divided by the share kept.
        softmax_scale: The factor on scores; by default ``d ** -0.5``.
        causal: A query sees no key after its own, as with ``right = 0``.
        window_size: ``(left, right)``, how many keys before and after its own a query sees; -1 for all.
        prefix_lengths: ``(B,)`` int32, how many first keys of each sequence all its queries see.
        return_lse: Also return the log of the sum of exponentials.
        dropout_seed: ``(2,)`` int64 on the same device, of :func:`dqcore.ops.dropout_mask`; by default drawn anew.
        precision: How a GPU multiplies float32 numbers: ``"tf32x3"``, as three TF32 products or, where that is faster,
            six of bfloat16 parts, which lose less, within the tolerance of float32; ``"ieee"``, in full, without
            tensor cores, which takes twice as long; ``"tf32"``, as one, with relative errors up to 1e-3. By six an
            infinity, or a number beyond 3.39e38, acts as a NaN, and of numbers below 1e-30 the last digits may be lost.

    Returns:
        ``(T, H, d)`` in ``q``'s dtype; with ``return_lse`` also ``(H, T)`` float32, natural logarithm. A query that
        sees no key and a row after the last sequence get 0, and lse -inf.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes, devices or values do not fit. Only on the CPU are values of tensors checked.
    """
    cu_seqlens = (cu_seqlens_q, cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k)
    check_heads(q, k, v)
    check_sequences(q, k, cu_seqlens, (max_seqlen_q, max_seqlen_k), prefix_lengths)
    window = check_window(window_size, causal)
    setting = setting_of(q, cu_seqlens, prefix_lengths, dropout_p, dropout_seed, window, softmax_scale, precision)
    out, lse = torch.ops.dqcore.varlen_attention(*(close_channels(x) for x in (q, k, v)), *setting)
    return (out, lse) if return_lse else out


def setting_of(
    q: Tensor,
    cu_seqlens: tuple[Tensor, Tensor],
    prefix_lengths: Tensor | None,
    dropout_p: float,
    dropout_seed: Tensor | None,
    window: tuple[int, int],
    softmax_scale: float | None,
    precision: str,
) -> Setting:
    """The arguments of attention after ``v``, made explicit; checks those that no other function has checked."""
    check_precision(precision)
    keep = keep_of(dropout_p)
    seed, scale = _seed_of(keep, dropout_seed, q), scale_of(softmax_scale, q.shape[2])
    return Setting(*cu_seqlens, prefix_lengths, seed, *window, scale, keep, precision)


def check_precision(precision: str) -> None:
    """Raise unless this is a way to multiply float32 numbers."""
    if precision not in get_args(Precision):
        raise InputError(f"precision: expected 'ieee', 'tf32x3' or 'tf32', got {precision!r}")


def close_channels(x: Tensor) -> Tensor:
    """``x``, or a copy, in which the channels of a head lie side by side, as the kernels need."""
    return x if x.stride(-1) == 1 else x.contiguous()


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless queries, keys and values fit each other."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, tensor, dim=3)
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name}: expected {q.dtype} as q, got {tensor.dtype}")
    if not 1 <= q.shape[2] <= MAX_HEAD_DIM:
        raise InputError(f"q: expected 1 to {MAX_HEAD_DIM} channels a head, got shape {tuple(q.shape)}")
    if k.shape[2] != q.shape[2] or k.shape[1] < 1 or q.shape[1] < 1 or q.shape[1] % k.shape[1]:
        expected = f"{q.shape[2]} channels and a number of heads that divides {q.shape[1]}"
        raise InputError(f"k: expected {expected}, as q has, got shape {tuple(k.shape)}")
    if v.shape != k.shape:
        raise InputError(f"v: expected shape {tuple(k.shape)}, as k, got {tuple(v.shape)}")
    check_same_device(q=q, k=k, v=v)


def check_sequences(
    q: Tensor,
    k: Tensor,
    cu_seqlens: tuple[Tensor, Tensor],
    max_seqlens: tuple[int | None, int | None],
    prefix_lengths: Tensor | None,
) -> None:
    """Raise unless the sequences' ends fit queries and keys."""
    cu_seqlens_q, cu_seqlens_k = cu_seqlens
    check_seqlens("cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlens[0])
    check_seqlens("cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlens[1])
    check_same_device(q=q, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    batch = cu_seqlens_q.shape[0] - 1
    if cu_seqlens_k.shape[0] != batch + 1:
        raise InputError(f"cu_seqlens_k: expected {batch} sequences as in cu_seqlens_q, got {len(cu_seqlens_k) - 1}")
    check_prefixes(prefix_lengths, batch, q=q)


def _seed_of(keep: int, seed: Tensor | None, q: Tensor) -> Tensor | None:
    """The seed of dropout: None where every weight is kept, drawn where none is given."""
    if keep == 256:
        return None
    if seed is None:
        return draw_seed(q.device)
    check_seed("dropout_seed", seed, q=q)
    return seed


def fake(q: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    """Empty results ``(T, H, d)`` and ``(H, T)``."""
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=wide)


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: object) -> Grads:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def forward_gpu(q: Tensor, k: Tensor, v: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """The forward kernel: outputs ``(T, H, d)`` and lse ``(H, T)``."""
    from dqcore.kernels.varlen_attention import varlen_attention_fwd

    return varlen_attention_fwd(q, k, v, setting)


def _triton_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, setting: Setting
) -> Grads:
    from dqcore.kernels.varlen_attention_backward import varlen_attention_bwd

    return varlen_attention_bwd(grad, q, k, v, out, lse, setting)


def _flat(run: Callable[..., Any], num_tensors: int) -> Callable[..., Any]:
    """``run(*tensors, setting)``, called with the flat arguments of a schema: torch's schemas have no named tuples."""
    return lambda *args: run(*args[:num_tensors], Setting(*args[num_tensors:]))


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed, *ctx.numbers = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else a launch would fill zeros for the gradient of lse
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed)


def _backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    saved, numbers = ctx.saved_tensors, ctx.numbers
    return (*torch.ops.dqcore.varlen_attention_backward(close_channels(grad), *saved, *numbers), *[None] * 9)


register(
    "varlen_attention",
    _flat(varlen_attention_reference, 3),
    schema=f"(Tensor q, Tensor k, Tensor v, {SETTING}) -> (Tensor, Tensor)",
    fake=fake,
    cpu=Implementation(_flat(varlen_attention_cpu, 3), "torch"),
    gpu=Implementation(_flat(forward_gpu, 3), "triton"),
).register_autograd(_backward, setup_context=_setup_context)

register(
    "varlen_attention_backward",
    _flat(varlen_attention_backward_reference, 6),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{SETTING}) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    cpu=Implementation(_flat(varlen_attention_backward_cpu, 6), "torch"),
    gpu=Implementation(_flat(_triton_backward, 6), "triton"),
)
