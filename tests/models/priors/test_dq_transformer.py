"""DQ-Transformer and the raster priors: packed passes, losses, sampling, saving."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import dqcore
from dqcore.models.priors.dq_transformer import DQTransformer, DQTransformerConfig
from dqcore.models.priors.raster import Raster, RasterDynamic
from dqcore.models.sampling.draw import uniforms
from dqcore.models.sampling.sampler import Sampler, Sampling
from dqcore.models.sampling.walk import Plan

GRID = (3, 4)
SMALL = {"codebook_size": 20, "region_grid": GRID, "dim": 32, "num_heads": 2, "max_steps": 220}


def new(kind="dq", levels=2, **changes):
    fields = SMALL | changes
    if kind == "dq":
        return DQTransformer.from_preset("dqtransformer-tiny", num_granularities=levels, **fields)
    if kind == "dynamic":
        return RasterDynamic.from_preset("raster-dynamic-tiny", num_granularities=levels, **fields)
    return Raster.from_preset("raster-tiny", **fields)


def sequence(batch=3, levels=2, grid=GRID):
    grain = torch.randint(0, levels, (batch, *grid))
    return dqcore.pack_codes(
        torch.randint(0, 20, (batch, *(s << levels - 1 for s in grid))), grain, num_granularities=levels
    )


KINDS = [("dq", 2), ("dq", 3), ("dynamic", 2), ("dynamic", 3), ("raster", 1)]


def spread(model):
    """Larger weights, so that logits differ well."""
    for name, parameter in model.named_parameters():
        if "norm" not in name and "head.0" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    ("preset", "classes", "count"),
    [
        ("dqtransformer-base", 0, 308_884_480),
        ("dqtransformer-large", 0, 611_193_856),
        ("dqtransformer-base", 1000, 313_999_360),
        ("dqtransformer-large", 1000, 616_308_736),
    ],
)
def test_parameters(preset, classes, count):
    with torch.device("meta"):
        model = DQTransformer.from_preset(preset, num_classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(("kind", "levels"), KINDS)
def test_an_image_does_not_depend_on_the_others(kind, levels):
    model = spread(new(kind, levels)).eval()
    batch = sequence(4, levels)
    with torch.no_grad():
        together, alone = model(batch), [model(image) for image in batch]
    for name in ("content_logits", "position_logits"):
        if getattr(together, name) is not None:
            parts = torch.cat([getattr(out, name) for out in alone])
            torch.testing.assert_close(getattr(together, name), parts, atol=1e-5, rtol=1e-5)
    targets = [len(out.targets.contents) for out in alone]
    weighted = sum(n * out.content_loss for n, out in zip(targets, alone, strict=True)) / sum(targets)
    torch.testing.assert_close(together.content_loss, weighted)


@pytest.mark.parametrize(("kind", "levels"), KINDS)
def test_permuting_the_batch_permutes_the_logits_bit_for_bit(kind, levels):
    model = spread(new(kind, levels)).eval()
    images = list(sequence(5, levels))
    order = [3, 0, 4, 2, 1]
    with torch.no_grad():
        out, permuted = model(join(images)), model(join([images[i] for i in order]))
    counts = [len(image.codes) + model.tape.num_specials - 1 for image in images]
    for name in ("content_logits", "position_logits"):
        if getattr(out, name) is None:
            continue
        parts = getattr(out, name).split(counts)
        assert torch.equal(getattr(permuted, name), torch.cat([parts[i] for i in order]))


def join(images):
    parts = [torch.cat([getattr(image, name) for image in images]) for name in ("codes", "positions", "grains")]
    ends = torch.tensor([0, *(len(image.codes) for image in images)]).cumsum(0).int()
    return dqcore.CodeSequence(*parts, ends, images[0].region_grid, images[0].num_granularities)


def test_position_loss_is_the_mean_over_granularities():
    model = spread(new(levels=3)).eval()
    out = model(sequence(3, 3))
    losses = F.cross_entropy(out.position_logits, out.targets.columns, reduction="none")
    parts = [losses[out.targets.grains == g].mean() for g in range(3)]
    torch.testing.assert_close(out.position_loss, sum(parts) / 3)
    torch.testing.assert_close(out.loss, out.position_loss + out.content_loss)


@pytest.mark.parametrize(("kind", "levels"), KINDS)
def test_later_tokens_change_nothing_before_them(kind, levels):
    model = spread(new(kind, levels)).eval()
    image = sequence(1, levels)
    entries = model.tape.entries_of(image)
    middle = int(entries.argsort()[len(entries) // 2])
    row = int((model.tape.lay_out(image, torch.tensor([0])).entries == entries[middle]).int().argmax())
    codes = image.codes.clone()
    codes[middle] = (codes[middle] + 1) % 20
    one, other = (model(each).content_logits for each in (image, dataclasses.replace(image, codes=codes)))
    assert torch.equal(one[:row], other[:row])
    assert not torch.isclose(one[row:], other[row:]).all(1).any()


@pytest.mark.parametrize(("kind", "levels"), KINDS)
def test_every_parameter_gets_a_gradient(kind, levels):
    model = new(kind, levels, num_classes=3).train()
    model(sequence(4, levels), torch.tensor([0, 2, -1, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.ne(0).any()), name


def test_activation_checkpointing_changes_nothing():
    gradients = []
    for on in (False, True):
        torch.manual_seed(1)
        model = new(dropout=0.3).train()
        model.checkpoint_activations(on)
        torch.manual_seed(2)
        batch = sequence()
        model(batch).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_labels_are_dropped_in_training_only():
    model = spread(new(num_classes=4, label_dropout=0.5))
    batch = sequence(64)
    labels = torch.arange(64) % 4
    starts = model.train()(batch, labels).targets.contents
    starts = starts[starts >= 22].tolist() + [20] * int((starts == 20).sum())
    assert 10 < starts.count(20) < 54  # 20, padding, stands for no class
    model.eval()
    assert int((model(batch, labels).targets.contents == 20).sum()) == 0
    assert int((model(batch, torch.full_like(labels, -1)).targets.contents == 20).sum()) == 64


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


@pytest.mark.parametrize(("kind", "levels"), KINDS)
def test_cached_logits_are_those_of_the_full_pass(kind, levels):
    model = spread(new(kind, levels)).eval()
    made = []
    original = model.new_steps
    model.new_steps = lambda rows, capacity: made.append(RecordingSteps(original(rows, capacity))) or made[0]
    batch = model.generate(3, seed=3)
    out = model(batch)
    ends = model.tape.lay_out(batch, torch.zeros(3, dtype=torch.int64)).cu_seqlens.tolist()
    for image in range(3):
        count = int(batch.lengths[image]) + (levels if kind == "dq" else 0)  # ends and starts come between codes
        for name in ("content_logits", "position_logits"):
            full = getattr(out, name)
            if full is not None:
                cached = torch.stack([logits[image] for logits in getattr(made[0], name)[:count]])
                full = full[ends[image] : ends[image] + count, : cached.shape[1]]
                torch.testing.assert_close(cached, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "levels"), KINDS)
def test_samples_are_valid_and_depend_on_seed_and_index_alone(kind, levels):
    model = spread(new(kind, levels)).eval()
    six = model.generate(6, seed=5)
    codes, grain = dqcore.unpack_codes(six)  # raises unless each region is covered exactly once
    assert dqcore.pack_codes(codes, grain, num_granularities=levels) == six
    assert model.generate(2, seed=5) == six[:2]
    assert model.generate(2, seed=5, first=3) == six[3:5]
    assert model.generate(6, seed=5, slots=4) == six
    assert model.generate(6, seed=6) != six


def sampler_of(model, slots, count, **options):
    def plan(samples):
        labels = torch.zeros(1, len(samples), dtype=torch.int64)
        return Plan(model.tape, labels, uniforms(1, samples, 2 * len(model.tape)))

    steps = model.new_steps(slots, model.tape.max_tokens)
    return Sampler(model.tape, steps, slots, Sampling(**options), plan, count)


def test_slots_do_useful_work():
    """Refilled every few steps only, as in ``generate``; the last samples of a run have nothing to follow them."""
    model = spread(new(dim=16, region_grid=(5, 5))).eval()
    sampler = sampler_of(model, 8, 100)
    results = sampler.run()
    lengths = (results >= 0).sum(1)
    assert lengths.float().std() > 1  # samples do end at different times
    assert int(lengths.sum()) - sampler.useful_steps <= 2 * 100  # what is read after the last code is no use
    assert sampler.useful_steps / sampler.slot_steps >= 0.95


class Kernels(TorchDispatchMode):
    """Counts what runs: operators that are no views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.overloadpacket.__name__ not in ("_unsafe_view", "empty"):
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("slots", [4, 64])
def test_masks_and_bookkeeping_take_few_kernels(slots):
    """Everything in a step but the transformers with their embeddings, and the two draws: for any number of slots."""
    model = new().eval()
    sampler = sampler_of(model, slots, slots)
    sampler.turn()
    numbers, columns = torch.zeros(slots, dtype=torch.int64), torch.randn(slots, 100)
    sampler.steps.prior = SimpleNamespace(
        _embed=lambda *tokens: columns,
        _read=lambda *x: (columns, columns),
        _write=lambda *x: columns,
        config=model.config,
    )
    object.__setattr__(sampler.sampling, "positions", lambda scores, _: sampler.tape.specials[1].expand(slots))
    object.__setattr__(sampler.sampling, "contents", lambda logits, _: numbers)
    with Kernels() as kernels:
        sampler.step()
    assert len(kernels.names) <= 15, kernels.names


