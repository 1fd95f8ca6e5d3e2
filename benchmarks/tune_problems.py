"""What ``tune.py`` launches: the kernel of each table, on data of the sizes that a row is meant for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

When = dict[str, Any]
KEEP = 230  # of 256: dropout 0.1


class Problem(NamedTuple):
    """One launch, the result it must give, and how far off it may be, in relative norm."""

    run: Callable[[], tuple[Tensor, ...]]
    reference: Callable[[], tuple[Tensor, ...]]
    tolerance: float


class Stem(NamedTuple):
    """A table's kernel.

    Attributes:
        module: Name of the file that holds ``CANDIDATES``.
        kernel: Name of the kernel whose registers and loops decide whether a candidate is measured.
        problem: Makes data for the sizes in a row's ``when``, on a device; tiny data, if asked, for a CPU.
        first: The rows that are measured first.
        free: Values of the sizes that a row may leave open. A candidate must compile with each combination of them.
        domain: Values of all sizes. The table must have a row for each combination of them.
    """

    module: str
    kernel: str
    problem: Callable[[When, str, bool], Problem]
    first: list[When]
    free: dict[str, list[Any]]
    domain: dict[str, list[Any]]

    def variants(self, when: When) -> Iterator[When]:
        """A row's ``when``, completed with each combination of the sizes that it leaves open."""
        for values in itertools.product(*self.free.values()):
            yield dict(zip(self.free, values, strict=True)) | when


