"""Conversion against the released model's forward pass, written out here from its published layout."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from dqcore import DQVAE, convert

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
NAMES = {"dual": ["coarse", "fine"], "triple": ["coarse", "median", "fine"]}


class Released:
    """The released tokenizer in evaluation mode; ``state`` fills with random weights as the forward pass needs them."""

    def __init__(self, config, seed=0):
        self.config, self.state, self.generator = config, {}, torch.Generator().manual_seed(seed)

    def weight(self, name, *shape, scale=1.0, shift=0.0):
        if name not in self.state:
            self.state[name] = shift + scale * torch.randn(*shape, generator=self.generator)
        return self.state[name]

    def conv(self, x, name, out, kernel=3, **options):
        fan_in = x.shape[1] * kernel**2
        weight = self.weight(f"{name}.weight", out, x.shape[1], kernel, kernel, scale=fan_in**-0.5)
        return F.conv2d(x, weight, self.weight(f"{name}.bias", out, scale=0.1), **options)

    def linear(self, x, name, out):
        weight = self.weight(f"{name}.weight", out, x.shape[-1], scale=2 * x.shape[-1] ** -0.5)
        return x @ weight.T + self.weight(f"{name}.bias", out, scale=0.1)

    def norm(self, x, name, groups=32):
        weight = self.weight(f"{name}.weight", x.shape[1], scale=0.2, shift=1.0)
        return F.group_norm(x, groups, weight, self.weight(f"{name}.bias", x.shape[1], scale=0.2), eps=1e-6)

    def act(self, x, name):
        x = self.norm(x, name)
        return x * torch.sigmoid(x)

    def res(self, x, name, out):
        h = self.conv(self.act(x, f"{name}.norm1"), f"{name}.conv1", out, padding=1)
        h = self.conv(self.act(h, f"{name}.norm2"), f"{name}.conv2", out, padding=1)
        return h + (x if x.shape[1] == out else self.conv(x, f"{name}.nin_shortcut", out, 1))

    def attn(self, x, name):
        h, width = self.norm(x, f"{name}.norm"), x.shape[1]
        q, k, v = (self.conv(h, f"{name}.{part}", width, 1).flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k * width**-0.5).softmax(-1)
        return x + self.conv((v @ weights.transpose(1, 2)).view_as(x), f"{name}.proj_out", width, 1)

    def mid(self, x, name):
        x = self.attn(self.res(x, f"{name}.block_1", x.shape[1]), f"{name}.attn_1")
        return self.res(x, f"{name}.block_2", x.shape[1])

    def maps(self, images):
        config, features = self.config, []
        x = self.conv(images, "encoder.conv_in", config["ch"], padding=1)
        last = len(config["ch_mult"]) - 1
        for level, multiplier in enumerate(config["ch_mult"]):
            for block in range(config["num_res_blocks"]):
                x = self.res(x, f"encoder.down.{level}.block.{block}", config["ch"] * multiplier)
                if x.shape[-1] in config["encoder_attn_resolutions"]:
                    x = self.attn(x, f"encoder.down.{level}.attn.{block}")
            features.insert(0, x)
            if level < last:
                x = self.conv(F.pad(x, (0, 1, 0, 1)), f"encoder.down.{level}.downsample.conv", x.shape[1], stride=2)
        maps = []
        for feature, name in zip(features, NAMES[config["kind"]], strict=False):
            h = self.act(self.mid(feature, f"encoder.mid_{name}"), f"encoder.norm_out_{name}")
            maps.append(self.conv(h, f"encoder.conv_out_{name}", config["z_channels"], padding=1))
        return maps

    def feature_grain(self, maps):
        params, pooled = self.config["router"]["params"], []
        for g, name in enumerate(NAMES[self.config["kind"]]):
            h, norm = maps[g], params.get("normalization_type", "none")
            if norm != "none":
                h = self.norm(h, f"encoder.router.feature_norm_{name}", int(norm.split("-")[1]))
            pooled.append(F.avg_pool2d(h, 2**g))
        h = torch.cat(pooled, 1).permute(0, 2, 3, 1)
        if params["gate_type"] == "1layer-fc":
            return self.linear(h, "encoder.router.gate", len(maps)).argmax(-1)
        act = F.silu if "SiLu" in params["gate_type"] else F.relu
        return self.linear(
            act(self.linear(h, "encoder.router.gate.0", h.shape[-1])), "encoder.router.gate.2", len(maps)
        ).argmax(-1)

    def entropy(self, images, bins=(-1.0, 1.0)):
        gray = (images * torch.tensor([0.2989, 0.5870, 0.1140])[:, None, None]).sum(1).double()
        size = 2 ** (len(self.config["ch_mult"]) - 1)
        patches = gray.unfold(1, size, size).unfold(2, size, size).flatten(3)
        centres = torch.linspace(*bins, 32).double()
        p = torch.exp(-0.5 * ((patches[..., None] - centres) / 0.01) ** 2).mean(3)
        p = p / (p.sum(-1, keepdim=True) + 1e-40) + 1e-40
        return -(p * p.log()).sum(-1)

    def quantize(self, maps, grain):
        config, finest = self.config, len(maps) - 1
        side = 2**finest
        index = grain.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, None]
        z = sum(
            torch.where(index == g, F.interpolate(h, scale_factor=float(2 ** (finest - g))), 0)
            for g, h in enumerate(maps)
        )
        z = self.conv(z, "quant_conv", z.shape[1], 1)
        size, dim = config["codebook_size"], z.shape[1]
        table = self.weight("quantize.codebook.weight", size + 1, dim, scale=float(z.std()), shift=float(z.mean()))
        self.weight("quantize.codebook.cluster_size_ema", size)
        self.weight("quantize.codebook.embed_ema", size, dim)
        distance = (z.permute(0, 2, 3, 1)[..., None, :].double() - table[:size].double()).square().sum(-1)
        codes = distance.argmin(-1)
        quantized = table[codes].permute(0, 3, 1, 2)
        weight = 4.0 ** (index - finest)
        return quantized, codes, (1 + config["commitment_beta"]) * (weight * (quantized - z) ** 2).mean()

    def decode(self, quantized):
        config = self.config
        h = self.conv(quantized, "post_quant_conv", config["z_channels"], 1)
        width, grid, kind = h.shape[1], h.shape[-1], config["position_type"]
        if "fourier" in kind:
            x, y = torch.meshgrid(torch.linspace(-1, 1, grid), torch.linspace(-1, 1, grid), indexing="xy")
            name = "position_bias_fourier" if "learned" in kind else "position_bias"
            h = h + torch.sin(self.conv(torch.stack([x, y])[None], f"decoder.{name}.lff.ffm.conv", width, 1))
        if "learned" in kind:
            name = "position_bias_learned" if "fourier" in kind else "position_bias"
            rows, columns = (self.weight(f"decoder.{name}.{part}_embed.weight", grid, width) for part in ("row", "col"))
            if "fourier" in kind:  # the released forward pass leaves tables out that come alone
                h = h + (rows[:, None] + columns[None]).permute(2, 0, 1)
        widths = [config["ch"] * multiplier for multiplier in config["decoder_ch_mult"]]
        h = self.mid(self.conv(h, "decoder.conv_in", widths[-1], padding=1), "decoder.mid")
        for level in reversed(range(len(widths))):
            for block in range(config["num_res_blocks"] + 1):
                h = self.res(h, f"decoder.up.{level}.block.{block}", widths[level])
                if h.shape[-1] in config["decoder_attn_resolutions"]:
                    h = self.attn(h, f"decoder.up.{level}.attn.{block}")
            if level:
                h = F.interpolate(h, scale_factor=2.0)
                h = self.conv(h, f"decoder.up.{level}.upsample.conv", widths[level], padding=1)
        return self.conv(self.act(h, "decoder.norm_out"), "decoder.conv_out", 3, padding=1)


def feature_router(kind, norm, gate):
    target = f"modules.dynamic_modules.Router{kind.title()}.{kind.title()}GrainFeatureRouter"
    return {"target": target, "params": {"num_channels": 32, "normalization_type": norm, "gate_type": gate}}


ENTROPY = {
    "target": "modules.dynamic_modules.RouterDual.DualGrainFixedEntropyRouter",
    "params": {"fine_grain_ratito": 0.5},
}


def official(kind="dual", router=None, position="fourier+learned", **changes):
    levels = {"dual": (1, 2, 2, 4), "triple": (1, 2, 2, 4, 4)}[kind]
    config = {
        "kind": kind,
        "router": router or feature_router(kind, "group-32", "2layer-fc-SiLu"),
        "ch": 32,
        "ch_mult": levels,
        "z_channels": 32,
        "num_res_blocks": 1,
        "resolution": 32,
        "codebook_size": 40,
        "encoder_attn_resolutions": [4, 8],
        "decoder_ch_mult": levels[:3],
        "decoder_attn_resolutions": [8],
        "position_type": position,
        "commitment_beta": 0.25,
    }
    return {**config, **changes}


def run(config, images, bins=(-1.0, 1.0)):
    released = Released(config)
    maps = released.maps(images)
    if "Entropy" in config["router"]["target"]:
        entropy = released.entropy(images, bins)
        config["router"]["params"]["threshold"] = float(entropy.median()) + 1e-3
        grain = (entropy > config["router"]["params"]["threshold"]).long()
    else:
        grain = released.feature_grain(maps)
    quantized, codes, loss = released.quantize(maps, grain)
    return released.state, {
        "grain": grain,
        "codes": codes,
        "quantized": quantized,
        "reconstruction": released.decode(quantized),
        "commit_loss": loss,
    }


def photo(size, batch=3):
    """Smooth images with noise of a different strength in each region."""
    amplitude = torch.rand(batch, 1, 4, 4).repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3) ** 3
    ramp = torch.linspace(-0.3, 0.3, size)
    return ramp + ramp[:, None] + 0.4 * amplitude * torch.randn(batch, 3, size, size)


def assert_same(model, images, expected):
    with torch.no_grad():
        encoding, output = model.encode(images), model(images)
    assert expected["grain"].unique().numel() > 1
    assert torch.equal(encoding.grain, expected["grain"])
    assert torch.equal(encoding.codes, expected["codes"])
    for ours, theirs in (
        (encoding.quantized, expected["quantized"]),
        (output.reconstruction, expected["reconstruction"]),
        (output.commitment_loss, expected["commit_loss"].squeeze()),
    ):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


CASES = {
    "dual": official(),
    "dual, one layer, no norm": official(router=feature_router("dual", "none", "1layer-fc"), position="fourier"),
    "dual, wide": official(
        router=feature_router("dual", "group-16", "2layer-fc-SiLu"), ch=64, z_channels=48, num_res_blocks=2
    ),
    "dual, deep": official(ch_mult=(1, 1, 1, 2, 1), decoder_ch_mult=(1, 1, 2, 1), resolution=64),
    "triple": official("triple"),
    "triple, relu": official("triple", feature_router("triple", "group-8", "2layer-fc-ReLu"), position="learned"),
    "entropy": official(router=ENTROPY),
    "entropy, learned-relative": official(router=ENTROPY, position="learned-relative"),
}


@pytest.mark.parametrize("case", CASES)
def test_matches_the_released_forward_pass(case):
    config = json.loads(json.dumps(CASES[case]))
    images = photo(config["resolution"])
    state, expected = run(config, images)
    model = convert.dqvae_from_official(state, config)
    assert not model.training
    assert_same(model, images, expected)


def test_bins_of_the_released_checkpoint():
    config = json.loads(json.dumps(official(router=ENTROPY)))
    images = photo(32) + 0.4
    state, expected = run(config, images, bins=(0.0, 1.0))
    config["router"]["params"]["bins"] = [0, 1]
    assert_same(convert.dqvae_from_official(state, config), images, expected)


@pytest.mark.skipif(
    not (GOLDEN / "dqvae_dual_feature.config.json").is_file(),
    reason="the recordings of the released code are not part of the repository",
)
def test_matches_the_recording():
    name = "dqvae_dual_feature"
    config = json.loads((GOLDEN / f"{name}.config.json").read_text())
    expected = load_file(GOLDEN / f"{name}.io.safetensors")
    model = convert.dqvae_from_official(convert.load_official(GOLDEN / f"{name}.state.safetensors"), config)
    assert_same(model, expected["image"], expected)
    logits = model.encode(expected["image"]).gate_logits
    torch.testing.assert_close(logits, expected["gate_logits"], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def dual():
    torch.manual_seed(0)
    config = json.loads(json.dumps(official()))
    state, _ = run(config, photo(32))
    return state, config


@pytest.mark.parametrize("position", ["fourier", "fourier+learned"])
def test_round_trip(position):
    config = json.loads(json.dumps(official("triple", position=position)))
    state, _ = run(config, photo(32))
    back = convert.dqvae_to_official(convert.dqvae_from_official(state, config))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_whole_checkpoints(dual):
    state, config = dual
    expected = convert.dqvae_from_official(state, config).state_dict()
    extra = {
        "loss.discriminator.main.0.weight": torch.zeros(1),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1),
    }
    lightning = {"epoch": 3, "state_dict": {**state, **extra}}
    second = {f"first_stage_model.{name}": tensor for name, tensor in state.items()}
    stage2 = {"state_dict": {**second, "transformer.pos_emb": torch.zeros(1), "quant_conv.weight": torch.zeros(1)}}
    for checkpoint in (lightning, stage2):
        converted = convert.dqvae_from_official(checkpoint, config).state_dict()
        assert all(torch.equal(converted[name], expected[name]) for name in expected)


def test_every_key_is_used_or_named(dual):
    state, config = dual
    with pytest.raises(ValueError, match=r"has no place for encoder\.extra\.weight"):
        convert.dqvae_from_official({**state, "encoder.extra.weight": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"lacks decoder\.conv_out\.bias, quant_conv\.bias"):
        drop = ("quant_conv.bias", "decoder.conv_out.bias")
        convert.dqvae_from_official({name: t for name, t in state.items() if name not in drop}, config)
    with pytest.raises(ValueError, match=r"state_dict: decoder\.conv_in\.bias would have shape \(3,\)"):
        convert.dqvae_from_official({**state, "decoder.conv_in.bias": torch.zeros(3)}, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "quadruple"}, "kind 'quadruple' is unknown"),
        ({"position_type": "relative"}, "position_type 'relative' is unknown"),
        ({"router": {"target": "modules.Other", "params": {}}}, "router modules.Other is unknown"),
        ({"router": feature_router("dual", "group-32", "3layer")}, "gate_type '3layer' is unknown"),
    ],
)
def test_unknown_configuration(dual, changes, message):
    with pytest.raises(ValueError, match=f"config: {message}"):
        convert.dqvae_from_official(dual[0], {**dual[1], **changes})


def test_incomplete_configuration(dual):
    config = {name: value for name, value in dual[1].items() if name != "ch_mult"}
    with pytest.raises(ValueError, match="config: ch_mult is missing"):
        convert.dqvae_from_official(dual[0], config)


def test_thresholds(tmp_path):
    config = json.loads(json.dumps(official(router=ENTROPY)))
    state, _ = run(config, photo(32))
    params = config["router"]["params"]
    threshold = params.pop("threshold")
    assert not convert.dqvae_from_official(state, config).router.fitted
    config["fine_grain_threshold"] = threshold
    torch.testing.assert_close(convert.dqvae_from_official(state, config).router.thresholds.item(), threshold)
    config["fine_grain_threshold"] = [threshold]
    torch.testing.assert_close(convert.dqvae_from_official(state, config).router.thresholds.item(), threshold)
    del config["fine_grain_threshold"]
    params["json_path"] = str(tmp_path / "thresholds.json")
    with pytest.raises(FileNotFoundError, match=r"thresholds\.json: no such thresholds file"):
        convert.dqvae_from_official(state, config)
    (tmp_path / "thresholds.json").write_text(json.dumps({str(p): p / 100 for p in range(1, 100)}))
    for ratio, expected in ((0.5, 0.5), (0.55, 0.45), (0.3, 0.7)):
        params["fine_grain_ratito"] = ratio
        router = convert.dqvae_from_official(state, config).router
        assert router.thresholds.item() == pytest.approx(expected)
        assert router.ratio == (ratio,)
    params["thresholds"] = {"70": 1.25}
    assert convert.dqvae_from_official(state, config).router.thresholds.item() == 1.25
    params["fine_grain_ratito"] = 0.5
    with pytest.raises(ValueError, match="config: there is no threshold for percentile 50"):
        convert.dqvae_from_official(state, config)


def test_load_official(tmp_path, dual):
    state, _ = dual
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"state_dict": state, "global_step": 7}, tmp_path / "model.ckpt")
    torch.save(state, tmp_path / "model.pt")
    for name in ("model.safetensors", "model.ckpt", "model.pt"):
        loaded = convert.load_official(tmp_path / name)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


def test_load_official_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "callback": Trap()}, "trap.ckpt")
    with pytest.raises(ValueError, match=r"trap\.ckpt: not a checkpoint of tensors alone"):
        convert.load_official("trap.ckpt")
    assert not Path("trapped").exists()


def test_load_official_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert.load_official(tmp_path / "nothing.ckpt")
    for name in ("broken.ckpt", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(ValueError, match=f"{name}: not a "):
            convert.load_official(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="state_dict: expected names and tensors"):
        convert.load_official(tmp_path / "list.pt")


def test_to_official_rejects_what_they_do_not_have():
    with pytest.raises(ValueError, match="model: expected two or three granularities, 32 groups"):
        convert.dqvae_to_official(DQVAE.from_preset("dqvae-dual-tiny"))
