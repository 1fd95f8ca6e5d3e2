"""Global-Local: its sequences, its cached sampling against its full pass, and the placeholder rule."""

import pytest
import torch

import dqcore
from dqcore.models.priors.global_local import GlobalLocal

GRID = (3, 4)


def new(granularities=2, **changes):
    fields = {"codebook_size": 20, "region_grid": GRID, "dim": 32, "num_heads": 2} | changes
    model = GlobalLocal.from_preset("global-local-tiny", num_granularities=granularities, **fields)
    for name, parameter in model.named_parameters():
        if "norm" not in name and "head.0" not in name:
            torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():
        model.content_embedding.weight[20].zero_()
    return model.eval()


def sequence(batch, granularities):
    grain = torch.randint(0, granularities, (batch, *GRID))
    shape = (batch, *(side << granularities - 1 for side in GRID))
    return dqcore.pack_codes(torch.randint(0, 20, shape), grain, num_granularities=granularities)


@pytest.mark.parametrize("granularities", [2, 3])
def test_targets_are_codes_then_placeholders(granularities):
    batch = sequence(2, granularities)
    codes, grain = dqcore.unpack_codes(batch)
    contents = new(granularities)(batch).targets.contents.view(2, 12, -1)
    side = 2 ** (granularities - 1)
    for image in range(2):
        for region in range(12):
            g = int(grain[image].flatten()[region])
            y, x = region // 4 * side, region % 4 * side
            step = 2 ** (granularities - 1 - g)
            mine = codes[image, y : y + side : step, x : x + side : step].flatten().tolist()
            assert contents[image, region].tolist() == mine + [20] * (4 ** (granularities - 1) - len(mine))


@pytest.mark.parametrize("granularities", [2, 3])
def test_samples_are_valid_and_depend_on_seed_and_index_alone(granularities):
    model = new(granularities)
    six = model.generate(6, seed=5)
    codes, grain = dqcore.unpack_codes(six)
    assert dqcore.pack_codes(codes, grain, num_granularities=granularities) == six
    assert grain.unique().tolist() == list(range(granularities))
    assert model.generate(2, seed=5) == six[:2]
    assert model.generate(2, seed=5, first=3, slots=1) == six[3:5]
    assert model.generate(6, seed=6) != six
    assert model.generate(6, seed=6, given=six) == six
    assert model.train().generate(6, seed=5) == six  # no dropout


@pytest.mark.parametrize("granularities", [2, 3])
def test_cached_logits_are_those_of_the_full_pass(granularities, monkeypatch):
    model, seen = new(granularities), []
    head = model.content_head.forward
    monkeypatch.setattr(model.content_head, "forward", lambda x: seen.append(head(x)) or seen[-1])
    batch = model.generate(4, seed=1)
    cached = torch.stack(seen, 1)
    monkeypatch.undo()
    torch.testing.assert_close(cached.flatten(0, 1), model(batch).content_logits, atol=1e-5, rtol=1e-5)


def test_given_regions_are_kept():
    model, whole = new(3), sequence(2, 3)
    codes, grain = dqcore.unpack_codes(whole)
    images = torch.arange(2).repeat_interleave(whole.lengths.long())
    top = whole.positions // (GRID[1] << whole.grains) >> whole.grains < 2
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(images[top], minlength=2).cumsum(0)]).int()
    part = dqcore.CodeSequence(whole.codes[top], whole.positions[top], whole.grains[top], ends, GRID, 3)
    new_codes, new_grain = dqcore.unpack_codes(model.generate(2, seed=1, given=part))
    assert torch.equal(new_codes[:, :8], codes[:, :8])
    assert torch.equal(new_grain[:, :2], grain[:, :2])
    assert not torch.equal(new_codes[:, 8:], codes[:, 8:])


@pytest.mark.parametrize(
    ("positions", "grains"), [([0, 1], [1, 1]), ([0, 0], [0, 0]), ([0, 0, 1, 8, 9], [0, 1, 1, 1, 1])]
)
def test_regions_given_in_part_or_twice_are_refused(positions, grains):
    fields = (torch.tensor(values) for values in ([7] * len(positions), positions, grains))
    part = dqcore.CodeSequence(*fields, torch.tensor([0, len(positions)], dtype=torch.int32), GRID, 2)
    with pytest.raises(ValueError, match="given: expected whole regions"):
        new().generate(1, given=part)


def test_classes_guidance_and_gradients():
    model = new(num_classes=3, label_dropout=0.1)
    labels = torch.tensor([0, 2])
    guided, plain = (model.generate(2, labels, seed=1, guidance=s) for s in (5.0, 1.0))
    assert guided != plain
    model.train()(sequence(8, 2), torch.arange(8) % 4 - 1).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.ne(0).any()), name


def test_saved_and_loaded(tmp_path):
    model, batch = new(), sequence(2, 2)
    model.save_pretrained(tmp_path)
    assert torch.equal(GlobalLocal.from_pretrained(tmp_path)(batch).loss, model(batch).loss)


@pytest.mark.parametrize(
    "wrong",
    [
        {"position_temperature": 0.5},
        {"position_top_k": 3},
        {"position_top_p": 0.5},
        {"stop_after": 0},
        {"closed": 1},
        {"slots": 0},
    ],
)
def test_what_it_does_not_have_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        new().generate(1, **wrong)
