"""What the priors that walk a tape have in common: packed passes, gradients, saving, checks."""

import dataclasses

import pytest
import torch

import dqcore
from dqcore.models.tape import Tape
from dqcore.nn.constants import device_of_tables
from dqcore.ops.add_rows import add_rows

KINDS = [("dq", 2), ("dq", 3), ("dynamic", 2), ("dynamic", 3), ("raster", 1)]


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_an_image_does_not_depend_on_the_others(kind, granularities, new, spread, sequence):
    model = spread(new(kind, granularities)).eval()
    batch = sequence(4, granularities)
    with torch.no_grad():
        together, alone = model(batch), [model(image) for image in batch]
    for name in ("content_logits", "position_logits"):
        if getattr(together, name) is not None:
            parts = torch.cat([getattr(out, name) for out in alone])
            torch.testing.assert_close(getattr(together, name), parts, atol=1e-5, rtol=1e-5)
    targets = [len(out.targets.contents) for out in alone]
    weighted = sum(n * out.content_loss for n, out in zip(targets, alone, strict=True)) / sum(targets)
    torch.testing.assert_close(together.content_loss, weighted)


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_permuting_the_batch_permutes_the_logits_bit_for_bit(kind, granularities, new, spread, sequence):
    model = spread(new(kind, granularities)).eval()
    images = list(sequence(5, granularities))
    order = [3, 0, 4, 2, 1]
    with torch.no_grad():
        out, permuted = model(join(images)), model(join([images[i] for i in order]))
    counts = [len(image.codes) + model.tape.num_specials - 1 for image in images]
    for name in ("content_logits", "position_logits"):
        if getattr(out, name) is None:
            continue
        parts = getattr(out, name).split(counts)
        assert torch.equal(getattr(permuted, name), torch.cat([parts[i] for i in order]))


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tables_are_what_embeddings_add_up(kind, granularities, dtype, new, spread, sequence):
    model = spread(new(kind, granularities, num_classes=2)).eval().to(dtype)
    tokens = model.tape.lay_out(sequence(3, granularities), torch.tensor([0, 1, 0]))
    contents, rows, grains = tokens.contents, tokens.rows, model.tape.grains[tokens.entries]
    steps = torch.arange(len(contents)) % 50
    parts = zip(model.tables(), (contents, rows, steps, grains), strict=True)
    tables, indices = zip(*((table, index) for table, index in parts if table is not None), strict=True)
    assert torch.equal(add_rows(None, list(tables), list(indices)), model.embed(contents, rows, grains, steps))
    if kind != "raster":
        assert torch.equal(model.tables().positions[rows], model.position_vectors(rows))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("kind", "granularities"), [*KINDS, ("global-local", 2)])
def test_from_the_meta_device_to_a_loaded_state(kind, granularities, assign, new, sequence):
    """What to_empty left in the tape's tables was read as an index."""
    model = new(kind, granularities).eval()
    with torch.device("meta"):
        other = new(kind, granularities).eval()
    torch.full((1 << 16,), 1 << 40)  # memory that is free again holds no zeros
    other = other if assign else other.to_empty(device="cpu")
    other.load_state_dict(model.state_dict(), assign=assign)
    batch = sequence(3, granularities)
    assert torch.equal(other(batch).loss, model(batch).loss)


@pytest.mark.parametrize(("kind", "granularities"), [*KINDS, ("global-local", 2)])
def test_tables_lie_where_the_weights_do(kind, granularities, new, monkeypatch):
    """As of a prior made under ``with torch.device("cuda")``."""
    moved = []
    monkeypatch.setattr(Tape, "to", lambda tape, device: moved.append(device) or tape)
    weights = next(new(kind, granularities).parameters()).device
    assert moved == [device_of_tables(weights)]
    devices = {kind: device_of_tables(torch.device(kind)) for kind in ("cpu", "cuda", "meta")}
    assert devices == {"cpu": torch.device("cpu"), "cuda": torch.device("cuda"), "meta": torch.device("cpu")}


