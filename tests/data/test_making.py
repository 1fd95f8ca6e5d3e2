import os

import pytest
from PIL import Image

from dqcore.data.making import Making


@pytest.mark.parametrize("name", [b"a\xff\xfe", "ü".encode()], ids=["not-utf8", "utf8"])
def test_random_crops_of_a_photo_of_any_name(tmp_path, name):
    path = tmp_path / os.fsdecode(name + b".png")
    with open(path, "wb") as file:
        Image.effect_noise((40, 30), 90).convert("RGB").save(file, "PNG")
    making = Making(size=8, resize=24, crop="random", crops=3)
    files = making.files(path, path.stem)
    assert [name for name, _ in files] == [f"{path.stem}-{number:03d}.png" for number in range(3)]
    assert files == making.files(path, path.stem) and len({data for _, data in files}) == 3
