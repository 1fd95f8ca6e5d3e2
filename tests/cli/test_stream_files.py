"""Where ``dqcore encode`` writes ``.dqc`` files: no two photos share a name, and nobody's files are replaced."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from dqcore.errors import InputError
from dqcore.files import sole_owner
from dqcore.inference.stream_file import write_alone


def test_no_two_photos_share_a_file(run, checkpoint, pictures, tmp_path):
    """Names whose endings, taken off or put on, make one name of two photos, in one run or in two."""
    folder, out = tmp_path / "photos", tmp_path / "streams"
    folder.mkdir()
    shutil.copy(pictures / "0.png", folder / "x.bmp")
    shutil.copy(pictures / "1.png", folder / "x.png.bmp")
    args = ("encode", folder, "--checkpoint", checkpoint, "--out", out, "--format", "dqc")
    assert run(*args)[0] == 0
    before = {path.name: path.read_bytes() for path in out.glob("*.dqc")}
    shutil.copy(pictures / "3.png" if (pictures / "3.png").exists() else pictures / "2.png", folder / "x.png")
    assert run(*args)[0] == 0
    after = {path.name: path.read_bytes() for path in out.glob("*.dqc")}
    assert len(after) == 3 and after.items() >= before.items()
    assert "3 of these 3 files were there already" in run(*args)[1]


def test_a_stream_that_somebody_put_there_stays(run, checkpoint, pictures, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "streams"
    folder.mkdir()
    shutil.copy(pictures / "0.png", folder / "a.png")
    args = ("encode", folder, "--checkpoint", checkpoint, "--out", out, "--format", "dqc")
    assert run(*args)[0] == 0
    assert run("encode", pictures / "1.png", "--checkpoint", checkpoint, "-o", out / "mine.dqc")[0] == 0
    before = (out / "mine.dqc").read_bytes()
    shutil.copy(pictures / "0.png", folder / "mine.png")
    assert run(*args)[0] == 0
    assert (out / "mine.dqc").read_bytes() == before and (out / "mine.png.dqc").is_file()


def test_a_stream_goes_into_a_folder_that_nobody_fills(run, fails, checkpoint, pictures, tmp_path, monkeypatch):
    """One that is filled has chosen its names, and one that was filled knows what lies in it."""
    monkeypatch.setattr("dqcore.files.PATIENCE", 0.1)
    out = tmp_path / "streams"
    args = ("--checkpoint", checkpoint, "-o")
    with ThreadPoolExecutor(1) as other, sole_owner(out):
        single = ("encode", pictures / "1.png", *args, out / "mine.dqc")
        assert other.submit(fails, *single).result().endswith(f"another process is encoding in {out}\n")
    assert not (out / "mine.dqc").exists()
    assert run("encode", pictures / "0.png", *args, out)[0] == 0
    before = (out / "0.dqc").read_bytes()
    single = ("encode", pictures / "1.png", *args, out / "0.dqc")
    assert f"0.dqc is one of the streams that {out / 'index.json'} lists" in fails(*single, "--overwrite")
    assert (out / "0.dqc").read_bytes() == before
    assert "the same bytes" in run("encode", pictures / "0.png", *args, out / "0.dqc", "--overwrite")[1]


def test_a_stream_goes_below_a_folder_that_nobody_fills(run, checkpoint, pictures, tmp_path, monkeypatch):
    """An index lists what lies in the folders of its folder, however the way there is written; others' say nothing."""
    monkeypatch.setattr("dqcore.files.PATIENCE", 0.1)
    out, link = tmp_path / "streams", tmp_path / "link"
    (tmp_path / "index.json").write_text("[]")
    batch = ("encode", pictures / "more", pictures / "0.png", "--checkpoint", checkpoint, "-o", out, "--format", "dqc")
    assert run(*batch)[0] == 0
    stream, listed = out / "more" / "3.dqc", re.escape(f"{out / 'index.json'} lists")
    link.symlink_to(out / "more")
    before = stream.read_bytes()
    for path in (stream, link / "3.dqc"):
        with pytest.raises(InputError, match=listed):
            write_alone(path, b"dqc", overwrite=True)
    with ThreadPoolExecutor(1) as other, sole_owner(out), pytest.raises(InputError, match="another process"):
        other.submit(write_alone, link / "mine.dqc", b"dqc").result()
    stream.unlink()
    with pytest.raises(InputError, match=listed):  # the batch would replace it
        write_alone(stream, b"dqc")
    assert run(*batch)[0] == 0 and stream.read_bytes() == before
    assert write_alone(link / "mine.dqc", b"dqc") and not write_alone(stream, before)
