"""``dqcore evaluate``."""

import json
import re

import pytest

from dqcore.data.photos import sample_folder, sample_photos


def test_evaluate(run, checkpoint, tmp_path):
    target = tmp_path / "numbers.json"
    args = ("evaluate", sample_folder("heldout"), "--checkpoint", checkpoint, "--json", target)
    code, out, _ = run(*args, "--limit", 4, "--seed", 5, "--size", 96, "--ratio", 0.25)
    assert code == 0
    numbers = json.loads(target.read_text())
    assert numbers["num_images"] == numbers["measured"]["images"] == 4
    assert numbers["ratios"] == [0.75, 0.25]
    assert numbers["codes_per_image"] == 36 * 1.75
    assert f"{numbers['psnr']:.2f} dB" in out
    first = numbers["measured"]["data hash"]
    run(*args, "--limit", 4, "--seed", 6)
    other = json.loads(target.read_text())["measured"]
    assert other["data hash"] != first
    assert other["protocol"] == "native size, 8-bit" == json.loads(target.read_text())["protocol"]
    run(*args, "--limit", 4, "--seed", 5)
    assert json.loads(target.read_text())["measured"]["data hash"] == first


def test_evaluate_passes_over_broken_files(run, fails, checkpoint, pictures):
    (pictures / "1b.png").write_bytes(b"no image")
    code, out, err = run("evaluate", pictures, "--checkpoint", checkpoint, "--image-size", 32)
    assert code == 0
    assert re.search(r"^images +4$", out, re.MULTILINE)
    assert "1b.png" in err
    assert "at least 16" in fails("evaluate", pictures, "--checkpoint", checkpoint, "--image-size", 8)


def test_single_files_peers_and_a_curve(run, checkpoint):
    photo = sample_photos("heldout")[0]
    code, out, _ = run("evaluate", photo, "--checkpoint", checkpoint, "--ratios", 0, 1, "--twin", checkpoint)
    assert code == 0
    for text in ("PSNR .* dB .native size, 8-bit.", "JPEG .*its smallest file is larger", "twin .DQVAE.", "WebP"):
        assert re.search(text, out), text
    assert len(re.findall(r"^  [01] +[\d.]+ bits/pixel, \d+ bytes", out, re.MULTILINE)) == 2


@pytest.mark.parametrize("flag", ["--vgg-weights", "--perceptual-weights"])
def test_the_file_of_weights_keeps_its_old_flag(fails, checkpoint, pictures, flag):
    assert "missing.pth" in fails("evaluate", pictures, "--checkpoint", checkpoint, flag, "missing.pth")


def test_other_files_are_left_alone(fails, checkpoint, pictures, tmp_path):
    (tmp_path / "mine.json").write_text('{"mine": 1}')
    message = fails("evaluate", pictures, "--checkpoint", checkpoint, "--json", tmp_path / "mine.json")
    assert "holds no numbers of dqcore evaluate" in message and (tmp_path / "mine.json").read_text() == '{"mine": 1}'
