"""The second stage: a prior's options, codes, step and run."""

from dqcore.training.prior.options import PriorTraining
from dqcore.training.prior.run import PriorRun, train_prior

__all__ = ["PriorRun", "PriorTraining", "train_prior"]
