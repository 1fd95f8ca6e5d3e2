"""README says which way training, reconstructing and sampling go through the files: they do, in that order."""

import re
import sys
from pathlib import Path

import pytest

import dqcore
from dqcore.cli import main
from dqcore.data.photos import sample_folder, sample_photos

FOLDER = Path(dqcore.__file__).parent
README = (Path(__file__).parents[1] / "README.md").read_text()
FLOWS = [
    [tuple(line.split()[:2]) for line in block.splitlines()]
    for block in re.findall(r"^```text\n((?:[\w/]+\.py \w+.*\n)+)```", README, re.MULTILINE)
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A tokenizer and a prior of two steps, and what is called first to last on the way to each."""
    root = tmp_path_factory.mktemp("flows")
    small = ("--image-size", "64", "--steps", "2", "--device", "cpu")
    photos = ("--data", sample_folder("heldout"))
    losses = ("--perceptual", "none", "--workers", "0", "--batch-size", "2", "--validation-share", "0.2")
    tokenizer = ("--out", root / "tokenizer", "--preset", "dqvae-dual-tiny")
    train = follow("train", "tokenizer", *photos, *tokenizer, *small, *losses)
    prior = ("--out", root / "prior", "--preset", "dqtransformer-tiny", "--tokenizer", root / "tokenizer")
    follow("train", "prior", *photos, *prior, *small)
    picture = follow(
        "reconstruct", sample_photos("heldout")[0], "--checkpoint", root / "tokenizer", "--out", root / "out"
    )
    sample = follow("sample", root / "prior", "--count", "2", "--out", root / "samples")
    return [train, picture, sample]


def follow(*words):
    """Functions of the package, as (file, name), in the order of their first calls."""
    called: dict[tuple[str, str], None] = {}

    def profile(frame, event, _):
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(f"{FOLDER}/"):
            called.setdefault((path[len(f"{FOLDER}/") :], frame.f_code.co_name))

    sys.setprofile(profile)
    try:
        code = main([str(word) for word in words])
    finally:
        sys.setprofile(None)
    assert code == 0
    return list(called)


def test_there_are_three_flows():
    assert len(FLOWS) == 3 and all(len(flow) >= 10 for flow in FLOWS)


@pytest.mark.parametrize("number", range(3), ids=["train", "reconstruct", "sample"])
def test_the_flow_is_the_readmes(runs, number):
    called = runs[number]
    missing = [step for step in FLOWS[number] if step not in called]
    assert not missing, missing
    places = [called.index(step) for step in FLOWS[number]]
    assert places == sorted(places), [
        step for step, a, b in zip(FLOWS[number], places, places[1:], strict=False) if a > b
    ]
