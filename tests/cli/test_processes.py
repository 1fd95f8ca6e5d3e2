"""The verbs in several processes: each photo once, and the same files and numbers as from one."""

import hashlib
import json
import random
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import dqcore
from dqcore.cli import main
from dqcore.models.auto import fingerprint

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the tests' helpers lie

from processes import launch

VERBS = """
import json, sys
from dqcore.cli import main

for words in json.load(open(sys.argv[1])):
    print("--", words[0], flush=True)
    code = main(words)
    if code:
        raise SystemExit(code)
"""

SIZES = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos, two of them broken and two of one name; a tokenizer; a prior."""
    root, rng = tmp_path_factory.mktemp("many"), random.Random(0)
    (root / "photos").mkdir()
    for number in range(40):
        size = (32, 32) if number % 5 else (48, 40)
        image = Image.frombytes("RGB", (6, 6), rng.randbytes(108)).resize(size, Image.Resampling.BICUBIC)
        image.save(root / "photos" / f"{number:02d}.png")
    for number in (7, 30):
        (root / "photos" / f"{number:02d}.png").write_bytes(b"no image")
    Image.new("RGB", (32, 32), (9, 99, 200)).save(root / "photos" / "03.jpg")
    torch.manual_seed(0)
    tokenizer = dqcore.DQVAE.from_preset("dqvae-dual-tiny", **SIZES)
    tokenizer.save_pretrained(root / "tokenizer")
    prior = dqcore.DQTransformer.from_preset(
        "dqtransformer-tiny", codebook_size=16, region_grid=(2, 2), tokenizer=fingerprint(root / "tokenizer")
    )
    prior.save_pretrained(root / "prior")
    return root


def verbs(root, out):
    """The command lines of all verbs, into ``out``."""
    photos, checkpoint = f"{root}/photos", ["--checkpoint", f"{root}/tokenizer", "--device", "cpu"]
    encode = ["encode", photos, *checkpoint, "--batch-size", "2"]
    sample = ["sample", f"{root}/prior", "--tokenizer", f"{root}/tokenizer", "--device", "cpu"]
    return [
        [*encode, "--out", f"{out}/shards", "--shard-size", "16"],
        [*encode, "--out", f"{out}/streams", "--format", "dqc"],
        ["decode", f"{out}/shards", *checkpoint, "--out", f"{out}/pictures"],
        ["evaluate", photos, *checkpoint, "--json", f"{out}/numbers.json", "--ratios", "0.5", "--twin", checkpoint[1]],
        [*sample, "--count", "10", "--batch-size", "2", "--out", f"{out}/samples", "--seed", "4"],
    ]


def run(root, out, size):
    out.mkdir()
    lines = out.with_suffix(".json")
    lines.write_text(json.dumps(verbs(root, out)))
    return launch(VERBS, lines, size=size)


def contents(out):
    """Hash of every file, by its name."""
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "numbers.json"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def close(found, expected):
    """Equal, numbers within 1e-6."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == pytest.approx(expected, rel=1e-6, abs=1e-6) if isinstance(expected, float) else found == expected


@pytest.fixture(scope="module")
def alone(folder):
    """What one process makes."""
    out = folder / "alone"
    out.mkdir()
    for words in verbs(folder, out):
        assert main(words) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_every_verb_makes_what_one_process_makes(folder, alone, size):
    out = folder / f"of-{size}"
    results = run(folder, out, size)
    assert [code for code, _, _ in results] == [0] * size, [err for _, _, err in results]
    assert contents(out) == contents(alone)
    numbers, expected = (json.loads((place / "numbers.json").read_text()) for place in (out, alone))
    assert close(numbers, expected)
    assert "39 images" in results[0][1] and results[0][1].count("2 broken files") == 2
    assert "39 pictures decoded, 0 not" in results[0][1] and "10 images in" in results[0][1]
    for _, text, err in results[1:]:
        assert not err and all(line.startswith("--") for line in text.splitlines())
