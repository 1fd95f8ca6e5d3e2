import re

import pytest
from PIL import Image

from dqcore.data.photos import sample_folder, sample_photos

SPLITS = ("train", "heldout")


def photographs(split):
    return {path.stem.rpartition("-")[0] for path in sample_photos(split)}


def test_crops_are_small_photographs():
    paths = [path for split in SPLITS for path in sample_photos(split)]
    assert sum(path.stat().st_size for path in paths) < 1.1e6
    for path in paths:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))


def test_splits_share_no_photograph():
    assert len(photographs("train")) >= 8
    assert len(photographs("heldout")) >= 4
    assert not photographs("train") & photographs("heldout")


def test_every_photograph_is_attributed_under_a_free_licence():
    text = (sample_folder("train").parent / "ATTRIBUTION.md").read_text()
    rows = re.findall(r"^\| `(\w+)/(\w+)-\*\.jpg` \| \[.+\]\(http.+\) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert {(split, name) for split, name, _, _ in rows} == {
        (split, name) for split in SPLITS for name in photographs(split)
    }
    for _, name, author, licence in rows:
        assert author, name
        assert licence == "public domain" or re.match(r"\[CC(0 1\.0| BY 4\.0)\]\(https://creativecommons\.org", licence)


def test_unknown_split():
    with pytest.raises(ValueError, match="expected 'train' or 'heldout'"):
        sample_photos("test")
