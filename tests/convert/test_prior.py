"""The released DQ-Transformer: its recording, and its forward pass written out for classes and the other order."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import dqcore
from dqcore.convert.prior import dqtransformer_from_official, dqtransformer_to_official

DATA = Path(__file__).parents[1] / "fixtures"
CONFIG = json.loads((DATA / "dqtransformer_uncond.config.json").read_text())


@pytest.fixture(scope="module")
def state():
    return load_file(DATA / "dqtransformer_uncond.state.safetensors")


def test_matches_the_recording(state):
    recorded = load_file(DATA / "dqtransformer_uncond.io.safetensors")
    model = dqtransformer_from_official(state, CONFIG)
    sequence = dqcore.pack_codes(recorded["codes"], recorded["grain"], num_granularities=2)
    out = model(sequence)
    for name in ("content_logits", "position_logits"):
        torch.testing.assert_close(getattr(out, name), recorded[name].flatten(0, 1), atol=1e-4, rtol=0)
    for name in ("content_loss", "position_loss"):
        torch.testing.assert_close(getattr(out, name), recorded[name][0], atol=1e-5, rtol=0)


def released_forward(state, config, sequence, label):
    """Their forward pass for one image, dense: ``[sos, coarse, eos, sos, fine, eos]`` with the last token dropped."""
    size, regions = config["codebook_size"], config["coarse_hw"] ** 2
    contents, positions, tables = [], [], []
    for grain, cells in enumerate((regions, 4 * regions)):
        mine = sequence.grains == grain
        contents += [size + 2 + label, *sequence.codes[mine].tolist(), size + 1]
        positions += [cells + 2 + label, *sequence.positions[mine].tolist(), cells + 1]
        tables += [grain] * (int(mine.sum()) + 2)
    names = ("content_coarse_pos_emb.weight", "content_fine_pos_emb.weight")
    where = torch.stack([state[names[g]][p] for g, p in zip(tables, positions, strict=True)])
    x = state["content_emb.weight"][contents[:-1]] + where[:-1] + state["seg_emb.weight"][tables[:-1]]
    x = x + state["pos_emb"][0, : len(x)]
    hidden = blocks(state, "position", config, x)
    position_logits = head(state, "position", hidden)
    content_logits = head(state, "content", blocks(state, "content", config, hidden + where[1:]))
    return content_logits, position_logits


def blocks(state, kind, config, x):
    for layer in range(config[f"{kind}_layers"]):
        part = {k.removeprefix(p): v for k, v in state.items() if k.startswith(p := f"{kind}_transformer.{layer}.")}

        def apply(name, x, part=part):
            return F.linear(x, part[f"{name}.weight"], part[f"{name}.bias"])

        y = F.layer_norm(x, x.shape[-1:], part["ln1.weight"], part["ln1.bias"])
        q, k, v = (apply(f"attn.{n}", y).unflatten(1, (config["heads"], -1)).transpose(0, 1) for n in QKV)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + apply("attn.proj", y.transpose(0, 1).flatten(1))
        y = F.layer_norm(x, x.shape[-1:], part["ln2.weight"], part["ln2.bias"])
        x = x + apply("mlp.2", F.gelu(apply("mlp.0", y)))
    return x


QKV = ("query", "key", "value")


def head(state, kind, x):
    norm = F.layer_norm(x, x.shape[-1:], state[f"{kind}_head.0.weight"], state[f"{kind}_head.0.bias"])
    return norm @ state[f"{kind}_head.1.weight"].T


def with_classes(state, classes):
    """The recording's weights with more start tokens."""
    gen = torch.Generator().manual_seed(1)
    names = ("content_emb", "content_coarse_pos_emb", "content_fine_pos_emb", "content_head.1", "position_head.1")
    more = {f"{n}.weight": torch.randn(classes - 1, 64, generator=gen) * 0.1 for n in names}
    return {name: torch.cat([t, more[name]]) if name in more else t for name, t in state.items()}


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize("order", ["row-first", "region-first"])
def test_matches_the_released_forward_pass(state, classes, order):
    if classes:
        state = with_classes(state, classes)
    config = CONFIG | {"num_classes": classes, "fine_position_order": order}
    model = dqtransformer_from_official({f"transformer.{name}": tensor for name, tensor in state.items()}, config)
    labels = torch.tensor([4, 0, 6]) if classes else None
    grain = torch.randint(0, 2, (3, 4, 4))
    codes = torch.randint(0, 50, (3, 4, 4)).repeat_interleave(2, 1).repeat_interleave(2, 2)
    sequence = dqcore.pack_codes(codes, grain, order=order, num_granularities=2)
    out = model(sequence, labels)
    expected = [released_forward(state, config, s, int(labels[i]) if classes else 0) for i, s in enumerate(sequence)]
    for ours, theirs in zip((out.content_logits, out.position_logits), zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-4, rtol=0)


