"""Model cards: what they say, and whose they are."""

import os

import huggingface_hub
import pytest

import dqcore
from dqcore.models.card import card_text

TINY = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}
ABOUT = {
    "data": "20 images",
    "protocol": "native size",
    "numbers": {"PSNR, dB": 21.23456, "codes": 300},
    "repo_id": "me/photos",
}


@pytest.fixture(scope="module")
def model():
    return dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY)


def test_it_says_what_is_known_and_what_is_not(model):
    text = card_text(model, ABOUT)
    for line in ("- Data: 20 images", "- Training: not stated", "- Protocol: native size", "- Licence: not stated"):
        assert f"\n{line}\n" in text
    assert "| PSNR, dB | 21.23 |\n| codes | 300 |" in text
    assert 'from dqcore import DQVAE\n\nmodel = DQVAE.from_pretrained("hf:me/photos")' in text


def test_the_hub_reads_it(model, tmp_path):
    model.save_pretrained(tmp_path, model_card_kwargs={**ABOUT, "license": "mit"})
    data = huggingface_hub.ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.license) == ("dqcore", "mit")
    assert set(data.tags) == {"dqcore", "image-tokenizer", "vector-quantization"}


def test_its_code_runs(new, tmp_path):
    """For a class that is not among the public names too."""
    prior = new("raster", granularities=1)
    prior.save_pretrained(tmp_path, model_card_kwargs={"repo_id": "me/photos"})
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("hf:me/photos", str(tmp_path))
    namespace = {}
    exec(code, namespace)
    assert namespace["model"].config == prior.config


def test_ours_is_renewed_and_a_persons_left_alone(model, tmp_path):
    card = tmp_path / "README.md"
    model.save_pretrained(tmp_path)
    assert "21.23" not in card.read_text()
    model.save_pretrained(tmp_path, model_card_kwargs=ABOUT)
    assert "21.23" in card.read_text()
    for text in (card.read_text().replace("20 images", "20 images of my cat"), "# Mine\n", "", card.read_text()[:-9]):
        card.write_text(text)
        model.save_pretrained(tmp_path)
        assert card.read_text() == text


def test_a_folder_whose_name_is_not_utf_8(model, tmp_path):
    """Training writes the card after its last step."""
    card, about = tmp_path / "README.md", ABOUT | {"data": os.fsdecode(b"folder `caf\xe9`")}
    model.save_pretrained(tmp_path, model_card_kwargs=about)
    assert r"folder `caf\udce9`" in card.read_text()
    model.save_pretrained(tmp_path)
    assert "folder" not in card.read_text()  # it was known as ours
