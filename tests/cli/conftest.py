"""What the tests of the verbs share: a small tokenizer, pictures, and how to run the command line."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import dqcore
from dqcore import cli


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a saved tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", channels=8, latent_channels=16, dim=16, resolution=64)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    """A photo of odd size: noise on the left, smooth on the right."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    pixels[:, 60:] = np.linspace(0, 255, 70).astype(np.uint8)[None, :, None]
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pictures(tmp_path):
    """Folder of four noise images, one of another size, one in a folder of its own."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for index, size in enumerate([(64, 48), (64, 48), (50, 30), (64, 48)]):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if index == 3 else ".") / f"{index}.png")
    return folder


@pytest.fixture
def run(capsys):
    """Runs the command line; gives exit code, stdout, stderr."""

    def call(*args):
        code = cli.main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def fails(run):
    """Runs the command line with a mistake; gives the one line that it gets."""

    def call(*args):
        code, _, err = run(*args)
        assert code == 2
        assert re.fullmatch(r"dqcore: error: [^\n]+\n", err), err
        return err

    return call


def _expected(checkpoint, path, **options):
    """The picture that the model itself gives."""
    model = dqcore.DQVAE.from_pretrained(checkpoint)
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1) / 127.5 - 1
    height, width = pixels.shape[1:]
    padded = torch.nn.functional.pad(pixels[None], (0, -width % 16, 0, -height % 16), mode="replicate")
    with torch.no_grad():
        encoding = model.encode(padded, **options)
        result = model.decode(encoding.codes, encoding.grain)[0, :, :height, :width]
    return result.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()


@pytest.fixture
def expected():
    """``expected(checkpoint, path, **options)``: the picture that the model itself gives."""
    return _expected
