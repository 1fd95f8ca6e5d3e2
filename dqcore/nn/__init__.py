"""Layers: they hold parameters and buffers, and :mod:`dqcore.ops` does the arithmetic."""

from dqcore.nn.budget import BudgetLoss, ReleasedBudgetLoss
from dqcore.nn.decoder import Decoder
from dqcore.nn.encoder import Encoder
from dqcore.nn.gain import GainRouter
from dqcore.nn.router import EntropyRouter, FeatureRouter, RandomRouter
from dqcore.nn.routing import Routing

__all__ = [
    "BudgetLoss",
    "Decoder",
    "Encoder",
    "EntropyRouter",
    "FeatureRouter",
    "GainRouter",
    "RandomRouter",
    "ReleasedBudgetLoss",
    "Routing",
]
