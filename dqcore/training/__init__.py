"""Training: recipes, the tokenizer's loop, checkpoints that resume to the same numbers."""

from dqcore.training.prior import PriorRun, PriorTraining, train_prior
from dqcore.training.recipes import RECIPES, Recipe
from dqcore.training.step import NonFiniteLossError
from dqcore.training.tokenizer import TokenizerRun, TokenizerTraining, train_tokenizer

__all__ = [
    "RECIPES",
    "NonFiniteLossError",
    "PriorRun",
    "PriorTraining",
    "Recipe",
    "TokenizerRun",
    "TokenizerTraining",
    "train_prior",
    "train_tokenizer",
]
