"""What the tests of the stream share: tables, and photos' maps drawn from them."""

import dataclasses

import pytest
import torch

from dqcore.stream import CodeTables


@pytest.fixture
def tables_of():
    """Skewed tables for K codes and G granularities, of random neighbours."""

    def make(codebook_size=50, num_granularities=2, seed=0):
        generator = torch.Generator().manual_seed(seed)
        counts = torch.rand(num_granularities, codebook_size, generator=generator).pow(6).mul(1000).long()
        plain = CodeTables.fit(counts, torch.arange(1, num_granularities + 1))
        shape = (num_granularities, max(1, codebook_size // 8), codebook_size)
        return dataclasses.replace(
            plain,
            classes=torch.arange(codebook_size) % shape[1],
            grain_factors=torch.randint(100, 600, (num_granularities, num_granularities), generator=generator),
            code_factors=torch.randint(1, 600, shape, generator=generator),
        )

    return make


@pytest.fixture
def photo():
    """Random maps of a photo: codes (H, W), grain (h, w)."""

    def make(rows, columns, tables, seed=0):
        generator = torch.Generator().manual_seed(seed)
        finest = tables.num_granularities - 1
        grain = torch.randint(0, finest + 1, (rows, columns), generator=generator)
        codes = torch.empty(rows << finest, columns << finest, dtype=torch.int64)
        for y in range(rows):
            for x in range(columns):
                g = int(grain[y, x])
                drawn = torch.multinomial(tables.codes[g].double(), 4**g, replacement=True, generator=generator)
                block = drawn.view(1 << g, 1 << g).repeat_interleave(1 << finest - g, 0)
                block = block.repeat_interleave(1 << finest - g, 1)
                codes[y << finest : y + 1 << finest, x << finest : x + 1 << finest] = block
        return codes, grain

    return make


@pytest.fixture
def identity():
    """Fingerprint of a model."""
    return "0123456789abcdef" * 4
