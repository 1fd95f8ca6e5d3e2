"""Sampling from DQ-Transformer: cached keys and values against running both transformers over all tokens each step."""

import time

import pytest
import torch

import dqcore
from dqcore.models.cached_steps import CachedSteps
from dqcore.models.dq_transformer import DQTransformer

BATCH = 8
SLOTS = 128


class RecomputedSteps(CachedSteps):
    """Keeps the tokens instead of keys and values, and runs all of them through both transformers at each step."""

    def __init__(self, prior, num_rows):
        super().__init__(prior, num_rows, 1)
        self.inputs, self.next_rows, self.capturable = [], [], False

    def positions(self, contents, rows, grains):
        """Logits after the tokens that come now."""
        steps = torch.full_like(rows, len(self.inputs))
        self.inputs.append(self.prior._embed(contents, rows, grains, steps))
        count, slots = len(self.inputs), len(rows)
        self.ends = torch.arange(0, slots * count + 1, count, dtype=torch.int32, device=rows.device)
        self.states, logits = self.prior._read(torch.stack(self.inputs, 1).flatten(0, 1), self.ends)
        return logits[count - 1 :: count]

    def codes(self, rows):
        """Logits of the codes there."""
        self.next_rows.append(rows.clone())
        count = len(self.inputs)
        logits = self.prior._write(self.states, torch.stack(self.next_rows, 1).flatten(), self.ends)
        return logits[count - 1 :: count, : self.prior.config.codebook_size]


def bench_cached_sampling(benchmark, device):
    """Meant to be 20 times recomputation (13 so far on one core), with the same codes.

    8 x 8 regions, dim 128, 2 + 3 layers, 8 images.
    """
    torch.manual_seed(0)
    prior = DQTransformer.from_preset("dqtransformer-tiny").to(device).eval()
    cached = prior.generate(BATCH, seed=1)  # also warms up
    new_steps, times = prior.new_steps, []
    prior.new_steps = lambda rows, capacity: RecomputedSteps(prior, rows)
    start = time.perf_counter()
    recomputed = prior.generate(BATCH, seed=1)
    times.append(time.perf_counter() - start)
    prior.new_steps = new_steps
    start = time.perf_counter()
    benchmark.pedantic(prior.generate, (BATCH,), {"seed": 1}, rounds=3)
    assert recomputed == cached
    if benchmark.stats:
        benchmark.extra_info["speedup_over_recomputation"] = times[0] / benchmark.stats.stats.median
        benchmark.extra_info["images_per_second"] = BATCH / benchmark.stats.stats.median


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a model this large needs a GPU")
def bench_base_model(benchmark):
    """On an H200 at least 100 images a second: bfloat16, 128 slots, half of the regions fine."""
    torch.manual_seed(0)
    prior = DQTransformer.from_preset("dqtransformer-base").cuda().to(torch.bfloat16).eval()
    grain = torch.arange(256).view(1, 16, 16).repeat(SLOTS, 1, 1).remainder(2).cuda()
    coarse = dqcore.pack_codes(torch.zeros(SLOTS, 32, 32, dtype=torch.int64).cuda(), grain, num_granularities=2)
    fields = [getattr(coarse, name)[coarse.grains == 0] for name in ("codes", "positions", "grains")]
    ends = torch.arange(SLOTS + 1, dtype=torch.int32).cuda() * 128
    given = dqcore.CodeSequence(*fields, ends, (16, 16), 2)  # an untrained model would leave nothing coarse
    options = {"slots": SLOTS, "given": given, "closed": 1}
    benchmark.pedantic(prior.generate, (SLOTS,), options, rounds=3, warmup_rounds=1)
    if benchmark.stats:
        benchmark.extra_info["images_per_second"] = SLOTS / benchmark.stats.stats.median