def addresses(sampler):
    parts = vars(sampler), vars(sampler.walk), vars(sampler.steps)
    found = {name: value for part in parts for name, value in part.items() if isinstance(value, torch.Tensor)}
    del found["_state"]  # lives within a step
    return {name: value.data_ptr() for name, value in found.items()}


@pytest.mark.parametrize(("kind", "levels"), KINDS)
def test_steps_stay_in_their_memory_and_ask_for_no_value(kind, levels):
    """What a CUDA graph needs. Fake tensors raise where anything depends on a value."""
    model = spread(new(kind, levels)).eval()
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
def test_captured_steps_draw_what_eager_ones_do(guidance, monkeypatch):
    model = spread(new(dim=64, num_classes=3, label_dropout=0.1)).eval().cuda()
    options = {"labels": torch.arange(20) % 3, "seed": 2, "slots": 8, "guidance": guidance}
    captured = model.generate(20, **options)
    assert captured == model.generate(20, **options)
    some = options | {"labels": options["labels"][5:13], "first": 5}
    assert captured[5:13] == model.generate(8, **some)
    monkeypatch.setattr("dqcore.models.sampling.cached_steps.can_capture", lambda weights: False)
    assert captured == model.generate(20, **options)


def test_given_regions_are_kept():
    model = spread(new(levels=3)).eval()
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
def test_a_preview_goes_on_to_the_same_sample(stop):
    model = spread(new(levels=3)).eval()
    preview = model.generate(4, seed=8, stop_after=stop)
    assert int(preview.grains.max()) <= stop
    assert model.generate(4, seed=8, given=preview, closed=stop + 1) == model.generate(4, seed=8)


