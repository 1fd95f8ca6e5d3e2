import contextlib
import io
import logging
import os
import pickle
import shutil
import sys
import tarfile
import zipfile

import pytest
import torch
from torch.utils.data import DataLoader

from dqcore.data import archives, containers, provenance
from dqcore.data.archives import open_archive, split_member
from dqcore.data.batches import Crops, StepSampler, batch_loader
from dqcore.data.crops import RandomCrop
from dqcore.data.dataset import Images
from dqcore.data.images import BrokenImageError, list_images, read_image
from dqcore.data.listing import image_name, source_root
from dqcore.data.shards import file_digest
from dqcore.data.stored import read_stored
from dqcore.errors import InputError

KINDS = ("photos", "photos.tar", "photos.zip", "photos_lmdb")
ARCHIVES = KINDS[1:]


@pytest.fixture
def members(image):
    return {f"{index}.png": image(index) for index in (3, 1, 2)}


def red(path):
    return read_image(path).getpixel((0, 0))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_has_the_same_images_in_one_order(make, members, kind):
    paths = list_images(make(kind, members))
    assert [red(path) for path in paths] == [10, 20, 30]
    mark = "/" if kind == "photos" else "::"
    assert [os.fspath(path).rpartition(f"{kind}{mark}")[2] for path in paths] == ["1.png", "2.png", "3.png"]


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_image_in_an_archive_has_the_hashes_of_its_file(make, members, kind):
    alone = list_images(make("photos", members))
    packed = list_images(make(kind, members))
    assert [file_digest(path) for path in packed] == [file_digest(path) for path in alone] != [""] * 3
    assert list(map(provenance.hash_file, packed)) == list(map(provenance.hash_file, alone))


def test_a_folder_of_archives_is_all_of_them(make, image, tmp_path):
    make("all/b.tar", {"x.png": image(2)})
    make("all/a.zip", {"y.png": image(1)})
    make("all/.hidden.tar", {"z.png": image(3)})
    make("all/church_train_lmdb", {"0a1b": image(4, kind="WEBP")})
    paths = list_images(tmp_path / "all")
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "all/a.zip::y.png",
        "all/b.tar::x.png",
        "all/church_train_lmdb::0a1b",
    ]
    assert [red(path) for path in paths] == [10, 20, 40]


def test_archives_beside_images_are_named(make, image, tmp_path, caplog):
    make("all", {"x.png": image(1)})
    make("all/b.tar", {"x.png": image(2)})
    with caplog.at_level(logging.WARNING, "dqcore"):
        assert [red(path) for path in list_images(tmp_path / "all")] == [10]
    assert "1 archive beside the images not read, such as" in caplog.text and "b.tar" in caplog.text


def test_images_of_other_kinds_are_named(make, image, tmp_path, caplog):
    make("all", {"x.png": image(1), "sub/y.HEIC": b"?", "z.avif": b"?", "._w.avif": b"?"})
    with caplog.at_level(logging.WARNING, "dqcore"):
        assert [red(path) for path in list_images(tmp_path / "all")] == [10]
    assert "2 images of kinds that are not read here, such as" in caplog.text and "y.HEIC" in caplog.text


def test_names_in_an_archive(make, image):
    names = ["./sub/./1.JPG", "/root.png", "__MACOSX/._2.png", ".git/3.png", "notes.txt", "sub/4.png"]
    for kind in ("photos.tar", "photos.zip"):
        path = make(kind, {name: image(number) for number, name in enumerate(names)})
        assert open_archive(path).names() == ["root.png", "sub/1.JPG", "sub/4.png"]
        assert red(f"{path}::sub/1.JPG") == 0 and red(f"{path}::sub/4.png") == 50


def test_keys_that_are_no_plain_names(make, image):
    path = make("photos_lmdb", {"a/../b %.png": image(1), "\u00e9": image(2)})
    names = open_archive(path).names()
    assert all("/" not in name for name in names)
    assert sorted(red(found) for found in list_images(path)) == [10, 20]


