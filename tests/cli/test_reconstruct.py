"""``dqcore reconstruct``."""

import re

import numpy as np
from PIL import Image

from dqcore.data.photos import sample_photos


def test_reconstruct(run, checkpoint, pictures, tmp_path):
    common = ("--checkpoint", checkpoint, "--out", tmp_path / "o")
    code, out, _ = run("reconstruct", pictures / "2.png", pictures / "0.png", *common)
    assert code == 0
    with Image.open(tmp_path / "o" / "2.png") as picture, Image.open(pictures / "2.png") as original:
        assert picture.size == (3 * 50 + 8, 30)
        assert np.array_equal(np.asarray(picture)[:, :50], np.asarray(original))
    assert re.search(r"2\.png: [\d.]+ dB, \d+ codes, [\d.]+ bits/pixel", out)
    assert " 18 codes" in run("reconstruct", pictures / "0.png", *common, "--num-codes", 18)[1]


def test_reconstruct_refuses(fails, checkpoint, pictures, tmp_path):
    common = ("--checkpoint", checkpoint, "--out", tmp_path / "o")
    (pictures / "broken.png").write_bytes(b"no image")
    assert "broken.png" in fails("reconstruct", pictures / "broken.png", *common)
    assert "would overwrite" in fails("reconstruct", pictures / "0.png", "--checkpoint", checkpoint, "--out", pictures)
    twice = (pictures / "0.png", pictures / "more" / ".." / "0.png")
    assert "two of them" in fails("reconstruct", *twice, *common)
    assert "ratio" in fails("reconstruct", pictures / "0.png", *common, "--ratio", 1.5)
    assert "no cuda:77" in fails("reconstruct", pictures / "0.png", *common, "--device", "cuda:77")
    assert not (tmp_path / "o").exists()


def test_a_damaged_checkpoint(fails, checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes()[:200])
    args = ("reconstruct", sample_photos("heldout")[0], "--out", tmp_path / "o")
    assert "config.json" in fails(*args, "--checkpoint", tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert "not a safetensors file" in fails(*args, "--checkpoint", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "expected a folder with config.json" in fails(*args, "--checkpoint", tmp_path / "empty")
