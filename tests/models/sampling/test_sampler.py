"""The sampler: cached steps against full passes, slots, CUDA graphs, given codes, previews, guidance."""

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import dqcore
from dqcore import backends
from dqcore.models.sampling.draw import uniforms
from dqcore.models.sampling.sampler import Sampler
from dqcore.models.sampling.settings import Sampling
from dqcore.models.sampling.walk import Plan

GRID = (3, 4)
KINDS = [("dq", 2), ("dq", 3), ("dynamic", 2), ("dynamic", 3), ("raster", 1)]


class RecordingSteps:
    """Passes everything on and keeps the logits."""

    def __init__(self, steps):
        self.steps, self.position_logits, self.content_logits = steps, [], []

    def positions(self, *tokens):
        logits = self.steps.positions(*tokens)
        self.position_logits.append(logits)
        return logits

    def codes(self, rows):
        self.content_logits.append(self.steps.codes(rows))
        return self.content_logits[-1]

    def __getattr__(self, name):
        return getattr(self.steps, name)


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_cached_logits_are_those_of_the_full_pass(kind, granularities, new, spread):
    model = spread(new(kind, granularities)).eval()
    made = []
    original = model.new_steps
    model.new_steps = lambda *sizes: made.append(RecordingSteps(original(*sizes))) or made[0]
    batch = model.generate(3, seed=3)
    out = model(batch)
    ends = model.tape.lay_out(batch, torch.zeros(3, dtype=torch.int64)).cu_seqlens.tolist()
    for image in range(3):
        count = int(batch.lengths[image]) + (granularities if kind == "dq" else 0)  # ends and starts come between codes
        for name in ("content_logits", "position_logits"):
            full = getattr(out, name)
            if full is not None:
                cached = torch.stack([logits[image] for logits in getattr(made[0], name)[:count]])
                full = full[ends[image] : ends[image] + count, : cached.shape[1]]
                torch.testing.assert_close(cached, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_samples_are_valid_and_depend_on_seed_and_index_alone(kind, granularities, new, spread):
    model = spread(new(kind, granularities)).eval()
    six = model.generate(6, seed=5)
    codes, grain = dqcore.unpack_codes(six)  # raises unless each region is covered exactly once
    assert dqcore.pack_codes(codes, grain, num_granularities=granularities) == six
    assert model.generate(2, seed=5) == six[:2]
    assert model.generate(2, seed=5, first=3) == six[3:5]
    assert model.generate(6, seed=5, slots=4) == six
    assert model.generate(6, seed=6) != six


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_a_model_in_training_draws_without_dropout(kind, granularities, new, spread):
    model = spread(new(kind, granularities, dropout=0.5)).train()
    drawn = model.generate(3, seed=5)
    assert model.training and model.generate(3, seed=5) == drawn
    assert model.eval().generate(3, seed=5) == drawn


@pytest.mark.parametrize(
    ("cache", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16), ("int8", torch.int8)]
)
def test_keys_and_values_are_kept_as_asked(cache, dtype, new, spread):
    """Rounding moves logits a little, and samples still depend on seed and index alone."""
    model = spread(new(dim=64)).eval()
    made, original = [], model.new_steps
    model.new_steps = lambda *sizes: made.append(RecordingSteps(original(*sizes))) or made[-1]
    five = model.generate(5, seed=3, cache=cache)
    assert model.generate(2, seed=3, first=2, cache=cache) == five[2:4]
    for layer in (*made[0]._position_cache.layers, *made[0]._content_cache.layers):
        assert layer.keys.dtype == layer.values.dtype == dtype
        assert (layer.key_scales is None) == (cache != "int8")
    out = model(five)
    ends = model.tape.lay_out(five, torch.zeros(5, dtype=torch.int64)).cu_seqlens.tolist()
    full = out.content_logits[: ends[1]]
    cached = torch.stack([logits[0] for logits in made[0].content_logits[: ends[1]]])
    error = (cached - full[:, : cached.shape[1]]).abs().max() / full.std()
    assert error < {"auto": 1e-4, "bfloat16": 0.05, "int8": 0.1}[cache]
    assert (error > 1e-4) == (cache != "auto")


