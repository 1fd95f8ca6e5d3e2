"""DQ-VAE: its presets, shapes, values and gradients."""

import itertools

import pytest
import torch
from small_dqvae import TINY, build, detailed

from dqcore import DQVAE
from dqcore.codebook.modules import count_numbers
from dqcore.models.tokenizers.dqvae import PRESETS

COUNTS = {"dqvae-dual": 48_098_437, "dqvae-dual-entropy": 47_833_731, "dqvae-triple": 74_010_502}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameter_counts_are_the_papers(name, count):
    with torch.device("meta"):
        model = DQVAE.from_preset(name)
    assert sum(count_numbers(model)) == count


@pytest.mark.parametrize("name", PRESETS)
def test_presets_construct(name):
    with torch.device("meta"):
        assert DQVAE.from_preset(name).config == PRESETS[name]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)], ids=str)
def test_shapes_at_any_multiple_of_the_coarsest_stride(name, size):
    model = DQVAE.from_preset(name).eval()
    images = detailed(2, *size)
    coarse, fine = model.config.strides[0], model.config.strides[-1]
    encoding, output = model.encode(images), model(images)
    assert encoding.codes.shape == (2, size[0] // fine, size[1] // fine)
    assert encoding.grain.shape == (2, size[0] // coarse, size[1] // coarse)
    assert encoding.quantized.shape == (2, model.config.dim, *encoding.codes.shape[1:])
    assert output.reconstruction.shape == images.shape
    if "entropy" in name:
        assert encoding.gate_logits is None and encoding.entropy.shape == encoding.grain.shape
        assert output.budget_loss == 0
    else:
        assert encoding.gate_logits.shape == (*encoding.grain.shape, model.config.num_granularities)
        assert encoding.entropy is None


@pytest.mark.parametrize("name", TINY)
def test_forward_is_decode_of_encode(name):
    model = build(name)
    images = detailed(2)
    with torch.no_grad():
        encoding, output = model.encode(images), model(images)
        assert torch.equal(output.codes, encoding.codes)
        assert torch.equal(output.grain, encoding.grain)
        assert len(encoding.codes.unique()) > 20
        torch.testing.assert_close(model.decode(encoding.codes, encoding.grain), output.reconstruction)
        torch.testing.assert_close(model.decode(encoding.codes), output.reconstruction)
        assert torch.equal(model(images).reconstruction, output.reconstruction)


def test_an_encoding_is_read_from_a_file_of_torch_save(tmp_path):
    encoding = DQVAE.from_preset("dqvae-dual-tiny").eval().encode(detailed(1, 32, 32))
    torch.save(encoding, tmp_path / "encoding.pt")
    found = torch.load(tmp_path / "encoding.pt")
    assert type(found) is type(encoding) and torch.equal(found.quantized, encoding.quantized)


def test_a_coarse_code_fills_its_block():
    model = build("dqvae-triple-tiny")
    encoding = model.encode(detailed(1), ratio=(0.4, 0.2))
    for row, column in itertools.product(range(2), range(3)):
        block = encoding.codes[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        side = 4 // 2 ** int(encoding.grain[0, row, column])
        corners = block[::side, ::side]
        assert torch.equal(block, corners.repeat_interleave(side, 0).repeat_interleave(side, 1))


@pytest.mark.parametrize("name", TINY)
def test_an_image_does_not_depend_on_its_batch(name):
    model = build(name)
    images = detailed(3)
    with torch.no_grad():
        batch = model.encode(images)
        ranked = model.encode(images, num_codes=30)
        for index in range(3):
            alone = model.encode(images[index : index + 1])
            assert torch.equal(alone.codes[0], batch.codes[index])
            assert torch.equal(alone.grain[0], batch.grain[index])
            alone = model.encode(images[index : index + 1], num_codes=30)
            assert torch.equal(alone.codes[0], ranked.codes[index])


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_every_parameter(name):
    model = DQVAE.from_preset(name)
    output = model(detailed(2))
    (output.reconstruction.square().mean() + output.commitment_loss + output.budget_loss).backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert idle == []


def test_holes_decode():
    model = build("dqvae-dual-tiny")
    codes = model.encode(detailed(1)).codes
    holes = codes.clone()
    holes[:, -1, -1] = model.config.codebook_size
    whole, partial = model.decode(codes), model.decode(holes)
    assert partial.isfinite().all()
    assert not torch.equal(partial, whole)


@pytest.mark.parametrize("router", ["feature", "entropy", "gain"])
def test_compiles_whole(router):
    model = build("dqvae-dual-tiny", router=router)
    images = detailed(1, 32, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(images).codes, model(images).codes)


def test_trains_under_bfloat16_autocast():
    model = DQVAE.from_preset("dqvae-dual-tiny")
    with torch.autocast("cpu", torch.bfloat16):
        output = model(detailed(2))
    assert output.commitment_loss.dtype == output.budget_loss.dtype == torch.float32
    (output.reconstruction.float().square().mean() + output.commitment_loss + output.budget_loss).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_learns_an_image():
    model = DQVAE.from_preset("dqvae-dual-tiny", initialisation="kmeans")
    images = detailed(1, 32, 32).clamp(-0.5, 0.5).roll(3, 1).cumsum(2).tanh()
    optimiser = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(25):
        output = model(images)
        loss = (output.reconstruction - images).abs().mean()
        optimiser.zero_grad()
        (loss + output.commitment_loss + output.budget_loss).backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", TINY)
def test_choices_are_the_codes_at_every_granularity(name):
    """They teach no codebook, also where a model was left in training."""
    model, images = build(name), detailed(2)
    before = model.quantizer.codebook.weight.clone()
    found = model.train().choices(images)
    assert torch.equal(model.quantizer.codebook.weight, before)
    model.eval()
    features, routing = model.scan(images)
    assert len(found.codes) == len(features) == model.config.num_granularities
    for g, codes in enumerate(found.codes):
        assert torch.equal(codes, model.quantizer(features, torch.full_like(routing.grain, g)).codes)
        block = 2 ** (len(features) - 1 - g)
        assert torch.equal(codes, codes[:, ::block, ::block].repeat_interleave(block, 1).repeat_interleave(block, 2))
