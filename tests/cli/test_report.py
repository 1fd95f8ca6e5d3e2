"""``dqcore report``, of a run that the command line trained."""

import os
import shutil

from dqcore.data.photos import sample_folder


def test_train_then_report(run, fails, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(sample_folder("heldout"), tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    options = "--preset dqvae-dual-tiny --steps 2 --batch-size 2 --image-size 32 --perceptual none --no-discriminator"
    args = ["train", "tokenizer", "--data", "photos", "--out", out, *options.split(), "--packed"]
    code, text, _ = run(*args, "--validation-share", 0.3)
    assert code == 0
    assert "dB on held-out images" in text
    assert "holds a run already" in fails(*args)
    (tmp_path / "thesis.html").write_text("mine")
    assert "is no report of dqcore" in fails("report", out, "--out", tmp_path / "thesis.html")
    assert (tmp_path / "thesis.html").read_text() == "mine"
    os.chdir("/")  # what it held out is found from any folder
    code, text, _ = run("report", out, "--photos", 2)
    assert (code, text) == (0, f"{out / 'report.html'}\n")
    assert (out / "report.html").read_text().count("<img ") == 2 * 5 + 1  # and what training showed last
