"""The ops that csrc computes, called without their public functions: wrong sizes raise and never crash."""

import pytest
import torch

from dqcore import backends

pytestmark = pytest.mark.skipif(backends.extension() is None, reason="dqcore._C was not built")

GRAIN = torch.tensor([[[0, 1], [1, 0]]])
CODES = torch.zeros(1, 4, 4, dtype=torch.int64)
FEATURES = torch.zeros(1, 3, 4, 4)
SEQUENCE = (torch.zeros(10, dtype=torch.int64),) * 3
ENDS = torch.tensor([0, 10], dtype=torch.int32)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("pack_codes", (CODES[:, :2], GRAIN, "row-first", 2, 10)),
        ("pack_codes", (CODES[0], GRAIN, "row-first", 2, 10)),
        ("pack_codes", (CODES.int(), GRAIN, "row-first", 2, 10)),
        ("pack_codes", (CODES, GRAIN.int(), "row-first", 2, 10)),
        ("pack_codes", (CODES, GRAIN, "row-first", 2, 9)),
        ("pack_codes", (CODES, GRAIN, "row-first", 2, 10**6)),
        ("pack_codes", (CODES, GRAIN, "row-first", 9, 10)),
        ("pack_codes", (CODES, GRAIN, "row-first", 0, 10)),
        ("pack_codes", (CODES, GRAIN, "row-first", 60, 10)),
        ("pack_codes", (CODES, GRAIN.expand(3, 2, 2), "row-first", 2, 30)),
        ("pack_codes", (CODES, GRAIN[:, :0], "row-first", 2, 0)),
        ("pack_codes", (CODES, GRAIN, "columns", 2, 10)),
        ("pack_features", (FEATURES[..., :2], GRAIN, "row-first", 2, True, 10)),
        ("pack_features", (FEATURES[0], GRAIN, "row-first", 2, True, 10)),
        ("pack_features", (FEATURES.long(), GRAIN, "row-first", 2, True, 10)),
        ("pack_features", (FEATURES, GRAIN, "row-first", 2, True, 11)),
        ("expand_features", (torch.zeros(9, 3), GRAIN, "row-first", 2, False, False)),
        ("expand_features", (torch.zeros(10), GRAIN, "row-first", 2, False, False)),
        ("expand_features", (torch.zeros(10, 3).long(), GRAIN, "row-first", 2, False, False)),
        ("expand_features", (torch.zeros(10, 3), GRAIN, "row-first", 40, False, False)),
        ("unpack_codes", (SEQUENCE[0], SEQUENCE[1][:3], SEQUENCE[2], ENDS, 2, 2, 2)),
        ("unpack_codes", (SEQUENCE[0], SEQUENCE[1], SEQUENCE[2][:3], ENDS, 2, 2, 2)),
        ("unpack_codes", (SEQUENCE[0], SEQUENCE[1], SEQUENCE[2].int(), ENDS, 2, 2, 2)),
        ("unpack_codes", (*SEQUENCE, ENDS.long(), 2, 2, 2)),
        ("unpack_codes", (*SEQUENCE, ENDS[:0], 2, 2, 2)),
        ("unpack_codes", (*SEQUENCE, ENDS, 2, 2, 60)),
        ("unpack_codes", (*SEQUENCE, ENDS, 0, 2, 2)),
        ("unpack_codes", (*SEQUENCE, ENDS, 2**20, 2**20, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_sizes_raise(name, args):
    with pytest.raises((ValueError, TypeError), match="expected"):
        getattr(torch.ops.dqcore, name)(*args)
