"""The verbs in several processes: each photo once, and the same files and numbers as from one."""

import hashlib
import json
import random

import pytest
import torch
from PIL import Image
from processes import launch, start

import dqcore
from dqcore.cli import main
from dqcore.files.sealed import read_sealed
from dqcore.files.tensors import read_state
from dqcore.models.auto import fingerprint

VERBS = """
import json, os, sys
from dqcore.cli import main

for words in json.load(open(sys.argv[1])):
    print("--", words[0], flush=True)
    code = main(words)
    if code != (2 if words[0] in ("encode", "evaluate") and os.environ["RANK"] == "0" else 0):  # of broken files
        raise SystemExit(code or 99)
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
    prior = ["train", "prior", "--data", photos, "--tokenizer", f"{root}/tokenizer", "--device", "cpu", "--steps", "1"]
    prior += ["--preset", "dqtransformer-tiny", "--image-size", "32", "--token-budget", "100", "--timeout", "60"]
    return [
        [*encode, "--out", f"{out}/shards", "--shard-size", "16"],
        [*encode, "--out", f"{out}/streams", "--format", "dqc"],
        ["decode", f"{out}/shards", *checkpoint, "--out", f"{out}/pictures"],
        ["evaluate", photos, *checkpoint, "--json", f"{out}/numbers.json", "--ratios", "0.5", "--twin", checkpoint[1]],
        [*sample, "--count", "10", "--batch-size", "2", "--out", f"{out}/samples", "--seed", "4"],
        [*prior, "--encode-batch", "4", "--views", "2", "--validation-share", "0", "--out", f"{out}/run"],
    ]


def run(root, out, size):
    out.mkdir()
    lines = out.with_suffix(".json")
    lines.write_text(json.dumps(verbs(root, out)))
    return launch(VERBS, lines, size=size)


def contents(out):
    """Hash of every file, by its name."""
    folders = ("shards", "streams", "pictures", "samples", "run/model/tokenizer")
    files = [path for name in folders for path in (out / name).rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def close(found, expected, within=1e-6):
    """Equal, numbers within 1e-6; one photo's within 1e-4: in another batch a pixel may round otherwise."""
    if isinstance(expected, dict):
        limits = {name: 1e-4 if name == "each" else within for name in expected}
        return found.keys() == expected.keys() and all(close(found[n], expected[n], limits[n]) for n in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(close(*pair, within) for pair in zip(found, expected, strict=True))
    return (
        found == pytest.approx(expected, rel=within, abs=within) if isinstance(expected, float) else found == expected
    )


@pytest.fixture(scope="module")
def alone(folder):
    """What one process makes."""
    out = folder / "alone"
    out.mkdir()
    for words in verbs(folder, out):
        assert main(words) == (2 if words[0] in ("encode", "evaluate") else 0)
    return out


@pytest.mark.slow
def test_every_verb_makes_what_one_process_makes(folder, alone):
    size = 3  # which does not divide what there is
    out = folder / f"of-{size}"
    results = run(folder, out, size)
    assert [code for code, _, _ in results] == [0] * size, [err for _, _, err in results]
    assert contents(out) == contents(alone)
    numbers, expected = (read_sealed(place / "numbers.json") for place in (out, alone))
    assert close(numbers, expected)
    codes, expected = (read_state(place / "run" / "codes.pt") for place in (out, alone))
    assert codes["names"] == expected["names"] and len(codes["names"]) == 39
    for name in ("codes", "positions", "grains", "ends", "labels"):
        assert torch.equal(codes[name], expected[name]), name
    assert "39 images" in results[0][1] and results[0][1].count("2 broken files") == 2
    assert "39 pictures decoded, 0 not" in results[0][1] and "10 images in" in results[0][1]
    assert results[0][1].count("model in") == 1
    for _, text, err in results[1:]:
        assert not err and all(line.startswith("--") for line in text.splitlines())


SAMPLES = """
import sys
import torch
from dqcore.cli import main
from dqcore.inference import sets
from dqcore.metrics.networks import FeatureNetwork

torch.manual_seed(0)
convolution = torch.nn.Conv2d(3, 8, 3, stride=2)
features = FeatureNetwork("Tiny", "Tiny 0123", lambda pixels: convolution(pixels.float()).mean((2, 3)))
sets.load_network = lambda options: features
samples, json = sys.argv[1:]
sys.exit(main(["evaluate", "--samples", samples, "--reference", samples, "--size", "32", "--json", json]))
"""


@pytest.mark.slow
def test_samples_are_measured_together_and_said_once(folder, tmp_path):
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed: dqcore[metrics]")
    numbers, texts = [], []
    for size in (1, 2):
        results = launch(SAMPLES, folder / "photos", tmp_path / f"{size}.json", size=size)
        assert [code for code, _, _ in results] == [2] + [0] * (size - 1), [err for _, _, err in results]
        numbers.append((tmp_path / f"{size}.json").read_bytes())
        texts.append("".join(out for _, out, _ in results))
        assert "could not be read and were passed over" in results[0][2]
    assert numbers[0] == numbers[1] and texts[0] == texts[1]
    assert json.loads(numbers[0])["measured"]["samples"] == 39


FAULTS = """
import json, os, signal, sys
from dqcore.cli import main
from dqcore.errors import InputError
from dqcore.inference import encode_shards

def lost(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def stopped(*_):
    os.kill(os.getpid(), signal.SIGSTOP)

def failing(*_):
    raise InputError("photo: this process alone cannot go on")

if os.environ["RANK"] == "1":
    encode_shards._encode = {"lost": lost, "stopped": stopped, "failing": failing}[sys.argv[1]]
raise SystemExit(main(json.loads(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        ("lost", 1, "error: another process ended, or did not answer in time (--timeout)"),
        ("stopped", 1, "error: another process ended, or did not answer in time (--timeout)"),
        ("failing", 2, "error: photo: this process alone cannot go on"),
    ],
)
def test_a_process_that_fails_ends_all_with_one_line(folder, fault, code, line):
    words = verbs(folder, folder / fault)[0] + ["--timeout", "8"]
    processes = start(FAULTS, fault, json.dumps(words), size=2)
    try:
        texts = [process.communicate(timeout=100)[1] for process in processes[: 1 + (fault == "failing")]]
        codes = [process.wait(30) for process in processes[: len(texts)]]
    finally:
        for process in processes:
            process.kill()
    assert all(codes) and codes[-1] == code
    told = [line for text in texts for line in text.splitlines() if line]
    assert len(told) == 1 and told[0].startswith(f"dqcore: {line}")


@pytest.mark.slow
def test_a_mistake_in_the_command_line_is_one_before_any_store_is_there():
    script = "import sys; from dqcore.cli import main; sys.exit(main(sys.argv[1:]))"
    for code, out, err in launch(script, "train", "tokenizer", "--data", "photos", "--crop", "32", size=2):
        assert code == 2 and not out
        assert err.startswith("dqcore: error: --crop: expected one of center, ") and err.count("\n") == 1, err
