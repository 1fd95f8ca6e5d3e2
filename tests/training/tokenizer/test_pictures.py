"""The pictures of a training run: which photos, and what stands in which row."""

import itertools

import torch
from PIL import Image

from dqcore.drawing import granularity_colour
from dqcore.training.tokenizer.pictures import read_shown, show


def test_photos_reconstructions_and_grain_maps(tiny):
    model = tiny().train()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    model(images)  # the codebook starts from the first batch
    picture = show(model, images)
    assert picture.shape == (3, 96, 64) and not model.training
    with torch.no_grad():
        output = model(images)
    assert torch.equal(picture[:, :32, 32:], images[1])
    assert torch.allclose(picture[:, 32:64, :32], output.reconstruction[0].clamp(-1, 1))
    assert output.grain.unique().tolist() == [0, 1]
    colours = torch.tensor([granularity_colour(g, 2) for g in (0, 1)]) / 127.5 - 1
    region = 32 // output.grain.shape[-1]
    for y, x in itertools.product(range(32), range(64)):
        colour = colours[output.grain[x // 32, y // region, x % 32 // region]]
        wanted = 0.6 * images[x // 32, :, y, x % 32].mean() + 0.4 * colour
        assert torch.allclose(picture[:, 64 + y, x], wanted, atol=1e-6)


def test_the_first_readable_photos(tmp_path):
    for index in range(6):
        Image.new("RGB", (40 + index, 30), (index * 40, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes(b"none")
    found = read_shown(sorted(tmp_path.iterdir()), 16, 20)
    assert found.shape == (4, 3, 16, 16)
    assert [round(float(image[0].mean() + 1) * 127.5 / 40) for image in found] == [0, 2, 3, 4]
    assert torch.equal(found[0][1:], torch.full((2, 16, 16), -1.0))
    assert read_shown([tmp_path / "1.png"], 16, 20) is None and read_shown([], 16, 20) is None
