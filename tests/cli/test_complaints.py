"""Mistakes on the command line that tyro would tell in its own words, or that once passed in silence."""

import pytest
from PIL import Image

from dqcore.cli.complaint import in_plain_words


@pytest.mark.parametrize(
    "words,message",
    [
        (("--bytes", "1e3"), "--bytes: expected a whole number, got '1e3'"),
        (("--ratio", "1/2"), "--ratio: expected a number, got '1/2'"),
        (("--batch-size", "2.5"), "--batch-size: expected a whole number, got '2.5'"),
        (("--ratio", "0.5", "--ratio", "0.9"), "ratio: it is there twice"),
        (("--bpp", "inf"), "bpp: expected more than 0, and a finite number, got inf"),
        (("--device", "meta"), "device: 'meta' cannot be used here"),
    ],
)
def test_values(fails, pictures, tmp_path, words, message):
    assert message in fails("encode", pictures / "0.png", "-o", tmp_path / "a.dqc", *words)
    assert not (tmp_path / "a.dqc").exists()


@pytest.mark.parametrize("given", [["a"], ["a", "it's", 'a "b" c'], []])
def test_how_many_values(fails, given):
    assert f"--compare: expected 2 values, got {len(given)}" in fails("evaluate", "--compare", *given, "--no-peers")


def test_choices_are_named_in_one_order(fails, pictures, tmp_path):
    choices = "ffhq, imagenet, photos, released, small, small-adversarial"
    message = fails("train", "tokenizer", "--data", pictures, "--recipe", "huge's")
    assert f'--recipe: expected one of {choices}, got "huge\'s"' in message
    told = "T\n\ninvalid choice 'x' for argument '-a, --abc'. Expected one of {'b-\n c', 'a'}."
    assert in_plain_words(told) == "--abc: expected one of a, b-c, got 'x'"


def test_what_is_missing(fails, pictures, tmp_path):
    assert "--out: it is missing, dqcore encode needs it" in fails("encode", pictures / "0.png")
    assert "holidy.jpg: no such file" in fails("reconstruct", tmp_path / "holidy.jpg")


@pytest.mark.parametrize(
    "words,message",
    [
        (("export", "--out", "x"), "checkpoint: it is missing, dqcore export needs it"),
        (("reproduce",), "name: it is missing, dqcore reproduce needs it"),
        (("evaluate", "x", "--ratios", "0.5", "b"), "--ratios: expected numbers, got '0.5', 'b' (see"),
        (("reproduce", "all", "--seeds"), "--seeds: expected a value, got none (see"),
        (("train", "tokenizer", "--data", "x", "--compile", "yes"), "there is no argument for 'yes' (see"),
        (("reproduce", "budget", "maps"), "there is no argument for 'maps' (see"),
    ],
)
def test_too_few_and_too_many_words(fails, words, message):
    assert message in fails(*words)


def test_other_complaints_stay():
    assert in_plain_words("title\nsomething else\n\nmore") == "something else"
    assert in_plain_words("") == "the arguments cannot be read"


def test_a_group_of_verbs_names_them(fails):
    assert "train: expected one of train tokenizer, train prior" in fails("train")
    assert "data: expected one of data stats, data make" in fails("data")


def test_a_photo_of_one_pixel_has_no_half(fails, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    message = fails("complete", tmp_path / "one.png", "--count", 1, "--out", tmp_path / "out")
    assert "keep" in message or "region" in message