def sampler_of(model, slots, count, **options):
    def plan(samples):
        labels = torch.zeros(1, len(samples), dtype=torch.int64)
        return Plan(model.tape, labels, uniforms(1, samples, 2 * len(model.tape)))

    steps = model.new_steps(slots, model.tape.max_tokens)
    return Sampler(model.tape, steps, slots, Sampling(**options), plan, count)


def test_slots_do_useful_work(new, spread):
    """Refilled every few steps only, as in ``generate``; the last samples of a run have nothing to follow them."""
    model = spread(new(dim=16, region_grid=(5, 5))).eval()
    sampler = sampler_of(model, 8, 100)
    results = sampler.run()
    lengths = (results >= 0).sum(1)
    assert lengths.float().std() > 1  # samples do end at different times
    assert int(lengths.sum()) - sampler.useful_steps <= 2 * 100  # what is read after the last code is no use
    assert sampler.useful_steps / sampler.slot_steps >= 0.95


class TableSteps:
    """Steps whose logits are rows of two tables, chosen by all that a step is told: a prior without a transformer."""

    capturable = False

    def __init__(self, rows, columns, codes):
        self.active, self.lengths = torch.zeros(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.int32)
        # exponentials of these are 1 or 0, so that probabilities are rounded alike everywhere
        self.tables = [-200.0 * torch.randint(0, 2, (53, width)) for width in (columns, codes)]

    def positions(self, contents, rows, grains):
        return self.tables[0][(contents * 7 + rows * 5 + grains * 3 + self.lengths) % 53]

    def codes(self, rows):
        return self.tables[1][(rows * 5 + self.lengths) % 53]

    def restart(self, fresh):
        self.lengths.masked_fill_(fresh, 0)


@pytest.mark.skipif(not backends.interpreting(), reason="kernels run on a GPU")
@pytest.mark.parametrize(("kind", "guidance"), [("dq", 1.0), ("dynamic", 1.0), ("dq", 3.0)])
def test_kernels_draw_whole_samples_alike(kind, guidance, new):
    """More samples than slots, each step by the two kernels; the logits of special tokens' contents never count."""
    tape = new(kind, region_grid=(1, 2)).tape
    copies = 1 if guidance == 1.0 else 2

    def run():
        def plan(samples):
            labels = torch.arange(copies)[:, None].expand(-1, len(samples))
            return Plan(tape, labels, uniforms(4, samples, 2 * len(tape)))

        torch.manual_seed(0)
        steps = TableSteps(2 * copies, int(tape.columns.max()) + 1, 20)
        return Sampler(tape, steps, 2, Sampling(guidance=guidance, top_k=None), plan, 3).run()

    expected = run()
    with dqcore.backend("interpreter"):
        assert torch.equal(run(), expected)
    assert int((expected >= 0).sum(1).min()) > 2


@pytest.mark.slow
@pytest.mark.skipif(not backends.interpreting(), reason="kernels run on a GPU")
@pytest.mark.parametrize(("kind", "options"), [("dq", {}), ("dynamic", {"top_k": 6, "top_p": 0.9}), ("raster", {})])
def test_priors_draw_alike_through_all_kernels(kind, options, new, spread):
    """A number would have to lie within a millionth of a boundary to draw another code."""
    small = {"region_grid": (1, 1) if kind != "raster" else (2, 2), "dim": 16, "num_heads": 1}
    model = spread(new(kind, 1 if kind == "raster" else 2, **small)).eval()
    expected = model.generate(4, seed=2, slots=4, **options)
    with dqcore.backend("interpreter"):
        assert model.generate(4, seed=2, slots=4, **options) == expected