def distance(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest ``||actual - expected|| / ||expected||`` of the pairs; for indices, the share that differ."""
    found = []
    for a, b in zip(actual, expected, strict=True):
        if b.is_floating_point():
            found.append(float((a.double() - b.double()).norm() / b.double().norm()))
        else:
            found.append(float((a[: len(b)] != b).double().mean()))
    return max(found)


def _nearest_code(when: When, device: str, tiny: bool) -> Problem:
    from dqcore.kernels.nearest_code import nearest_code_fwd
    from dqcore.ops.reference.nearest_code import nearest_code_reference

    dim = when.get("width", 512)
    num, size = (40, 70) if tiny else (32768, 8192)
    x, codebook = torch.randn(num, dim, device=device), torch.randn(size, dim, device=device)
    return Problem(
        lambda: (nearest_code_fwd(x, codebook, "exact"),),
        lambda: (nearest_code_reference(x[:2048], codebook, "exact"),),
        0.0,
    )


def _packed(when: When, device: str, tiny: bool) -> tuple[list[Tensor], Any]:
    """Packed q, k, v and gradient, and the setting that the kernels take."""
    from dqcore.kernels.setting import Setting

    lengths = (
        torch.tensor([5, 9]) if tiny else torch.randint(300, 701, (32,), generator=torch.Generator().manual_seed(0))
    )
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    dtype = torch.float32 if when.get("dtype") == "float32" else torch.bfloat16
    dim, keep = when.get("dim", 64), KEEP if when.get("dropout", 1) else 256
    heads = 2 if tiny else 16
    tensors = torch.randn(int(lengths.sum()), 4, heads, dim, dtype=dtype, device=device).unbind(1)
    seed = torch.tensor([3, 5]).to(device) if keep < 256 else None
    precision = when.get("precision", "tf32x3" if dtype == torch.float32 else "ieee")
    ends = ends.to(device)
    return list(tensors), Setting(ends, ends, None, seed, -1, 0, dim**-0.5, keep, precision)


def _tolerance(tensor: Tensor) -> float:
    return 1e-4 if tensor.dtype == torch.float32 else 2e-2


def _varlen_attention(when: When, device: str, tiny: bool) -> Problem:
    from dqcore.kernels.varlen_attention import varlen_attention_fwd
    from dqcore.ops.reference.varlen_attention import varlen_attention_reference

    (q, k, v, _), setting = _packed(when, device, tiny)
    return Problem(
        lambda: varlen_attention_fwd(q, k, v, setting),
        lambda: varlen_attention_reference(q.double(), k.double(), v.double(), setting),
        _tolerance(q),
    )


def _backward(which: str) -> Callable[[When, str, bool], Problem]:
    def problem(when: When, device: str, tiny: bool) -> Problem:
        from dqcore.kernels.varlen_attention import varlen_attention_fwd
        from dqcore.kernels.varlen_attention_dkv import varlen_attention_dkv
        from dqcore.kernels.varlen_attention_dq import varlen_attention_dq
        from dqcore.ops.reference.varlen_attention import (
            varlen_attention_backward_reference,
            varlen_attention_reference,
        )

        (q, k, v, grad), setting = _packed(when, device, tiny)
        out, lse = varlen_attention_fwd(q, k, v, setting)
        by_query, by_key, by_value = (torch.empty_like(x) for x in (q, k, v))
        sums = varlen_attention_dq(grad, q, k, v, out, lse, setting, by_query)

        def dq() -> tuple[Tensor, ...]:
            varlen_attention_dq(grad, q, k, v, out, lse, setting, by_query)
            return (by_query,)

        def dkv() -> tuple[Tensor, ...]:
            varlen_attention_dkv(grad, q, k, v, sums, setting, (by_key, by_value))
            return by_key, by_value

        def reference() -> tuple[Tensor, ...]:
            wide = [x.double() for x in (q, k, v)]
            exact = varlen_attention_reference(*wide, setting)
            grads = varlen_attention_backward_reference(grad.double(), *wide, *exact, setting)
            return tuple(grads[:1] if which == "dq" else grads[1:])

        return Problem(dq if which == "dq" else dkv, reference, _tolerance(q))

    return problem


def _decode_attention(when: When, device: str, tiny: bool) -> Problem:
    from dqcore.kernels.decode_attention import decode_attention_fwd
    from dqcore.ops.reference.decode_attention import decode_attention_reference

    rows, dim = when.get("rows", 64), when.get("dim", 64)
    new, group = (1, 1) if rows <= 16 else (rows // 16, 16)
    batch, capacity, heads = (2, 40, 16) if tiny else (64, 1024, 16)
    dtype = torch.float32 if when.get("dtype") == "float32" else torch.bfloat16
    q = torch.randn(batch, new, heads, dim, dtype=dtype, device=device)
    k, v = torch.randn(2, batch, new, heads // group, dim, dtype=dtype, device=device)
    caches = torch.randn(2, batch, capacity, heads // group, dim, dtype=dtype, device=device)
    scales: tuple[torch.Tensor, ...] = ()
    if when.get("bits") == 8:
        caches = torch.randint(-127, 128, caches.shape, dtype=torch.int8, device=device)
        scales = torch.rand(2, batch, heads // group, capacity, device=device).mT.unbind()
    elif when.get("bits") == 16:
        caches = caches.to(torch.bfloat16)
    lengths = torch.full((batch,), 20 if tiny else 500, dtype=torch.int32, device=device)
    active = torch.ones(batch, dtype=torch.bool, device=device)
    rest = (lengths, active, dim**-0.5, "ieee", *scales)
    exact = caches.double() if caches.dtype == dtype else caches
    return Problem(
        lambda: (decode_attention_fwd(q, k, v, *caches, *rest),),
        lambda: (decode_attention_reference(q.double(), k.double(), v.double(), *exact, *rest),),
        _tolerance(q),
    )


_HALF = {"dtype": "half", "dim": 64}
_FIRST = [_HALF | {"dim": dim} | dropout for dim in (64, 128) for dropout in ({"dropout": 0}, {})]
_DROPOUT = {"dropout": [0, 1]}
_PRECISION = {"precision": ["ieee", "tf32", "tf32x3"]}
_HEADS: dict[str, list[Any]] = {"dtype": ["half", "float32"], "dim": [16, 64, 65, 128, 129, 256]}
_TRAINED = _HEADS | _DROPOUT | _PRECISION

#: By the name of the table, in the order in which they are measured.
STEMS = {
    "nearest_code": Stem(
        "nearest_code", "_nearest_code_scan_kernel", _nearest_code,
        [{"width": 256}, {"width": 64}], {}, {"width": [16, 64, 65, 512]},
    ),
    "varlen_attention": Stem(
        "varlen_attention", "_varlen_attention_fwd_kernel", _varlen_attention, _FIRST, _DROPOUT, _TRAINED
    ),
    "varlen_attention_dq": Stem(
        "varlen_attention_dq", "_varlen_attention_dq_kernel", _backward("dq"), _FIRST, _DROPOUT, _TRAINED
    ),
    "varlen_attention_dkv": Stem(
        "varlen_attention_dkv", "_varlen_attention_dkv_kernel", _backward("dkv"), _FIRST, _DROPOUT, _TRAINED
    ),
    "decode_attention": Stem(
        "decode_attention", "_decode_attention_fwd_kernel", _decode_attention,
        [_HALF | {"rows": 16}, _HALF | {"rows": 16, "bits": 8}, _HALF | {"dim": 128, "rows": 16}],
        {}, _HEADS | {"rows": [1, 16, 17, 64, 1024], "bits": [8, 16, 32]},
    ),
}  # fmt: skip
