"""The first stage: a tokenizer's options, recipes, step and run."""

from dqcore.training.tokenizer.options import TokenizerTraining
from dqcore.training.tokenizer.run import TokenizerRun, train_tokenizer

__all__ = ["TokenizerRun", "TokenizerTraining", "train_tokenizer"]