def addresses(sampler):
    parts = vars(sampler), vars(sampler.walk), vars(sampler.steps)
    found = {name: value for part in parts for name, value in part.items() if isinstance(value, torch.Tensor)}
    del found["_states"]  # lives within a step
    return {name: value.data_ptr() for name, value in found.items()}


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_steps_stay_in_their_memory_and_ask_for_no_value(kind, granularities, new, spread):
    """What a CUDA graph needs. Fake tensors raise where anything depends on a value."""
    model = spread(new(kind, granularities)).eval()
    sampler = sampler_of(model, 4, 10)
    before = addresses(sampler)
    sampler.run()
    assert addresses(sampler) == before
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for part in (sampler, sampler.walk, sampler.steps):
            for name, value in vars(part).items():
                if isinstance(value, torch.Tensor):
                    setattr(part, name, fake.from_tensor(value))
        sampler.step()
        sampler.turn()
        with pytest.raises(DataDependentOutputException):
            int(sampler.finished)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_captured_steps_draw_what_eager_ones_do(guidance, monkeypatch, new, spread):
    model = spread(new(dim=64, num_classes=3, label_dropout=0.1)).eval().cuda()
    options = {"labels": torch.arange(20) % 3, "seed": 2, "slots": 8, "guidance": guidance}
    captured = model.generate(20, **options)
    assert captured == model.generate(20, **options)
    some = options | {"labels": options["labels"][5:13], "first": 5}
    assert captured[5:13] == model.generate(8, **some)
    monkeypatch.setattr("dqcore.models.sampling.steps.can_capture", lambda weights: False)
    assert captured == model.generate(20, **options)


def test_given_regions_are_kept(new, spread):
    model = spread(new(granularities=3)).eval()
    whole = model.generate(4, seed=1)
    codes, grain = dqcore.unpack_codes(whole)
    kept = torch.zeros(4, *GRID, dtype=torch.bool)
    kept[:, :2] = True
    regions = kept.flatten(1)
    images = torch.arange(4).repeat_interleave(whole.lengths.long())
    width = GRID[1] << whole.grains
    y, x = whole.positions // width >> whole.grains, whole.positions % width >> whole.grains
    mine = regions[images, y * GRID[1] + x]
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(images[mine], minlength=4).cumsum(0)]).int()
    part = dqcore.CodeSequence(whole.codes[mine], whole.positions[mine], whole.grains[mine], ends, GRID, 3)
    completed = model.generate(4, seed=9, given=part)
    new_codes, new_grain = dqcore.unpack_codes(completed)
    assert torch.equal(new_grain[:, :2], grain[:, :2])
    assert torch.equal(new_codes[:, :8], codes[:, :8])
    assert not torch.equal(new_codes[:, 8:], codes[:, 8:])
    assert model.generate(4, seed=2, given=whole) == whole


@pytest.mark.parametrize("stop", [0, 1])
def test_a_preview_goes_on_to_the_same_sample(stop, new, spread):
    model = spread(new(granularities=3)).eval()
    preview = model.generate(4, seed=8, stop_after=stop)
    assert int(preview.grains.max()) <= stop
    assert model.generate(4, seed=8, given=preview, closed=stop + 1) == model.generate(4, seed=8)


def test_guidance_sharpens_towards_the_class(new, spread):
    model = spread(new(num_classes=3, label_dropout=0.1)).eval()
    labels = torch.tensor([0, 1, 2, -1])
    plain = model.generate(4, labels, seed=1)
    assert model.generate(4, labels, seed=1, guidance=1.0) == plain
    guided = model.generate(4, labels, seed=1, guidance=4.0)
    assert guided[3] == plain[3]  # without a class there is nothing to be guided to
    assert guided != plain
    assert model.generate(1, 1, seed=1, guidance=4.0, first=1) == guided[1]
    with pytest.raises(ValueError, match="guidance"):
        new(num_classes=3).generate(1, 0, guidance=2.0)
    with pytest.raises(ValueError, match="guidance: expected 1 without labels"):
        model.generate(1, guidance=2.0)
