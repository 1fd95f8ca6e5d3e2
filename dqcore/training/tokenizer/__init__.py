"""The first stage: a tokenizer learns to reconstruct images. Begin with ``run.py``."""

from dqcore.training.tokenizer.options import TokenizerTraining
from dqcore.training.tokenizer.run import TokenizerRun, train_tokenizer

__all__ = ["TokenizerRun", "TokenizerTraining", "train_tokenizer"]
