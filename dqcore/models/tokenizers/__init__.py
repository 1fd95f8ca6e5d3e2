"""Tokenizers, the first stage: images to codes and back."""

from dqcore.models.tokenizers.base import Encoding, TokenizerOutput
from dqcore.models.tokenizers.choices import Choices
from dqcore.models.tokenizers.dqvae import DQVAE, DQVAEConfig
from dqcore.models.tokenizers.vqgan import VQGAN, VQGANConfig

__all__ = ["DQVAE", "VQGAN", "Choices", "DQVAEConfig", "Encoding", "TokenizerOutput", "VQGANConfig"]
