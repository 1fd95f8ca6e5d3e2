"""What is said of a claim: by the whole interval, and nothing with fewer than three seeds."""

import pytest

from dqcore.experiments.claims import Claim, judge, judge_within, together
from dqcore.metrics.intervals import Interval

OPEN = "cannot be said at this scale"


@pytest.mark.parametrize(
    ("mean", "half", "count", "verdict"),
    [
        (1.0, 0.5, 3, "holds"),
        (-1.0, 0.5, 3, "does not hold"),
        (0.2, 0.5, 3, OPEN),
        (1.0, 0.5, 2, OPEN),
        (1, 1, 3, OPEN),
    ],
)
def test_above_a_bound(mean, half, count, verdict):
    assert judge(Interval(mean, half, count)) == verdict


@pytest.mark.parametrize(
    ("mean", "half", "verdict"),
    [(0.5, 0.01, "holds"), (0.6, 0.01, "does not hold"), (0.4, 0.01, "does not hold"), (0.51, 0.02, OPEN)],
)
def test_within_a_range(mean, half, verdict):
    assert judge_within(Interval(mean, half, 3), 0.48, 0.52) == verdict
    assert judge_within(Interval(mean, half, 2), 0.48, 0.52) == OPEN


def test_parts_together():
    assert together(["holds", "holds"]) == "holds"
    assert together(["holds", "does not hold", OPEN]) == "does not hold"
    assert together(["holds", OPEN]) == OPEN
    assert together([]) == OPEN


def test_a_sentence_has_claim_measurement_and_outcome():
    claim = Claim("Codes follow detail", "rank correlation 0.61 ± 0.02", "holds")
    assert claim.sentence() == "Codes follow detail: rank correlation 0.61 ± 0.02; holds."
