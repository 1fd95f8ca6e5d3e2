"""The second stage: a prior learns the codes of images. Begin with ``run.py``."""

from dqcore.training.prior.options import PriorTraining
from dqcore.training.prior.run import PriorRun, train_prior

__all__ = ["PriorRun", "PriorTraining", "train_prior"]
