"""VQGANs of taming-transformers and LlamaGen: a small network in their layout of keys, and its forward pass by hand."""

import pytest
import torch
import torch.nn.functional as F

from dqcore.convert import load_official, recognise, vqgan_from_llamagen, vqgan_from_taming, vqgan_to_taming
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.models.tokenizers.vqgan import VQGAN

WIDTHS, LATENT, DIM, CODES, BLOCKS = (32, 64, 64), 32, 16, 40, 1
TAMING = {
    "down": "encoder.down.{}",
    "up": "decoder.up.{}",
    "res": "block",
    "mid": ("block_1", "attn_1", "block_2"),
}
LLAMAGEN = {
    "down": "encoder.conv_blocks.{}",
    "up": "decoder.conv_blocks.{}",
    "res": "res",
    "mid": ("0", "1", "2"),
}


class Theirs:
    """A tokenizer as a dict of tensors: each is drawn when the forward pass asks for it first."""

    def __init__(self, layout, attention, normalise):
        self.layout, self.attention, self.normalise = layout, attention, normalise
        self.generator = torch.Generator().manual_seed(0)
        self.state = {"quantize.embedding.weight": self._draw(CODES, DIM)}
        self.encode(torch.zeros(1, 3, 8, 8))
        self.decode(torch.zeros(1, 2, 2, dtype=torch.int64))

    def _draw(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def _get(self, name, *shape):
        if name not in self.state:
            self.state[name] = self._draw(*shape) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        return self.state[name]

    def conv(self, name, x, out, size=3, **options):
        weight, bias = self._get(f"{name}.weight", out, x.shape[1], size, size), self._get(f"{name}.bias", out)
        return F.conv2d(x, weight, bias, padding=options.pop("padding", size // 2), **options)

    def norm(self, name, x):
        weight, bias = self._get(f"{name}.weight", x.shape[1]), self._get(f"{name}.bias", x.shape[1])
        return F.group_norm(x, 32, weight, bias, eps=1e-6)

    def resnet(self, name, x, out):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), out)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)), out)
        return h + (x if x.shape[1] == out else self.conv(f"{name}.nin_shortcut", x, out, 1))

    def attend(self, name, x):
        h, c = self.norm(f"{name}.norm", x), x.shape[1]
        q, k, v = (self.conv(f"{name}.{part}", h, c, 1).flatten(2) for part in "qkv")
        weights = torch.einsum("bci,bcj->bij", q, k).mul(c**-0.5).softmax(2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape), c, 1)

    def level(self, name, index, x, out, number):
        for block in range(number):
            x = self.resnet(f"{name}.{self.layout['res']}.{block}", x, out)
            if index in self.attention:
                x = self.attend(f"{name}.attn.{block}", x)
        return x

    def middle(self, side, x):
        one, two, three = (f"{side}.mid.{name}" for name in self.layout["mid"])
        return self.resnet(three, self.attend(two, self.resnet(one, x, x.shape[1])), x.shape[1])

    def encode(self, x):
        x = self.conv("encoder.conv_in", x, WIDTHS[0])
        for index, width in enumerate(WIDTHS):
            name = self.layout["down"].format(index)
            x = self.level(name, index, x, width, BLOCKS)
            if index < len(WIDTHS) - 1:
                x = self.conv(f"{name}.downsample.conv", F.pad(x, (0, 1, 0, 1)), width, stride=2, padding=0)
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder", x)))
        z = self.conv("quant_conv", self.conv("encoder.conv_out", x, LATENT), DIM, 1).movedim(1, -1)
        return torch.cdist(self.unit(z).double().flatten(0, 2), self.codes().double()).argmin(1).view(z.shape[:3])

    def decode(self, codes):
        x = self.conv("post_quant_conv", self.codes()[codes].movedim(-1, 1), LATENT, 1)
        x = self.middle("decoder", self.conv("decoder.conv_in", x, WIDTHS[-1]))
        last = len(WIDTHS) - 1
        for index in reversed(range(len(WIDTHS))):
            name = self.layout["up"].format(last - index if self.layout is LLAMAGEN else index)
            x = self.level(name, index, x, WIDTHS[index], BLOCKS + 1)
            if index:
                x = self.conv(f"{name}.upsample.conv", F.interpolate(x, scale_factor=2.0), WIDTHS[index])
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)), 3)

    def unit(self, x):
        return F.normalize(x, dim=-1) if self.normalise else x

    def codes(self):
        return self.unit(self.state["quantize.embedding.weight"])


