"""The released tokenizer's forward pass, written out from its published layout, and settings of it to convert."""

import json
import types

import pytest
import torch
import torch.nn.functional as F

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
            if "fourier" in kind:  # the released forward pass ignores learned tables without Fourier features
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


def official(kind="dual", router=("group-32", "2layer-fc-SiLu"), position="fourier+learned", **changes):
    """A configuration; ``router`` is one, or the normalization and the gate of a feature router."""
    levels = {"dual": (1, 2, 2, 4), "triple": (1, 2, 2, 4, 4)}[kind]
    config = {
        "kind": kind,
        "router": feature_router(kind, *router) if isinstance(router, tuple) else router,
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
    return json.loads(json.dumps({**config, **changes}))


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


@pytest.fixture(scope="session")
def released():
    """``official(...)`` gives a configuration, ``run`` the released model's weights and results, ``photo`` images."""
    return types.SimpleNamespace(official=official, run=run, photo=photo)


@pytest.fixture(scope="session")
def dual():
    """State dict and configuration of a released model."""
    torch.manual_seed(0)
    config = json.loads(json.dumps(official()))
    state, _ = run(config, photo(32))
    return state, config
