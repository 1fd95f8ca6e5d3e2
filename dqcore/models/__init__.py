"""Models: a frozen config dataclass, ``PRESETS`` and the module, one model a file."""

from dqcore.models.dqvae import DQVAE, DQVAEConfig
from dqcore.models.tokenizer import Encoding, TokenizerOutput
from dqcore.models.vqgan import VQGAN, VQGANConfig

__all__ = ["DQVAE", "VQGAN", "DQVAEConfig", "Encoding", "TokenizerOutput", "VQGANConfig"]
