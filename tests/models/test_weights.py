"""The weights that come with the package, and the verbs that take them where no checkpoint is named."""

import json
import re
from dataclasses import replace

import pytest
import torch

import dqcore
from dqcore.cli import main
from dqcore.data.images import image_to_tensor, read_image
from dqcore.data.photos import sample_photos
from dqcore.data.provenance import provenance
from dqcore.inference.codec import load_codec
from dqcore.inference.reconstruct import reconstruct
from dqcore.inference.sample import load_pair
from dqcore.models.auto import fingerprint
from dqcore.models.weights import PRIOR, TOKENIZER, weights_folder

FOLDER = weights_folder(TOKENIZER)


@pytest.fixture(scope="module")
def model():
    return dqcore.DQVAE.from_preset(TOKENIZER, pretrained=True)


def test_they_are_small_and_of_their_preset(model):
    assert (FOLDER / "model.safetensors").stat().st_size <= 12e6
    assert not model.training
    preset = dqcore.DQVAE.PRESETS[TOKENIZER]
    assert model.config == replace(preset, resolution=model.config.resolution)  # which only positions look at
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values() if tensor.is_floating_point())


def test_they_make_photographs_recognisable(model):
    results = [reconstruct(model, image_to_tensor(read_image(path))) for path in sample_photos("heldout")]
    assert sum(result.psnr for result in results) / len(results) > 22
    fine = torch.cat([result.grain.flatten() for result in results]).double().mean()
    assert abs(fine - 0.5) < 0.15
    for result in results:
        image, back = result.image, result.reconstruction
        assert (back[0] - back[2]).std() > 0.5 * (image[0] - image[2]).std(), "colour"


def test_more_codes_are_better(model):
    image = image_to_tensor(read_image(sample_photos("heldout")[0]))
    assert [reconstruct(model, image, ratio=r).psnr for r in (0.0, 0.5, 1.0)] == sorted(
        reconstruct(model, image, ratio=r).psnr for r in (0.0, 0.5, 1.0)
    )


def test_their_tables_shorten_streams(model):
    codec = load_codec(FOLDER, "cpu")
    image = image_to_tensor(read_image(sample_photos("heldout")[0]))
    encoding = model.encode(image[None])
    codes = int((4**encoding.grain).sum())
    size = len(codec.write(encoding.codes[0], encoding.grain[0], (image.shape[1], image.shape[2])))
    assert size * 8 < codes * 11 + encoding.grain.numel() + 8 * 60, "11 bits a code, a bit a region, a header"


def test_the_sample_photographs_are_held_out_of_them():
    photos = sample_photos("heldout") + sample_photos("train")
    assert set(provenance(FOLDER, photos)) == {"held out"}


@pytest.mark.parametrize("name", [TOKENIZER, PRIOR])
def test_the_cards_say_what_they_are(name):
    card = (weights_folder(name) / "README.md").read_text()
    assert "CC BY-SA 4.0" in card and name in card
    assert not re.search(r"@[A-Z]+@|TODO", card)


def test_the_card_counts_the_photographs():
    card = (FOLDER / "README.md").read_text()
    photographs = sum(int(number) for number in re.findall(r"\| (\d+) \|", card))
    seen = json.loads((FOLDER / "seen_images.json").read_text())["training"]
    files, held_out, both, said = re.findall(r"(\d+) files; (\d+) more .* all (\d+) are of the (\d+) ", card)[0]
    assert (int(files), int(said)) == (len(seen), photographs)
    assert int(files) + int(held_out) == int(both) and f"each of the {files}" in card


def test_the_cards_describe_the_networks(model):
    prior = dqcore.DQTransformer.from_preset(PRIOR, pretrained=True)
    for name, network in ((TOKENIZER, model), (PRIOR, prior)):
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        assert f"| {millions:.1f} M parameters" in (weights_folder(name) / "README.md").read_text()
    config, card = prior.config, (weights_folder(PRIOR) / "README.md").read_text()
    assert f"; {config.position_layers} position layers, {config.content_layers} content layers, " in card
    assert f" {config.dim} channels, {config.num_heads} heads |" in card
    rows, columns = config.region_grid
    assert f"{rows} x {columns} regions of one code or four, {config.codebook_size} codes" in card
    assert f"{16 * rows} x {16 * columns} pixels" in card.replace("\n", " ")
    mean = int(re.findall(r"(\d+) codes an image on average", card)[0])
    assert f"are {11 * mean + rows * columns:,} |" in card
    strides = " and ".join(map(str, model.config.strides))
    said = f"strides {strides}, one codebook of {model.config.codebook_size} codes of {model.config.dim} channels"
    assert said in (FOLDER / "README.md").read_text()


def test_verbs_take_them(tmp_path, capsys):
    photo = sample_photos("heldout")[0]
    assert main(["reconstruct", str(photo), "--out", str(tmp_path / "pictures")]) == 0
    assert main(["encode", str(photo), "-o", str(tmp_path / "photo.dqc"), "--bpp", "0.15"]) == 0
    assert main(["decode", str(tmp_path / "photo.dqc"), "-o", str(tmp_path / "photo.png")]) == 0
    assert main(["evaluate", str(photo), "--json", str(tmp_path / "numbers.json")]) == 0
    assert "held out" in capsys.readouterr().out
    assert (tmp_path / "photo.dqc").stat().st_size * 8 <= 0.15 * 128 * 128


def test_the_prior_is_small_and_draws_what_the_tokenizer_decodes():
    folder = weights_folder(PRIOR)
    assert (folder / "model.safetensors").stat().st_size <= 12e6
    prior, tokenizer = load_pair(folder)
    assert not prior.training and not tokenizer.training
    assert prior.config.tokenizer == fingerprint(FOLDER)
    assert prior.config == dqcore.DQTransformer.from_preset(PRIOR, pretrained=True).config


def test_verbs_take_the_prior(tmp_path):
    rows, columns = dqcore.DQTransformer.from_preset(PRIOR, pretrained=True).config.region_grid
    size = (16 * columns, 16 * rows)
    assert main(["sample", "--count", "1", "--out", str(tmp_path / "samples")]) == 0
    assert read_image(tmp_path / "samples" / "00000.png").size == size
    photo = sample_photos("heldout")[0]
    words = ["complete", str(photo), "--count", "1", "--out", str(tmp_path / "completions")]
    assert main(words) == 0
    assert read_image(tmp_path / "completions" / f"{photo.stem}-1.png").size == size
