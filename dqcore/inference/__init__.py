"""Trained models put to use: load, encode, reconstruct, sample, evaluate; a file for each verb."""

from dqcore.inference.measure import Evaluation, evaluate_tokenizer

__all__ = ["Evaluation", "evaluate_tokenizer"]