@pytest.fixture(scope="module")
def taming():
    return Theirs(TAMING, attention=(1, 2), normalise=False)


@pytest.fixture(scope="module")
def llamagen():
    return Theirs(LLAMAGEN, attention=(2,), normalise=True)


@pytest.mark.parametrize(("kind", "read"), [("taming", vqgan_from_taming), ("llamagen", vqgan_from_llamagen)])
@torch.no_grad()
def test_codes_and_images_are_theirs(kind, read, request):
    theirs = request.getfixturevalue(kind)
    assert recognise(theirs.state) == kind
    model = read(theirs.state)
    assert model.config.strides == (4,) and model.config.encoder_attention == tuple(2**i for i in theirs.attention)
    images = torch.rand(2, 3, 24, 16) * 2 - 1
    codes = model.encode(images).codes
    assert torch.equal(codes, theirs.encode(images)) and codes.unique().numel() > 1
    codes = torch.randint(0, CODES, codes.shape)
    torch.testing.assert_close(model.decode(codes), theirs.decode(codes), rtol=1e-4, atol=1e-4)


def test_there_and_back(taming):
    model = vqgan_from_taming(taming.state)
    back = vqgan_to_taming(model)
    assert back.keys() == taming.state.keys()
    assert all(torch.equal(back[name], taming.state[name]) for name in back)
    again = vqgan_from_taming(back)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


class Callback:
    """What Lightning leaves in its checkpoints."""

    def __init__(self):
        self.best = 1.5


def test_whole_checkpoints(taming, llamagen, tmp_path):
    extra = {"loss.discriminator.main.0.weight": torch.zeros(1)}
    torch.save({"state_dict": taming.state | extra, "callbacks": {"c": Callback()}, "epoch": 3}, tmp_path / "last.ckpt")
    torch.save({"model": llamagen.state | {"quantize.codebook_used": torch.zeros(9)}, "steps": 1}, tmp_path / "vq.pt")
    assert vqgan_from_taming(load_official(tmp_path / "last.ckpt")).config.codebook_size == CODES
    assert vqgan_from_llamagen(load_official(tmp_path / "vq.pt")).config.dim == DIM
    second = {f"first_stage_model.{name}": tensor for name, tensor in taming.state.items()}
    second["transformer.tok_emb.weight"] = torch.zeros(1)
    assert recognise(second) == "taming" and vqgan_from_taming(second).config.channels == 32


def test_what_is_none_of_theirs(taming):
    assert recognise({"encoder.x": torch.zeros(1)}) is None
    assert recognise({"quantize.embedding.weight": torch.zeros(1)}) is None
    lacking = {name: tensor for name, tensor in taming.state.items() if name != "decoder.conv_out.bias"}
    with pytest.raises(ValueError, match=r"lacks decoder\.conv_out\.bias"):
        vqgan_from_taming(lacking)
    with pytest.raises(ValueError, match=r"has no place for quantize\.proj\.weight"):
        vqgan_from_taming(taming.state | {"quantize.proj.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"expected quantize\.embedding\.weight"):
        vqgan_from_taming({name: t for name, t in taming.state.items() if "embedding" not in name})
    with pytest.raises(ValueError, match="expected a VQGAN, got DQVAE"):
        vqgan_to_taming(DQVAE.from_preset("dqvae-dual-tiny"))
    with pytest.raises(ValueError, match="expected stem 1, 32 groups"):
        vqgan_to_taming(VQGAN.from_preset("vqgan-f8-tiny"))
    sizes = {"channels": 32, "latent_channels": 32, "groups": 32}
    for changes in (
        {"linear_path": True},
        {"decoder_multipliers": (1, 2, 2, 4)},
        {"decoder_attention": (4,)},
        {"decoder_attention": (1,)},
    ):
        with pytest.raises(ValueError, match="model: expected no linear path, and a decoder with its encoder's widths"):
            vqgan_to_taming(VQGAN.from_preset("vqgan-f8-tiny", **sizes, **changes))