@pytest.mark.parametrize(("kind", "granularities"), [*KINDS, ("global-local", 2)])
def test_a_new_prior_expects_anything(kind, granularities, new, sequence):
    """Its weights are so small that no content is much likelier than another."""
    logits = new(kind, granularities).eval()(sequence(4, granularities)).content_logits
    assert 0 < float(logits.detach().std(-1).mean()) < 0.25


def join(images):
    parts = [torch.cat([getattr(image, name) for image in images]) for name in ("codes", "positions", "grains")]
    ends = torch.tensor([0, *(len(image.codes) for image in images)]).cumsum(0).int()
    return dqcore.CodeSequence(*parts, ends, images[0].region_grid, images[0].num_granularities)


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_later_tokens_change_nothing_before_them(kind, granularities, new, spread, sequence):
    model = spread(new(kind, granularities)).eval()
    image = sequence(1, granularities)
    entries = model.tape.entries_of(image)
    middle = int(entries.argsort()[len(entries) // 2])
    row = int((model.tape.lay_out(image, torch.tensor([0])).entries == entries[middle]).int().argmax())
    codes = image.codes.clone()
    codes[middle] = (codes[middle] + 1) % 20
    one, other = (model(each).content_logits for each in (image, dataclasses.replace(image, codes=codes)))
    assert torch.equal(one[:row], other[:row])
    assert not torch.isclose(one[row:], other[row:]).all(1).any()


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_every_parameter_gets_a_gradient(kind, granularities, new, sequence):
    model = new(kind, granularities, num_classes=3).train()
    model(sequence(4, granularities), torch.tensor([0, 2, -1, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.ne(0).any()), name


@pytest.mark.parametrize(("kind", "granularities"), KINDS)
def test_saved_and_loaded(kind, granularities, tmp_path, new, sequence):
    model = new(kind, granularities)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    batch = sequence(2, granularities)
    assert torch.equal(loaded(batch).loss, model.eval()(batch).loss)


@pytest.mark.parametrize("kind", ["dq", "dynamic", "raster", "global-local"])
def test_wrong_configs_are_named(kind, new):
    granularities = 1 if kind == "raster" else 2
    config = new(kind, granularities).config
    layers = [field.name for field in dataclasses.fields(config) if field.name.endswith("_layers")]
    assert layers
    for wrong in ({"dropout": 1.0}, *({name: 0} for name in layers)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(config, **wrong)


@pytest.mark.parametrize("kind", ["dynamic", "raster"])
@pytest.mark.parametrize("stage", [{"closed": 1}, {"stop_after": 0}])
def test_raster_order_has_no_stages(kind, stage, new):
    with pytest.raises(ValueError, match="granularities do not come one after the other in raster order"):
        new(kind, 1 if kind == "raster" else 2).generate(1, **stage)


@pytest.mark.parametrize(("kind", "granularities"), [*KINDS, ("global-local", 2), ("global-local", 3)])
def test_parts_of_a_batch_add_up_to_its_losses(kind, granularities, new, spread, sequence):
    model = spread(new(kind, granularities)).eval()
    whole = sequence(4, granularities)
    out, counts = model(whole), model.token_counts(whole)
    assert counts.tolist() == torch.bincount(out.targets.grains, minlength=granularities).tolist()
    parts = [model.losses_within(model(part), counts) for part in (whole[:1], whole[1:])]
    content, position = (sum(each) for each in zip(*parts, strict=True))
    torch.testing.assert_close(content, out.content_loss)
    torch.testing.assert_close(position, out.position_loss)


@pytest.mark.parametrize(("kind", "granularities"), [("dq", 2), ("raster", 1), ("global-local", 2)])
def test_progress_rises_to_the_number_of_samples(kind, granularities, new, spread):
    seen, model = [], spread(new(kind, granularities)).eval()
    model.generate(5, slots=2, progress=lambda done, count: seen.append((done, count)))
    done = [number for number, _ in seen]
    assert {count for _, count in seen} == {5} and done == sorted(set(done)) and done[-1] == 5
