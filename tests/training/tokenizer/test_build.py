"""The model that a run begins with."""

import pytest

from dqcore.data.photos import sample_folder
from dqcore.training import TokenizerTraining
from dqcore.training.loop import CHECKPOINT
from dqcore.training.tokenizer.build import new_model


def test_a_resumed_run_needs_no_model_to_start_from(tmp_path):
    """That model may be gone; but a run that was stopped before its first checkpoint starts from it again."""
    about = {"out": tmp_path, "init_from": tmp_path / "gone", "device": "cpu"}
    again = TokenizerTraining.small(sample_folder("heldout"), resume=True, **about).resolved()
    with pytest.raises(FileNotFoundError, match="gone"):
        new_model(again)
    (tmp_path / CHECKPOINT).touch()
    assert new_model(again) is not None
    with pytest.raises(FileNotFoundError, match="gone"):
        new_model(TokenizerTraining.small(sample_folder("heldout"), **about).resolved())
