"""``dropout_mask``: which attention weights survive, a function of (seed, offset, head, row, column) and nothing else.

Philox-4x32 with 7 rounds under the key ``seed``. Counter ``(4 (c // 64) + (c % 8) // 2, row, head, offset)`` gives the
16 bytes of columns ``c + {0, 1} + 8 {0, ..., 7}`` of one row, c even: what a thread holds of a tensor core's result, so
that a kernel spends one call on 16 weights and moves none of its bits. A weight survives if its byte is less than
``keep``, of 256: the share of survivors is exact, and the same for every tile size, device and batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.errors import InputError
from dqcore.ops.checks import check_tensor

__all__ = ["draw_seed", "dropout_mask", "keep_of"]

ROUNDS = 7
COLUMNS = 64  # columns that four counters cover
WORD = 0xFFFFFFFF


def dropout_mask(seed: Tensor, num_heads: int, num_rows: int, num_columns: int, dropout_p: float) -> Tensor:
    """Which weights :func:`dqcore.ops.varlen_attention` keeps, ``byte(seed, offset, h, r, c) < 256 (1 - p)``.

    Args:
        seed: ``(seed, offset)``, int64, shape ``(2,)``; of the offset the low 32 bits count.
        num_heads: Query heads, H.
        num_rows: Rows of the packed queries, T, counted over the whole batch.
        num_columns: Keys, S, counted within the row's own sequence.
        dropout_p: Probability that a weight is dropped, rounded to a multiple of 1/256.

    Returns:
        ``(H, T, S)`` bool, True where the weight survives.

    Gradient: none. Deterministic, and equal on every device.
    Cost: about 50 integer operations for each 16 weights.
    """
    check_tensor("seed", seed, dim=1, dtypes=(torch.int64,))
    rows = torch.arange(num_rows, device=seed.device)
    return kept(seed, num_heads, rows, num_columns, keep_of(dropout_p))


def keep_of(dropout_p: float) -> int:
    """How many of 256 byte values keep a weight; raises unless that is at least one."""
    keep = round(256 * (1 - dropout_p)) if 0 <= dropout_p <= 1 else 0
    if keep == 0:
        raise InputError(f"dropout_p: expected a probability in [0, 255/256], got {dropout_p}")
    return keep


def draw_seed(device: torch.device) -> Tensor:
    """A fresh ``(seed, offset)`` from the device's default generator, without the host waiting for it."""
    return torch.randint(-(2**63), 2**63 - 1, (2,), device=device)


def kept(seed: Tensor, num_heads: int, rows: Tensor, num_columns: int, keep: int) -> Tensor:
    """:func:`dropout_mask` of some rows: ``(H, len(rows), num_columns)`` bool."""
    blocks = -(-num_columns // COLUMNS)
    counters = torch.arange(4 * blocks, device=seed.device)
    heads = torch.arange(num_heads, device=seed.device)
    words = _philox(
        (counters, rows.to(torch.int64)[:, None], heads[:, None, None], seed[1] & WORD),
        (seed[0] & WORD, (seed[0] >> 32) & WORD),
    )
    shape = (num_heads, len(rows), blocks, 4)
    shifts = torch.arange(0, 32, 8, device=seed.device)
    survives = [((word.expand(num_heads, len(rows), -1)[..., None] >> shifts) & 255) < keep for word in words]
    pairs = torch.stack(survives, dim=-2).view(*shape, 8, 2)  # counter, column // 8, column % 2
    return pairs.transpose(3, 4).reshape(*shape[:2], blocks * COLUMNS)[..., :num_columns]


def _philox(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32 (Salmon et al. 2011); 32-bit words in int64, whose products wrap to the right 64 bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((right >> 32) & WORD) ^ c1 ^ k0, right & WORD, ((left >> 32) & WORD) ^ c3 ^ k1, left & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3
