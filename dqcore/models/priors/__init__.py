"""Priors, the second stage: which codes follow which."""

from dqcore.models.priors.dq_transformer import DQTransformer, DQTransformerConfig
from dqcore.models.priors.global_local import GlobalLocal, GlobalLocalConfig
from dqcore.models.priors.raster import Raster, RasterConfig, RasterDynamic, RasterDynamicConfig

__all__ = [
    "DQTransformer",
    "DQTransformerConfig",
    "GlobalLocal",
    "GlobalLocalConfig",
    "Raster",
    "RasterConfig",
    "RasterDynamic",
    "RasterDynamicConfig",
]
