"""Sampling from DQ-Transformer: cached keys and values against running both transformers over all tokens each step."""

import functools
from unittest import mock

import torch
from rows import hold
from timing import finished_time

import dqcore
from dqcore.models.priors.dq_transformer import DQTransformer
from dqcore.models.sampling.sampler import Sampler
from dqcore.models.sampling.steps import CachedSteps

BATCH = 8
SLOTS = 128
IMAGES = {"auto": 120, "int8": 180}  # a second, of the base model on an H100, by the cache


class RecomputedSteps(CachedSteps):
    """Keeps the tokens instead of keys and values, and runs all of them through both transformers at each step."""

    def __init__(self, prior, num_rows):
        super().__init__(prior, num_rows, 1)
        self.inputs, self.next_rows, self.capturable = [], [], False

    def positions(self, contents, rows, grains):
        """Logits after the tokens that come now."""
        steps = torch.full_like(rows, len(self.inputs))
        self.inputs.append(self.prior.embed(contents, rows, grains, steps))
        count, slots = len(self.inputs), len(rows)
        self.ends = torch.arange(0, slots * count + 1, count, dtype=torch.int32, device=rows.device)
        self.states, logits = self.prior.predict_positions(torch.stack(self.inputs, 1).flatten(0, 1), self.ends)
        return logits[count - 1 :: count]

    def codes(self, rows):
        """Logits of the codes there."""
        self.next_rows.append(rows.clone())
        count = len(self.inputs)
        logits = self.prior.predict_contents(self.states, torch.stack(self.next_rows, 1).flatten(), self.ends)
        return logits[count - 1 :: count, : self.prior.config.codebook_size]


def bench_cached_sampling(benchmark, device):
    """Meant to be 20 times recomputation, with the same codes.

    8 x 8 regions, dim 128, 2 + 3 layers, 8 images.
    """
    torch.manual_seed(0)
    prior = DQTransformer.from_preset("dqtransformer-tiny").to(device).eval()
    cached = prior.generate(BATCH, seed=1)  # also warms up
    new_steps, times = prior.new_steps, []
    prior.new_steps = lambda rows, capacity, kind: RecomputedSteps(prior, rows)
    start = finished_time()
    recomputed = prior.generate(BATCH, seed=1)
    times.append(finished_time() - start)
    prior.new_steps = new_steps
    benchmark.pedantic(prior.generate, (BATCH,), {"seed": 1}, rounds=3)
    assert recomputed == cached
    if benchmark.stats:
        benchmark.extra_info["speedup_over_recomputation"] = times[0] / benchmark.stats.stats.median
        benchmark.extra_info["images_per_second"] = BATCH / benchmark.stats.stats.median
        benchmark.extra_info["threads"] = torch.get_num_threads()
        hold(benchmark, at_least={"speedup_over_recomputation": 20})


@functools.cache
def large():
    """The base model in bfloat16 on a GPU, with its slots; elsewhere a small one, so that what runs there runs here."""
    torch.manual_seed(0)
    if torch.cuda.is_available():
        return DQTransformer.from_preset("dqtransformer-base").cuda().to(torch.bfloat16).eval(), SLOTS
    return DQTransformer.from_preset("dqtransformer-tiny", region_grid=(4, 4)).eval(), 4


