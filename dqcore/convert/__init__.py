"""To and from the checkpoints that the paper's authors released."""

from dqcore.convert.prior import dqtransformer_from_official
from dqcore.convert.tokenizer import dqvae_from_official, dqvae_to_official, load_official

__all__ = ["dqtransformer_from_official", "dqvae_from_official", "dqvae_to_official", "load_official"]
