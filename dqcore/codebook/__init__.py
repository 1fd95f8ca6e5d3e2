"""How a codebook starts, learns and revives its unused codes: small strategies for :class:`dqcore.DynamicQuantizer`.

- ``strategies``: the classes that a user names: :class:`EMA`, :class:`Gradient`, :class:`Uniform`, :class:`KMeans`,
  :class:`RandomRestart`
- ``modules``: what holds the codes and their statistics
- ``draw``: vectors drawn at random, to start from or to revive codes with
- ``learning``: what happens at each training batch, on every process; ``fused``: the same in one launch
- ``gathering``: batches that wait for an update by several of them
- ``holder``, ``layer``: a layer that holds a codebook, and above it one that starts it and lets it learn, which is the
  base of the quantizer
"""

from dqcore.codebook.learning import reduce_statistics
from dqcore.codebook.modules import Codebook, EMACodebook, GradientCodebook
from dqcore.codebook.strategies import EMA, PAPER, Gradient, KMeans, Learning, RandomRestart, Uniform

__all__ = [
    "EMA",
    "PAPER",
    "Codebook",
    "EMACodebook",
    "Gradient",
    "GradientCodebook",
    "KMeans",
    "Learning",
    "RandomRestart",
    "Uniform",
    "reduce_statistics",
]