def test_links_in_a_tar_are_the_images_that_they_lead_to(image, tmp_path):
    """Whoever makes a tar makes a link of a second name; where one leads nowhere, the image is broken."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(image(0))
    os.link(tmp_path / "images" / "a.png", tmp_path / "images" / "b.png")
    os.symlink("a.png", tmp_path / "images" / "c.png")
    os.symlink("../c.png", tmp_path / "images" / "d.png")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "images", "images")
    *good, broken = list_images(tmp_path / "x.tar")
    assert len({read_image(path).tobytes() for path in good}) == 1 and len(good) == 3
    with pytest.raises(BrokenImageError, match="link to nothing"):
        read_image(broken)


def test_members_that_lead_out_are_refused(make, image):
    with pytest.raises(ValueError, match=r"a\.tar: its file '\.\./x\.png' leads out of it"):
        list_images(make("a.tar", {"../x.png": image(1)}))


@pytest.mark.parametrize("kind", ARCHIVES)
def test_what_is_missing_or_broken_is_named(make, image, kind):
    path = make(kind, {"1.png": image(1), "2.png": b"no image"})
    for name, reason in (("2.png", "cannot identify"), ("3.png", "no 3.png in")):
        with pytest.raises(BrokenImageError, match=rf"{kind}::{name}: {reason}"):
            read_image(f"{path}::{name}")
    assert file_digest(path.with_name(f"{kind}::3.png")) == ""


@pytest.mark.parametrize("kind", ARCHIVES)
def test_damaged_archives_are_refused(make, image, kind):
    path = make(kind, {f"{index}.png": image(index, (90, 90)) for index in range(20)})
    file = path / "data.mdb" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"{kind}: (damaged|cut off)"):
        list_images(path)


def test_a_damaged_header_is_not_taken_for_the_end(make, image):
    path = make("a.tar", {"1.png": image(1), "2.png": image(2)})
    data = bytearray(path.read_bytes())
    data[data.index(b"2.png")] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.tar: damaged or cut off"):
        list_images(path)


def test_a_tar_that_is_cut_off_between_two_files_is_refused(make, image):
    path = make("a.tar", {"1.png": image(1), "2.png": image(2)})
    with tarfile.open(path) as tar:
        second = tar.getmember("2.png").offset
    path.write_bytes(path.read_bytes()[:second])
    with pytest.raises(ValueError, match=r"a\.tar: damaged or cut off"):
        list_images(path)


def test_compressed_tars_are_refused(make, image, tmp_path):
    import gzip

    path = make("a.tar", {"1.png": image(1)})
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.tar: damaged, or compressed"):
        list_images(path)


@pytest.mark.parametrize("kind", ("a.tar", "a.zip", "a_lmdb"))
def test_the_size_of_a_member_is_limited(make, image, kind, monkeypatch):
    path = make(kind, {"1.png": image(1)})
    monkeypatch.setattr(containers, "main_memory", lambda: 40 * 99)
    with pytest.raises(BrokenImageError, match=r"1\.png: its \d+ bytes are more than the limit of 99"):
        read_image(f"{path}::1.png")


@pytest.mark.parametrize("kind", ("a.tar", "a.zip", "a_lmdb"))
def test_a_changed_archive_is_indexed_again(make, image, kind):
    path = make(kind, {"1.png": image(1)})
    assert len(list_images(path)) == 1 and open_archive(path) is open_archive(path)
    path.rename(path.with_name("before"))
    make(kind, {"1.png": image(4), "2.png": image(2), "3.png": image(3)})
    assert [red(found) for found in list_images(path)] == [40, 20, 30]


def test_a_file_may_have_the_mark_in_its_name(make, image):
    folder = make("odd::name", {"x::y.png": image(5)})
    assert split_member(folder / "x::y.png") is None and red(folder / "x::y.png") == 50
    inside = make("odd::name/a.tar", {"z.png": image(6)})
    assert split_member(f"{inside}::z.png") == (inside, "z.png") and red(f"{inside}::z.png") == 60


def test_a_database_may_be_one_file(make, image, tmp_path):
    folder = make("photos_lmdb", {"1": image(1), "2": image(2)})
    file = tmp_path / "all" / "one.lmdb"
    file.parent.mkdir()
    shutil.copy(folder / "data.mdb", file)
    for source in (file, file.parent):
        paths = list_images(source)
        assert [image_name(path, source_root(source)) for path in paths] == ["one.lmdb::1", "one.lmdb::2"]
    assert [read_stored(path) for path in paths] == [read_stored(path) for path in list_images(folder)]
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(ValueError, match=r"one\.lmdb: cut off, one\.lmdb has fewer"):
        list_images(file)


def test_without_lmdb_the_extra_is_named(make, image, monkeypatch):
    path = make("photos_lmdb", {"1": image(1)})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match=r"pip install 'dqcore\[lmdb\]'"):
        list_images(path)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_workers_read_what_one_process_reads(make, image, kind, monkeypatch):
    """The archive was opened before: a forked process must not move the file position of another."""
    data = Images(make(kind, {f"{index}.png": image(index) for index in range(9)}))
    alone = [data[index][0] for index in range(9)]
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")
    together = torch.cat([images for images, _ in loader])
    assert torch.equal(together, torch.stack(alone))
    sent = pickle.dumps(data)
    monkeypatch.setattr(archives, "_known", {})  # as in a process that was spawned
    assert len(sent) < 5000 and (kind == "photos_lmdb" or torch.equal(pickle.loads(sent)[8][0], alone[8]))


@pytest.mark.parametrize("kind", ARCHIVES)
def test_training_takes_the_same_crops_from_an_archive(make, image, kind):
    members = {f"{index}.png": image(index) for index in range(6)}
    batches = []
    for name in ("photos", kind):
        crops = Crops(list_images(make(name, members)), RandomCrop(16, 18), seed=3)
        sampler = StepSampler(len(crops), 2, seed=3, start=1, stop=5)
        batches.append([batch.images for batch in batch_loader(crops, sampler, workers=0, pin=False)])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_a_zip_file_that_is_damaged_anywhere_is_refused_or_has_all_its_files(make, image):
    """Names too: a file is lost, or another error raised, nowhere."""
    path = make("a.zip", {f"{index}.png": image(index) for index in range(3)})
    whole = path.read_bytes()
    for place in range(whole.index(b"PK\1\2"), len(whole)):
        for changed in (whole[place] ^ 1, whole[place] ^ 0x80):
            path.write_bytes(whole[:place] + bytes([changed]) + whole[place + 1 :])
            with contextlib.suppress(InputError):
                assert len(open_archive(path).names()) == 3


@pytest.mark.parametrize("changed", ("0.pnf", "0.pn/", "1.png", "0\0png", ".0png"))
def test_a_damaged_name_in_a_zip_file_is_named(make, image, changed):
    path = make("a.zip", {f"{index}.png": image(index) for index in range(2)})
    before, _, after = path.read_bytes().rpartition(b"0.png")
    path.write_bytes(before + changed.encode() + after)
    with pytest.raises(InputError, match=r"a\.zip: damaged, its file .* is called b'0\.png' where it lies"):
        list_images(path)


def test_a_zip_file_whose_other_names_are_of_other_alphabets_is_read(make, image):
    path = make("a.zip", {"größe.txt": b"", "été/": b"", "1.png": image(1)})
    assert [red(found) for found in list_images(path)] == [10]


@pytest.mark.parametrize("form", (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
@pytest.mark.parametrize("kind", ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"))
def test_an_image_of_a_damaged_name_in_a_tar_is_named(image, tmp_path, caplog, form, kind):
    """A long name stands in a block without a checksum; any byte of it may change, its keyword and length too."""
    long = f"{'d' * 99}/{'n' * 99}"
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        for name in ("0", "1"):
            member, data = tarfile.TarInfo(f"{long}{name}.png"), image(int(name), kind=kind)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    whole = path.read_bytes()
    end = whole.index(b"n0.png") + 6
    pax = range(whole.index(b" path="), whole.index(b" path=") + 5) if form == tarfile.PAX_FORMAT else ()
    for place in (*pax, *range(end - 6, end)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        caplog.clear()
        with caplog.at_level(logging.WARNING, "dqcore"):
            found = list_images(path)
        assert len(found) == 2 or "1 file not read, an image by its first bytes" in caplog.text, place


@pytest.mark.parametrize("kind", ("a.tar", "a.zip"))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_second_image_of_a_name_is_read_and_the_first_named(make, image, kind, caplog):
    path = make(kind, {"1.png": image(1), "1.cls": b"1", "2.png": image(2)})
    if kind == "a.tar":
        with tarfile.open(path, "a") as tar:
            for name in ("1.cls", "1.png"):
                member = tarfile.TarInfo(name)
                member.size = len(image(5))
                tar.addfile(member, io.BytesIO(image(5)))
    else:
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("1.cls", b"2")
            file.writestr("1.png", image(5))
    with caplog.at_level(logging.WARNING, "dqcore"):
        assert [red(found) for found in list_images(path)] == [50, 20]
    assert f"{kind}: 1 file there more than once, of which the last is read, such as 1.png" in caplog.text


def test_a_link_of_a_damaged_name_in_a_tar_is_named(make, image, tmp_path, caplog):
    path = make("a.tar", {"1.png": image(1)})
    for name, target in (("ä.png", "1.png"), ("ö", ".")):
        with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    assert len(list_images(path)) == 2
    path.write_bytes(path.read_bytes().replace("ä.png".encode(), "ä.pnf".encode()))
    with caplog.at_level(logging.WARNING, "dqcore"):
        assert len(list_images(path)) == 1
    assert "1 file not read, an image by its first bytes and not by its name (is it damaged?), such as ä.pnf" in (
        caplog.text
    )


def test_a_zip_file_with_more_files_than_its_count_can_say(make, image):
    path = make("a.zip", {f"{index}.png": image(index) for index in range(3)})
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"of no count PK"
    assert len(list_images(path)) == 3
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\3\0\3\0", b"\xff\xff\xff\xff"))
    assert len(list_images(path)) == 3


def test_a_sparse_file_of_a_tar_is_broken(make, image, tmp_path):
    """Without its holes, the files after it would be read as its end."""
    path = make("a.tar", {"1.png": image(1), "2.png": image(2)})
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, sparse in (("1.png", {"GNU.sparse.map": "0,4", "GNU.sparse.size": "900"}), ("2.png", {})):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(image(2)), sparse
            tar.addfile(member, io.BytesIO(image(2)))
    broken, whole = list_images(path)
    assert red(whole) == 20
    with pytest.raises(BrokenImageError, match=r"1\.png.* sparse"):
        read_image(broken)