def with_tokens(config, stream, **tokens):
    """A configuration whose special tokens have other numbers, so that the same weights mean something else."""
    given = config["special_tokens"]
    return config | {"special_tokens": given | {stream: given[stream] | tokens}}


def test_attention_masks_are_dropped(state):
    masks = {"position_transformer.0.attn.mask": torch.ones(1, 1, 4, 4)}
    model = dqtransformer_from_official({**state, **masks}, CONFIG)
    assert not model.training


@pytest.mark.parametrize("classes", [0, 7])
def test_goes_back_to_the_same_tensors(state, classes):
    if classes:
        state = with_classes(state, classes)
    back = dqtransformer_to_official(dqtransformer_from_official(state, CONFIG | {"num_classes": classes}))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("changes", [{"num_granularities": 3}, {"region_grid": (2, 4)}])
def test_what_their_code_lacks_does_not_go_back(changes):
    sizes = {"num_granularities": 2, "region_grid": (2, 2), "dim": 8, "num_heads": 1} | changes
    model = dqcore.DQTransformer(dqcore.DQTransformerConfig(position_layers=1, content_layers=1, **sizes))
    with pytest.raises(ValueError, match="model: expected two granularities and a square grid"):
        dqtransformer_to_official(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, c: (s, {k: v for k, v in c.items() if k != "dim"}), "config: dim is missing"),
        (lambda s, c: ({k: v for k, v in s.items() if k != "seg_emb.weight"}, c), "lacks seg_emb.weight"),
        (lambda s, c: ({**s, "odd.weight": torch.ones(1)}, c), "has no place for odd.weight"),
        (lambda s, c: (s, None), "config: expected a mapping of settings, got NoneType"),
        (lambda s, c: (s, c | {"coarse_hw": None}), "config: coarse_hw: expected a whole number from 1 up, got None"),
        (lambda s, c: (s, c | {"heads": "4"}), "config: heads: expected a whole number from 1 up, got '4'"),
        (lambda s, c: ({**s, "content_coarse_pos_emb.weight": torch.ones(())}, c), "emb.weight do not fit together"),
        (lambda s, c: (s, c | {"codebook_size": 51}), "content_embedding.weight would have shape"),
        (lambda s, c: (s, c | {"special_tokens": [50]}), "config: special_tokens: expected a mapping, got"),
        (lambda s, c: (s, with_tokens(c, "content", pad=51, eos=50)), "special_tokens: content: expected .*'pad': 50"),
        (lambda s, c: (s, with_tokens(c, "coarse_position", sos=0)), "special_tokens: coarse_position: expected"),
        (lambda s, c: (s, with_tokens(c, "fine_position", eos=64)), "special_tokens: fine_position: expected"),
    ],
)
def test_misfits_are_named(state, change, message):
    with pytest.raises(ValueError, match=message):
        dqtransformer_from_official(*change(state, CONFIG))
