"""Models: tokenizers, priors, sampling.

A model's file holds a frozen config dataclass, ``PRESETS`` and the module; those of DQ-VAE are in ``dqvae_config``.
"""

from dqcore.models.tokenizers.base import Encoding, TokenizerOutput
from dqcore.models.tokenizers.dqvae import DQVAE, DQVAEConfig
from dqcore.models.tokenizers.vqgan import VQGAN, VQGANConfig

__all__ = ["DQVAE", "VQGAN", "DQVAEConfig", "Encoding", "TokenizerOutput", "VQGANConfig"]
