"""``dqcore reconstruct``."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from dqcore.data.images import image_to_tensor, read_image
from dqcore.data.photos import sample_photos
from dqcore.metrics import psnr


def test_the_reconstruction_itself(run, checkpoint, pictures, tmp_path):
    """The picture that is written has the PSNR that is printed."""
    common = ("--checkpoint", checkpoint, "--out", tmp_path / "o")
    code, out, _ = run("reconstruct", pictures / "2.png", *common)
    assert code == 0
    pair = [image_to_tensor(read_image(path))[None] for path in (pictures / "2.png", tmp_path / "o" / "2.png")]
    found = re.search(r"2\.png: ([\d.]+) dB, \d+ codes, (\d+) bytes \(([\d.]+) bits/pixel as written", out)
    assert float(found[1]) == pytest.approx(psnr(*pair).item(), abs=0.005)
    assert float(found[3]) == pytest.approx(8 * int(found[2]) / (50 * 30), abs=1e-4)
    assert " 18 codes" in run("reconstruct", pictures / "0.png", *common, "--num-codes", 18)[1]


def test_the_strip(run, checkpoint, pictures, tmp_path):
    assert (
        run("reconstruct", pictures / "2.png", "--strip", "--checkpoint", checkpoint, "--out", tmp_path / "o")[0] == 0
    )
    with Image.open(tmp_path / "o" / "2.png") as picture, Image.open(pictures / "2.png") as original:
        assert picture.size == (3 * 50 + 8, 30)
        assert np.array_equal(np.asarray(picture)[:, :50], np.asarray(original))


def test_folders_and_a_broken_file(run, checkpoint, pictures, tmp_path):
    (pictures / "1b.png").write_bytes(b"no image")
    args = ("reconstruct", pictures, "--checkpoint", checkpoint, "--out", tmp_path / "o")
    code, out, err = run(*args)
    assert code == 2
    assert "broken: " in err and "1b.png" in err and "1 of 5 could not be read" in err
    assert re.search(r"^4 images, [\d.]+ dB \(native size, 8-bit\)$", out, re.MULTILINE)
    made = sorted(path.relative_to(tmp_path / "o").as_posix() for path in (tmp_path / "o").rglob("*.png"))
    assert made == ["0.png", "1.png", "2.png", "more/3.png"]
    assert run(*args)[0] == 2  # again, over its own files


@pytest.mark.parametrize("verb", ["reconstruct", "evaluate", "encode"])
def test_a_photo_too_large_for_the_number_of_codes_is_passed_over(run, checkpoint, pictures, tmp_path, verb):
    Image.new("RGB", (128, 128)).save(pictures / "1b.png")  # 64 regions, where the others have 12
    words = (
        ("evaluate", "--no-peers", "--json", tmp_path / "o") if verb == "evaluate" else (verb, "--out", tmp_path / "o")
    )
    code, _, err = run(*words, pictures, "--checkpoint", checkpoint, "--num-codes", 30)
    assert code == 2 and "images: 1 of 5 " in err.replace("photos:", "images:")
    assert "1b.png: num_codes: expected at least 64, one for each region of 128x128 pixels, got 30" in err
    if verb == "reconstruct":
        assert len(list((tmp_path / "o").rglob("*.png"))) == 4
    else:
        text = (tmp_path / "o" / "index.json" if verb == "encode" else tmp_path / "o").read_text()
        assert len(json.loads(text)["images"]) == 4 if verb == "encode" else json.loads(text)["num_images"] == 4


def test_a_photo_too_large_for_a_stream_is_passed_over(run, checkpoint, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("dqcore.inference.encode_batch.MAX_PIXELS", 64 * 48)
    Image.new("RGB", (64, 49)).save(pictures / "1b.png")
    code, _, err = run("reconstruct", pictures, "--checkpoint", checkpoint, "--out", tmp_path / "o")
    assert code == 2 and "1b.png: 64x49 pixels are more than the 3072 that a .dqc stream may have" in err
    code, out, err = run("evaluate", pictures, "--checkpoint", checkpoint, "--no-peers")
    assert code == 2 and "images: 1 of 5 could not be read" in err and "PSNR" in out


def test_photos_that_differ_in_their_ending_are_called_as_encode_and_decode_call_them(run, checkpoint, tmp_path):
    photos, names = tmp_path / "photos", ("a.bmp", "a.jpg", "a.png", "d/a.jpg")
    for number, name in enumerate(names):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 * number, 0, 0)).save(photos / name)
    common = ("--checkpoint", checkpoint, "--out")
    for _ in range(2):  # over its own pictures it writes again
        assert run("reconstruct", photos, *common, tmp_path / "o")[0] == 0
    assert run("encode", photos, "--format", "dqc", *common, tmp_path / "streams")[0] == 0
    assert run("decode", tmp_path / "streams", *common, tmp_path / "back")[0] == 0
    back = {path.relative_to(tmp_path / "back"): path for path in (tmp_path / "back").rglob("*.png") if path.is_file()}
    assert len(back) == len(names) and {str(path) for path in back} >= {"a.png", "a.jpg.png", "a.png.png", "d/a.png"}
    for name, path in back.items():
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(tmp_path / "o" / name))), name


def test_a_picture_is_not_called_as_the_folder_of_another(run, checkpoint, tmp_path):
    for name in ("b.png/c.png", "b.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "photos" / name)
    out = tmp_path / "o"
    assert run("reconstruct", tmp_path / "photos", "--checkpoint", checkpoint, "--out", out)[0] == 0
    assert (out / "b.png" / "c.png").is_file() and (out / "b.jpg.png").is_file()


def test_reconstruct_refuses(fails, checkpoint, pictures, tmp_path):
    common = ("--checkpoint", checkpoint, "--out", tmp_path / "o")
    assert "would overwrite" in fails("reconstruct", pictures / "0.png", "--checkpoint", checkpoint, "--out", pictures)
    (pictures / "other").mkdir()
    Image.open(pictures / "1.png").save(pictures / "other" / "0.png")
    both = fails("reconstruct", pictures / "0.png", pictures / "other" / "0.png", *common)
    assert "would both be called 0.png" in both
    assert "expected at least one" in fails("reconstruct", *common)
    assert "ratio" in fails("reconstruct", pictures / "0.png", *common, "--ratio", 1.5)
    assert "no cuda:77" in fails("reconstruct", pictures / "0.png", *common, "--device", "cuda:77")
    assert not (tmp_path / "o").exists()
    (tmp_path / "o").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "o" / "0.png")
    assert "was not made by dqcore" in fails("reconstruct", pictures / "0.png", *common)


def test_a_damaged_checkpoint(fails, checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes()[:200])
    args = ("reconstruct", sample_photos("heldout")[0], "--out", tmp_path / "o")
    assert "config.json" in fails(*args, "--checkpoint", tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert "not a safetensors file" in fails(*args, "--checkpoint", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "expected a folder with config.json" in fails(*args, "--checkpoint", tmp_path / "empty")


def test_results_are_no_photos_of_the_next_run(run, checkpoint, pictures):
    """Where they go lies within what is named."""
    out = pictures / "out"
    for _ in range(2):
        code, said, err = run("reconstruct", pictures, "--checkpoint", checkpoint, "--out", out)
        assert code == 0 and "4 images" in said
    assert f"left out: 4 images in {out}" in err and len(list(out.rglob("*.png"))) == 4
