"""What the tests of the experiments share: networks and photographs so small that an arm takes a moment."""

import random

import pytest
from PIL import Image, ImageDraw

from dqcore.experiments import Setting, find_photos, run_experiments
from dqcore.experiments.scales import Scale

TINY = Scale(
    name="tiny",
    device="cpu",
    preset="dqvae-small",
    tokenizer={"recipe": "small", "steps": 2, "batch_size": 2, "image_size": 32, "resize": 64}
    | {"log_every": 1, "validate_every": 1},
    prior={"recipe": "small", "image_size": 32, "resize": 48, "views": 1, "steps": 2, "token_budget": 60}
    | {"validation_share": 0.25, "log_every": 1, "validate_every": 1},
    size="tiny",
    layers=((1, 2), (2, 1)),
    ratios=(0.3, 0.5),
    random_ratios=(0.5,),
    validation_photos=1,
    test_photos=2,
    samples=2,
    keep_every=1,
    adversarial={"recipe": "small-adversarial", "discriminator_dim": 4},
    seconds={"tokenizer": 1, "prior": 1, "measure": 1},
    model={"codebook_size": 16, "dim": 8, "latent_channels": 64, "channels": 8, "initialisation": "uniform"},
)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder with train/ and val/, discs on plain ground."""
    folder, rng = tmp_path_factory.mktemp("photos"), random.Random(0)
    for index in range(10):
        image = Image.new("RGB", (48, 50), tuple(rng.randrange(40, 216) for _ in range(3)))
        for _ in range(3):
            x, y, size = rng.randrange(40), rng.randrange(36), rng.randrange(6, 20)
            fill = tuple(rng.randrange(40, 216) for _ in range(3))
            ImageDraw.Draw(image).ellipse((x, y, x + size, y + size), fill=fill)
        part = folder / ("val" if index > 7 else "train")
        part.mkdir(exist_ok=True)
        image.save(part / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def setting_in(photos):
    """Makes a setting that writes into a folder."""

    def make(out, minutes=None, scale=TINY, test=None):
        return Setting(scale, find_photos(photos, test, scale), out, minutes, {"dqcore": "0", "commit": None})

    return make


@pytest.fixture(scope="session")
def run_all(setting_in, tmp_path_factory):
    """Runs an experiment with one seed in a folder that all tests share, so that arms in common are trained once."""
    setting = setting_in(tmp_path_factory.mktemp("experiments"))

    def run(experiment, seeds=1):
        lines = []
        run_experiments([experiment], setting, seeds, say=lines.append)
        return setting, lines

    return run
