"""Trained models in use: a file a verb (encode, reconstruct, sample, evaluate), above ``load`` and ``measure``."""

from dqcore.inference.measure import Evaluation, evaluate_tokenizer

__all__ = ["Evaluation", "evaluate_tokenizer"]
