"""What a prior is trained on."""

import pytest
import torch
from PIL import Image
from prior_runs import TINY

import dqcore


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Pictures of two classes, and a tokenizer for them."""
    root = tmp_path_factory.mktemp("prior")
    gen = torch.Generator().manual_seed(0)
    for number in range(24):
        kind = ("dark", "bright")[number % 2]
        values = torch.randint(0, 100, (40, 40, 3), generator=gen) + 150 * (number % 2)
        path = root / "images" / kind / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.to(torch.uint8).numpy()).save(path)
    torch.manual_seed(0)
    tokenizer = dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY)
    tokenizer.save_pretrained(root / "tokenizer")
    return root
