"""``dqcore evaluate``."""

import json
import re

import pytest

from dqcore.data.photos import sample_folder


def test_evaluate(run, checkpoint, tmp_path):
    target = tmp_path / "numbers.json"
    args = ("evaluate", sample_folder("heldout"), "--checkpoint", checkpoint, "--json", target)
    code, out, _ = run(*args, "--limit", 4, "--seed", 5, "--image-size", 96, "--ratio", 0.25)
    assert code == 0
    numbers = json.loads(target.read_text())
    assert numbers["num_images"] == numbers["protocol"]["images"] == 4
    assert numbers["ratios"] == [0.75, 0.25]
    assert numbers["codes_per_image"] == 36 * 1.75
    assert f"{numbers['psnr']:.2f} dB" in out
    first = numbers["protocol"]["data hash"]
    run(*args, "--limit", 4, "--seed", 6)
    other = json.loads(target.read_text())["protocol"]
    assert other["data hash"] != first
    assert other["image size"] == 64  # what the model was made for
    run(*args, "--limit", 4, "--seed", 5)
    assert json.loads(target.read_text())["protocol"]["data hash"] == first


def test_evaluate_passes_over_broken_files(run, fails, checkpoint, pictures):
    (pictures / "1b.png").write_bytes(b"no image")
    code, out, err = run("evaluate", pictures, "--checkpoint", checkpoint, "--image-size", 32)
    assert code == 0
    assert re.search(r"^images +4$", out, re.MULTILINE)
    assert "1b.png" in err
    assert "multiple of 16" in fails("evaluate", pictures, "--checkpoint", checkpoint, "--image-size", 40)


@pytest.mark.parametrize("flag", ["--vgg-weights", "--perceptual-weights"])
def test_the_file_of_weights_keeps_its_old_flag(fails, checkpoint, pictures, flag):
    assert "missing.pth" in fails("evaluate", pictures, "--checkpoint", checkpoint, flag, "missing.pth")