def test_guidance_sharpens_towards_the_class():
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


def test_compiles():
    model = new().eval()
    batch = sequence()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(batch).content_logits, model(batch).content_logits)


@pytest.mark.parametrize(("kind", "levels"), KINDS)
def test_saved_and_loaded(kind, levels, tmp_path):
    model = new(kind, levels)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    batch = sequence(2, levels)
    assert torch.equal(loaded(batch).loss, model.eval()(batch).loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m("codes"), "sequence: expected a CodeSequence"),
        (lambda m: m(sequence(1, 3)), "num_granularities 2"),
        (lambda m: m(sequence(1, 2, (4, 4))), "region_grid"),
        (lambda m: m(dataclasses.replace(s := sequence(1), codes=s.codes + 5)), r"codes in \[0, 20\)"),
        (lambda m: m(sequence(), torch.zeros(3, dtype=torch.int64)), "labels: expected None"),
        (lambda m: m.generate(0), "batch_size"),
        (lambda m: m.generate(1, closed=2), "closed"),
        (lambda m: m.generate(1, stop_after=2), "stop_after"),
        (lambda m: m.generate(2, given=sequence(1)), "given: expected 2 images"),
        (lambda m: m.generate(1, temperature=0.0), "temperature"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(new())


def test_half_covered_regions_are_refused():
    whole = new().generate(1, seed=0)
    ends = torch.tensor([0, len(whole.codes) - 1], dtype=torch.int32)
    part = dqcore.CodeSequence(whole.codes[:-1], whole.positions[:-1], whole.grains[:-1], ends, GRID, 2)
    with pytest.raises(ValueError, match="given: expected whole regions"):
        new().generate(1, given=part)


@pytest.mark.parametrize("labels", [None, torch.tensor([4, 0, 0]), torch.zeros(2, dtype=torch.int64), torch.rand(3)])
def test_wrong_labels_are_named(labels):
    with pytest.raises((ValueError, TypeError), match="labels"):
        new(num_classes=4)(sequence(), labels)


@pytest.mark.parametrize(
    "wrong",
    [{"max_steps": 10}, {"num_heads": 5}, {"dropout": 1.0}, {"label_dropout": 0.1}, {"region_grid": (0, 4)}],
)
def test_wrong_configs_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DQTransformer(DQTransformerConfig(**(SMALL | {"position_layers": 1, "content_layers": 1} | wrong)))
