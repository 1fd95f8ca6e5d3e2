"""``dqcore complete``, and ``dqcore report`` of a prior's run."""

import json

import pytest
import torch
from PIL import Image

import dqcore
from dqcore.data.photos import sample_photos
from dqcore.models.priors.dq_transformer import DQTransformer

TINY = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """Folder of a prior's run, made by hand."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("prior")
    model = DQTransformer.from_preset("dqtransformer-tiny", dim=16, num_heads=2, region_grid=(2, 2), codebook_size=16)
    model.save_pretrained(folder / "model")
    dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY).save_pretrained(folder / "model" / "tokenizer")
    options = {"preset": "dqtransformer-tiny", "image_size": 32, "seed": 3, "token_budget": 50}
    config = {"options": options, "parameters": 1234, "codes": {"training": 9}, "steps": 2, "device": "cpu"}
    (folder / "config.json").write_text(json.dumps(config | {"threads": 1, "versions": {"torch": "2"}}))
    rows = [{"step": 1, "loss": 3.0, "content_loss": 2.0}, {"step": 2, "val_bits_per_image": 77.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_complete(run, fails, prior, tmp_path):
    photo = sample_photos("heldout")[0]
    args = ("complete", photo, "--prior", prior, "--out", tmp_path / "o", "--device", "cpu")
    code, out, _ = run(*args, "--keep", "left", "--count", 2)
    assert code == 0 and "2 of 4 regions kept" in out
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == [
        f"{photo.stem}-{name}.png" for name in ("1", "2", "kept")
    ]
    with Image.open(tmp_path / "o" / f"{photo.stem}-2.png") as image:
        assert image.size == (32, 32)
    assert "keep: expected upper" in fails(*args, "--keep", "middle")
    assert "this prior has no classes" in fails(*args, "--label", "cat")
    assert "count: expected at least 1" in fails(*args, "--count", 0)


def test_keys_of_a_database_do_not_share_a_file(run, prior, tmp_path):
    lmdb = pytest.importorskip("lmdb", reason="pip install 'dqcore[lmdb]'")
    keys, photo = ("a.b%2Fc", "a.b%2Fd"), sample_photos("heldout")[0].read_bytes()
    file = lmdb.open(str(tmp_path / "in.lmdb"), subdir=False, map_size=1 << 22)
    with file as database, database.begin(write=True) as writing:
        for key in (b"a.b/c", b"a.b/d"):
            writing.put(key, photo)
    args = ("--prior", prior, "--out", tmp_path / "o", "--device", "cpu", "--count", 1)
    for key in keys:
        assert run("complete", f"{tmp_path}/in.lmdb::{key}", *args)[0] == 0
    names = sorted(path.name for path in (tmp_path / "o").iterdir())
    assert names == [f"in.lmdb::{key}-{name}.png" for key in keys for name in ("1", "kept")]


def test_the_report_of_a_prior(run, fails, prior, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = run("report", prior, "--out", page, "--images", sample_photos("heldout")[0], "--device", "cpu")
    assert (code, out) == (0, f"{page}\n")
    text = page.read_text()
    for heading, pictures in (("Images from nothing", 16), ("Coarse to fine", 8), ("The lower half imagined", 4)):
        assert text.partition(f"<h2>{heading}</h2>")[2].partition("<h2>")[0].count("data:image/webp") == pictures
    assert "<h3>Bits per image</h3>" in text and ">77<" in text
    assert "expected none for a prior" in fails("report", prior, "--size", 64)