def half_coarse(prior, slots):
    """Coarse codes of every other region: an untrained model would leave hardly any coarse."""
    height, width = prior.config.region_grid
    grain = torch.arange(height * width).view(1, height, width).repeat(slots, 1, 1).remainder(2)
    codes = torch.randint(0, prior.config.codebook_size, (slots, height, width))
    codes = codes.repeat_interleave(2, 1).repeat_interleave(2, 2)
    whole = dqcore.pack_codes(codes, grain, num_granularities=2)
    fields = [getattr(whole, name)[whole.grains == 0] for name in ("codes", "positions", "grains")]
    ends = torch.arange(slots + 1, dtype=torch.int32) * (height * width // 2)
    return dqcore.CodeSequence(*fields, ends, (height, width), 2).to(prior.step_embedding.device)


@torch.no_grad()
def check_samples(prior, given):
    """Samples cover each region once and keep what was given; the cache agrees with the full pass on their codes."""
    kept = []
    new_steps = prior.new_steps
    prior.new_steps = lambda *sizes: kept.append(KeptLogits(prior, *sizes)) or kept[0]
    samples = prior.generate(len(given), given=given, closed=1, top_k=None, seed=3)
    prior.new_steps = new_steps
    _, grain = dqcore.unpack_codes(samples)
    assert torch.equal(grain.flatten(1).sum(1).cpu(), torch.full((len(given),), grain[0].numel() // 2))
    assert torch.equal(samples.codes[samples.grains == 0], given.codes)
    full = prior(samples).content_logits.view(len(given), -1, prior.config.codebook_size + 3)
    cached = torch.stack(kept[0].logits[: full.shape[1] - 1], 1)[: len(given)]
    error = (cached - full[:, :-1, : cached.shape[2]]).float().abs().amax()
    assert float(error) < (0.1 if cached.dtype == torch.bfloat16 else 1e-4), "cached logits against the full pass"
    assert prior.generate(len(given), given=given, closed=1, top_k=None, seed=3) == samples, "replayed against eager"


class KeptLogits(CachedSteps):
    """Keeps the codes' logits, step by step."""

    def __init__(self, *args):
        super().__init__(*args)
        self.logits, self.capturable = [], False

    def codes(self, rows):
        """Logits of the codes there."""
        self.logits.append(super().codes(rows))
        return self.logits[-1]


def seconds_of_recomputation(prior, slots, tokens):
    """All steps of ``slots`` samples, from five of them by Simpson's rule: their cost is a parabola in the tokens."""
    places = [1 + round(quarter * (tokens - 1) / 4) for quarter in range(5)]
    device = prior.step_embedding.device
    zeros = torch.zeros(slots, dtype=torch.int64, device=device)
    seconds = []
    with torch.inference_mode():
        for count in places:
            times = []
            for _ in range(3):
                steps = RecomputedSteps(prior, slots)
                steps.inputs = [prior.embed(zeros, zeros, zeros, zeros)] * (count - 1)
                steps.next_rows = [zeros] * (count - 1)
                start = finished_time()
                steps.positions(zeros, zeros, zeros)
                steps.codes(zeros)
                times.append(finished_time() - start)
            seconds.append(min(times))
    weights = (1, 4, 2, 4, 1)
    return tokens / 12 * sum(weight * time for weight, time in zip(weights, seconds, strict=True))


def bench_base_model(benchmark):
    """On a GPU meant to be 120 images a second: bfloat16, 128 slots, half the regions fine.

    Recomputation runs both transformers over all tokens so far at each step, packed and with the same kernels.
    """
    prior, slots = large()
    check_samples(prior, half_coarse(prior, 2))
    given = half_coarse(prior, slots)
    options = {"slots": slots, "given": given, "closed": 1}
    rounds = 3 if torch.cuda.is_available() else 1
    samples = benchmark.pedantic(prior.generate, (slots,), options, rounds=rounds, warmup_rounds=1)
    tokens = int(samples.lengths[0]) + 3
    recomputed = seconds_of_recomputation(prior, slots, tokens)
    if benchmark.stats:
        median = benchmark.stats.stats.median
        benchmark.extra_info |= {
            "images_per_second": slots / median,
            "seconds_a_step": median / tokens,
            "speedup_over_recomputation": recomputed / median,
            "slots": slots,
            "tokens": tokens,
        }
        if torch.cuda.is_available():
            hold(benchmark, at_least={"images_per_second": IMAGES["auto"]})


def bench_cache_of_integers(benchmark):
    """The same with keys and values in 8 bits: meant to give 180 images a second on a GPU where 16 bits give 120."""
    prior, slots = large()
    options = {"slots": slots, "given": half_coarse(prior, slots), "closed": 1}
    rounds = 3 if torch.cuda.is_available() else 1
    samples = benchmark.pedantic(prior.generate, (slots,), options | {"cache": "int8"}, rounds=rounds, warmup_rounds=1)
    assert prior.generate(slots, cache="int8", **options) == samples
    if benchmark.stats:
        median = benchmark.stats.stats.median
        benchmark.extra_info |= {"images_per_second": slots / median, "slots": slots}
        benchmark.extra_info["seconds_a_step"] = median / (int(samples.lengths[0]) + 3)
        if torch.cuda.is_available():
            hold(benchmark, at_least={"images_per_second": IMAGES["int8"]})


def bench_slot_turnover(benchmark):
    """Four times as many samples as slots: each slot goes on as soon as its sample is complete."""
    prior, slots = large()
    made = []
    run = Sampler.run
    given = half_coarse(prior, 4 * slots)
    options = {"slots": slots, "given": given, "closed": 1}
    with mock.patch.object(Sampler, "run", lambda self, progress: made.append(self) or run(self, progress)):
        benchmark.pedantic(prior.generate, (4 * slots,), options, rounds=1)
    share = made[-1].useful_steps / made[-1].slot_steps
    assert share >= (0.95 if torch.cuda.is_available() else 0.85)  # on a grid this small, what ends a sample counts
    if benchmark.stats:
        benchmark.extra_info |= {
            "images_per_second": 4 * slots / benchmark.stats.stats.median,
            "useful_slot_steps": share,
        }
