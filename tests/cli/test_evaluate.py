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


def test_evaluate_passes_over_broken_files(run, fails, checkpoint, pictures, tmp_path):
    (pictures / "1b.png").write_bytes(b"no image")
    target = tmp_path / "numbers.json"
    code, out, err = run("evaluate", pictures, "--checkpoint", checkpoint, "--image-size", 32, "--json", target)
    assert code == 2 and target.is_file() and "images: 1 of 5 could not be read and were passed over" in err
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


def test_a_file_that_cannot_be_written_is_refused_before_the_work(fails, monkeypatch, pictures):
    monkeypatch.setattr("dqcore.cli.evaluate_sets.evaluate_photos", lambda *_, **__: pytest.fail("measured"))
    message = fails("evaluate", pictures, "--json", pictures / "0.png" / "r.json")
    assert "json: " in message and f"{pictures / '0.png'} is no folder" in message


def test_numbers_are_kept_before_they_are_printed(run, checkpoint, pictures, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("nothing can be printed")

    for module in ("evaluate", "evaluate_sets"):
        monkeypatch.setattr(f"dqcore.cli.{module}.print_rows", refuse)
    for name, words in (("one", ("--checkpoint", checkpoint)), ("pair", ("--compare", checkpoint, checkpoint))):
        target = tmp_path / f"{name}.json"
        code, _, err = run("evaluate", pictures / "0.png", "--no-peers", *words, "--json", target)
        assert code == 2 and "nothing can be printed" in err
        assert ("psnr" if name == "one" else "numbers") in json.loads(target.read_text())


def test_two_tokenizers_side_by_side(run, fails, checkpoint, pictures, tmp_path):
    args = ("evaluate", pictures, "--limit", 3, "--size", 32)
    code, out, _ = run(*args, "--compare", checkpoint, checkpoint, "--json", tmp_path / "pair.json")
    assert code == 0 and re.search(r"^PSNR +([\d.]+) +\1 +\+0\.000 ± 0\.000 dB$", out, re.MULTILINE)
    stored = json.loads((tmp_path / "pair.json").read_text())
    assert stored["numbers"]["psnr"]["difference"] == 0 and stored["images"] == 3
    for name, size in (("a", 32), ("b", 32), ("c", 48)):
        run(*args[:-1], size, "--checkpoint", checkpoint, "--no-peers", "--json", tmp_path / f"{name}.json")
    code, again, _ = run("evaluate", "--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 0 and again.splitlines()[3:] == out.splitlines()[3:]
    message = fails("evaluate", "--compare", tmp_path / "a.json", tmp_path / "b.json", "--size", 32)
    assert "size: not with compare" in message  # of two files nothing is measured
    message = fails("evaluate", "--compare", tmp_path / "a.json", tmp_path / "c.json")
    assert "compare: these results were not measured alike: protocol 'central 32x32" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--compare", "a", "b"), "images: expected at least one file or folder, or two files of results"),
        (("--compare", "a", "b", "--checkpoint", "c"), "compare: not with checkpoint"),
        (("photos", "--compare", "a", "b", "--twin", "c"), "twin: not with compare"),
        (("--samples", "a"), "samples: expected together with reference"),
        (("photos", "--samples", "a", "--reference", "b"), "samples: not with images, checkpoint or compare"),
        (("--samples", "a", "--reference", "b", "--num-codes", 5), "num_codes: not with samples"),
    ],
)
def test_ways_to_call_it_are_not_mixed(fails, words, message):
    assert message in fails("evaluate", *words)


def test_samples(fails, pictures):
    words = ("evaluate", "--samples", pictures, "--reference", pictures, "--metrics", "fid")
    message = fails(*words, "--inception-weights", pictures / "gone.pth")
    assert "gone.pth" in message or "pip install 'dqcore[metrics]'" in message
