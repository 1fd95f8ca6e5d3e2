"""Training of tokenizers and priors, with checkpoints that resume to the same numbers."""

from dqcore.training.loop import NonFiniteLossError
from dqcore.training.prior.run import PriorRun, PriorTraining, train_prior
from dqcore.training.stop import StoppedError
from dqcore.training.tokenizer.recipes import RECIPES, Recipe
from dqcore.training.tokenizer.run import TokenizerRun, TokenizerTraining, train_tokenizer

__all__ = [
    "RECIPES",
    "NonFiniteLossError",
    "PriorRun",
    "PriorTraining",
    "Recipe",
    "StoppedError",
    "TokenizerRun",
    "TokenizerTraining",
    "train_prior",
    "train_tokenizer",
]
