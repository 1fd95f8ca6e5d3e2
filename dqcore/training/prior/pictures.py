"""What a prior draws while it learns: the same few samples again and again, as far as it has come."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dqcore.models.auto import TOKENIZERS, load_saved
from dqcore.models.priors.base import Prior
from dqcore.ops.unpack_codes import unpack_codes

__all__ = ["draw"]

#: Samples shown.
SAMPLES = 4


@torch.no_grad()
def draw(prior: Prior, tokenizer: Path, seed: int = 0) -> Tensor:
    """Draw samples, decode them and put them side by side. It may draw random numbers of PyTorch's while it loads.

    Args:
        prior: A prior, on any device; of a class-conditional one the classes come in turn.
        tokenizer: Folder of the tokenizer that it belongs to.
        seed: Decides the samples, together with the prior's weights.

    Returns:
        ``(3, S, 4 * S)`` in [-1, 1], on the CPU.
    """
    count = prior.config.num_classes
    sequence = prior.sample(SAMPLES, torch.arange(SAMPLES) % count if count else None, seed=seed)
    decoder = load_saved(tokenizer, TOKENIZERS).to(sequence.device)
    codes, grain = unpack_codes(sequence)
    images: Tensor = decoder.decode(codes, grain)
    return torch.cat(list(images.float().clamp(-1, 1).cpu()), 2)
