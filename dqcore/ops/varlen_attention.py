"""``varlen_attention``: attention over sequences of any lengths packed end to end, ``softmax(q k^T scale + mask) v``.

Dimensions: ``T`` packed query rows, ``S`` packed key rows, ``H`` query heads, ``Hkv`` key heads, ``d`` channels a head.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.kernels.setting import Setting
from dqcore.ops.checks import check_same_device, check_tensor
from dqcore.ops.dropout_mask import draw_seed, keep_of, kept
from dqcore.ops.registry import Implementation, register
from dqcore.ops.sequences import check_seqlens, check_window, scale_of, sequences, visible_keys

__all__ = ["Precision", "varlen_attention", "varlen_attention_reference"]

Grads = tuple[Tensor, Tensor, Tensor]
Precision = Literal["ieee", "tf32x3", "tf32"]
MAX_HEAD_DIM = 256


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
    precision: Precision = "ieee",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention within each packed sequence, ``o_i = sum_j m_ij softmax_j(scale q_i . k_j) v_j / keep``.

    Query i of a sequence of ``n`` queries and ``m`` keys stands at key ``p = i + m - n``: the last query at the last
    key. It sees key j if ``p - left <= j <= p + right``, or if j lies in the sequence's prefix.

    Args:
        q: Queries ``(T, H, d)``, d up to 256; float16, bfloat16, float32 or float64; any strides (a last dimension that
            is not contiguous is copied).
        k: Keys ``(S, Hkv, d)``; Hkv divides H, and head h reads key head ``h // (H / Hkv)``.
        v: Values, as ``k``.
        cu_seqlens_q: Sequence b is rows ``cu_seqlens_q[b]`` to ``cu_seqlens_q[b + 1]``; ``(B + 1,)`` int32 from 0.
            Sequences may be empty, and rows may be left over at the end.
        cu_seqlens_k: The same for keys and values; by default the queries'.
        max_seqlen_q: Not needed; where given, checked on the CPU to be no less than any length.
        max_seqlen_k: As ``max_seqlen_q``.
        dropout_p: Probability that a weight is dropped, rounded to a multiple of 1/256; survivors are divided by the
            exact share kept.
        softmax_scale: By default ``d ** -0.5``.
        causal: Sees no key after its own: the same as ``right = 0``.
        window_size: ``(left, right)``, how many keys before and after its own a query sees; -1 for all.
        prefix_lengths: ``(B,)`` int32: the first so many keys of sequence b are seen by all its queries.
        return_lse: Also return the log of the sum of exponentials.
        dropout_seed: ``(2,)`` int64 on the inputs' device; by default drawn from that device's default generator.
            :func:`dqcore.ops.dropout_mask` of the same seed is the mask.
        precision: How a GPU multiplies float32, which is all it concerns: ``"ieee"`` in full, without tensor cores;
            ``"tf32x3"`` as three TF32 products, about as exact; ``"tf32"`` as one, relative errors up to 1e-3.

    Returns:
        ``(T, H, d)`` in ``q``'s dtype; with ``return_lse`` also ``(H, T)`` float32, natural logarithm. A query that
        sees no key, and a row beyond the last sequence, is 0, with lse -inf.

    Raises:
        TypeError: A tensor has the wrong type or dtype.
        ValueError: Shapes, devices or values do not fit. Values of tensors are looked at on the CPU only.

    Gradient: of the first result to ``q``, ``k`` and ``v``, once; not of the lse. Deterministic, without atomics; a
    sequence's results do not depend on the others, except that dropout counts rows over the whole batch.
    Cost: work grows with the scores that are seen; memory with T, never with T x S (on the CPU with dropout: with the
    longest sequence's scores).
    """
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    _check_heads(q, k, v)
    check_seqlens("cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q)
    check_seqlens("cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k)
    check_same_device(q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    batch = cu_seqlens_q.shape[0] - 1
    if cu_seqlens_k.shape[0] != batch + 1:
        raise InputError(f"cu_seqlens_k: expected {batch} sequences as in cu_seqlens_q, got {len(cu_seqlens_k) - 1}")
    if precision not in get_args(Precision):
        raise InputError(f"precision: expected 'ieee', 'tf32x3' or 'tf32', got {precision!r}")
    if prefix_lengths is not None:
        check_tensor("prefix_lengths", prefix_lengths, dim=1, dtypes=(torch.int32,))
        check_same_device(q=q, prefix_lengths=prefix_lengths)
        if prefix_lengths.shape[0] != batch:
            raise InputError(f"prefix_lengths: expected {batch}, one for each sequence, got {len(prefix_lengths)}")
    left, right = check_window(window_size, causal)
    keep = keep_of(dropout_p)
    seed = _check_seed(dropout_seed, q) if keep < 256 else None
    scale = scale_of(softmax_scale, q.shape[2])
    q, k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (q, k, v))
    out, lse = torch.ops.dqcore.varlen_attention(
        q, k, v, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed, left, right, scale, keep, precision
    )
    return (out, lse) if return_lse else out


def varlen_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    prefix_lengths: Tensor | None,
    seed: Tensor | None,
    left: int,
    right: int,
    scale: float,
    keep: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """The specification: one sequence at a time, all its scores at once, in float32 or float64."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=wide, device=q.device)
    for rows, keys, prefix in sequences(cu_seqlens_q, cu_seqlens_k, prefix_lengths):
        seen = visible_keys(_size(rows), _size(keys), prefix, left, right, q.device)
        scores = _scores(q[rows], k[keys], seen, scale)
        lse[:, rows] = scores.logsumexp(2)
        weights = _weights(scores, lse[:, rows])
        if seed is not None:
            weights = weights * _survivors(seed, q, rows, keys, keep)
        out[rows] = torch.einsum("hij,jhd->ihd", weights, _per_head(v[keys], q)).to(q.dtype)
    return out, lse


def varlen_attention_backward_reference(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    prefix_lengths: Tensor | None,
    seed: Tensor | None,
    left: int,
    right: int,
    scale: float,
    keep: int,
    precision: str,
) -> Grads:
    """Gradients of ``q``, ``k`` and ``v``: ``ds = p (dp - sum_d(do o))`` where p are the weights before dropout."""
    grads = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
    for rows, keys, prefix in sequences(cu_seqlens_q, cu_seqlens_k, prefix_lengths):
        seen = visible_keys(_size(rows), _size(keys), prefix, left, right, q.device)
        weights = _weights(_scores(q[rows], k[keys], seen, scale), lse[:, rows])
        survivors = weights.new_ones(()) if seed is None else _survivors(seed, q, rows, keys, keep)
        grad_out = grad[rows].to(lse.dtype)
        delta = (grad_out * out[rows]).sum(2).T[:, :, None]
        grad_weights = torch.einsum("ihd,jhd->hij", grad_out, _per_head(v[keys], q)) * survivors
        grad_scores = weights * (grad_weights - delta) * scale
        grads[0][rows] = torch.einsum("hij,jhd->ihd", grad_scores, _per_head(k[keys], q)).to(q.dtype)
        grad_k = torch.einsum("hij,ihd->jhd", grad_scores, q[rows].to(lse.dtype))
        grad_v = torch.einsum("hij,ihd->jhd", weights * survivors, grad_out)
        for index, (total, x) in enumerate(((grad_k, k), (grad_v, v)), start=1):
            grads[index][keys] = total.unflatten(1, (x.shape[1], -1)).sum(2).to(x.dtype)
    return grads[0], grads[1], grads[2]


def _size(some: slice) -> int:
    return some.stop - some.start


def _per_head(x: Tensor, q: Tensor) -> Tensor:
    """``(n, Hkv, d)`` to ``(n, H, d)``, in the dtype of the scores."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).repeat_interleave(q.shape[1] // x.shape[1], 1)


def _scores(q: Tensor, k: Tensor, seen: Tensor, scale: float) -> Tensor:
    """``(H, n, m)``, -inf where a key is not seen."""
    product = torch.einsum("ihd,jhd->hij", _per_head(q, q), _per_head(k, q))
    return (product * scale).masked_fill(~seen, -torch.inf)


def _weights(scores: Tensor, lse: Tensor) -> Tensor:
    """``exp(scores - lse)``, 0 for a query that sees nothing."""
    return (scores - lse.masked_fill(lse == -torch.inf, torch.inf)[:, :, None]).exp()


def _survivors(seed: Tensor, q: Tensor, rows: slice, keys: slice, keep: int) -> Tensor:
    """1 / share kept where a weight survives, else 0: ``(H, n, m)``."""
    row = torch.arange(rows.start, rows.stop, device=q.device)
    wide = torch.promote_types(q.dtype, torch.float32)
    return kept(seed, q.shape[1], row, _size(keys), keep).to(wide) * (256 / keep)


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
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


def _check_seed(seed: Tensor | None, q: Tensor) -> Tensor:
    if seed is None:
        return draw_seed(q.device)
    check_tensor("dropout_seed", seed, dim=1, dtypes=(torch.int64,))
    check_same_device(q=q, dropout_seed=seed)
    if seed.shape[0] != 2:
        raise InputError(f"dropout_seed: expected two values, (seed, offset), got shape {tuple(seed.shape)}")
    return seed


def _fake(q: Tensor, *args: object) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=wide)


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: object) -> Grads:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _cpu(q: Tensor, k: Tensor, v: Tensor, *setting: Any) -> tuple[Tensor, Tensor]:
    from dqcore.ops.cpu.varlen_attention import varlen_attention_cpu

    return varlen_attention_cpu(q, k, v, Setting(*setting))


