from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dqcore.nn import BudgetLoss, ReleasedBudgetLoss

RECORDED = load_file(Path(__file__).parents[1] / "fixtures" / "budget.safetensors")


@pytest.mark.parametrize(
    ("name", "gate", "ratio", "weight"),
    [
        ("dual_half_lambda10", "dual_gate", 0.5, 10.0),
        ("dual_03_lambda1", "dual_gate", 0.3, 1.0),
        ("triple_fine03_median03_lambda1", "triple_gate", (0.3, 0.3), 1.0),
    ],
)
def test_released_matches_recording(name, gate, ratio, weight):
    loss = ReleasedBudgetLoss(ratio, weight)(RECORDED[f"budget.{gate}"])
    torch.testing.assert_close(loss, RECORDED[f"budget.{name}"][0], rtol=1e-5, atol=1e-8)


def test_weight_is_applied_once():
    gate = RECORDED["budget.dual_gate"]
    fine = gate[:, 1].mean()
    torch.testing.assert_close(BudgetLoss(0.3, 10.0)(gate), 10 * (fine - 0.3) ** 2)
    torch.testing.assert_close(ReleasedBudgetLoss(0.3, 10.0)(gate), 20 * (fine - 0.3) ** 2)


def test_every_share_is_weighted():
    gate = RECORDED["budget.triple_gate"]
    _, median, fine = gate.mean((0, 2, 3))
    ours = 10 * ((median - 0.2) ** 2 + (fine - 0.6) ** 2)
    released = (median - 0.2) ** 2 + 10 * (fine - 0.6) ** 2
    torch.testing.assert_close(BudgetLoss((0.2, 0.6), 10.0)(gate), ours)
    torch.testing.assert_close(ReleasedBudgetLoss((0.2, 0.6), 10.0)(gate), released)


def test_gradient_pulls_to_the_target():
    logits = torch.zeros(3, 2, 4, 4, requires_grad=True)
    BudgetLoss(0.7)(logits.softmax(1)).backward()
    assert (logits.grad[:, 1] < 0).all()
    assert (logits.grad[:, 0] > 0).all()


def test_invalid():
    with pytest.raises(ValueError, match="gate: expected"):
        BudgetLoss(0.5)(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="ratio: expected"):
        BudgetLoss((0.6, 0.6))