def _cuda(q: Tensor, k: Tensor, v: Tensor, *setting: Any) -> tuple[Tensor, Tensor]:
    from dqcore.kernels.varlen_attention import varlen_attention_fwd

    return varlen_attention_fwd(q, k, v, Setting(*setting))


def _backward_cpu(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *setting: Any) -> Grads:
    from dqcore.ops.cpu.varlen_attention import varlen_attention_backward_cpu

    return varlen_attention_backward_cpu(grad, q, k, v, out, lse, Setting(*setting))


def _backward_cuda(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *setting: Any) -> Grads:
    from dqcore.kernels.varlen_attention_backward import varlen_attention_bwd

    return varlen_attention_bwd(grad, q, k, v, out, lse, Setting(*setting))


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed, *ctx.numbers = inputs  # type: ignore[attr-defined]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k, prefix_lengths, seed)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved, numbers = ctx.saved_tensors, ctx.numbers  # type: ignore[attr-defined]
    grad = grad if grad.stride(2) == 1 else grad.contiguous()
    return (*torch.ops.dqcore.varlen_attention_backward(grad, *saved, *numbers), *[None] * 9)


_op = register(
    "varlen_attention",
    varlen_attention_reference,
    fake=_fake,
    cpu=Implementation(_cpu, "torch"),
    cuda=Implementation(_cuda, "triton"),
)
_op.register_autograd(_backward, setup_context=_setup_context)

register(
    "varlen_attention_backward",
    varlen_attention_backward_reference,
    fake=_fake_backward,
    cpu=Implementation(_backward_cpu, "torch"),
    cuda=Implementation(_backward_cuda, "triton"),
)
