"""Streams: lossless, as short as their tables allow, in parts, and safe to read."""

import contextlib
import dataclasses
import math
import random
import zlib

import pytest
import torch

from dqcore.errors import InputError
from dqcore.stream import CodeTables, read_header, read_stream, write_stream
from dqcore.stream import walk as walking
from dqcore.stream.walk import MapWalk


@pytest.mark.parametrize("codebook_size", [1, 2, 50, 16384])
@pytest.mark.parametrize("num_granularities", [1, 2, 3])
def test_what_is_written_is_read(tables_of, photo, identity, codebook_size, num_granularities):
    tables = tables_of(codebook_size, num_granularities)
    codes, grain = photo(5, 7, tables)
    data = write_stream(codes, grain, (79, 97), tables, identity)
    decoded = read_stream(data, tables, identity)
    assert torch.equal(decoded.codes, codes) and torch.equal(decoded.grain, grain) and decoded.size == (79, 97)
    assert data == write_stream(codes.int(), grain.byte(), (79, 97), tables, identity)
    assert data == write_stream(codes.to(torch.uint16), grain.to(torch.uint64), torch.Size((79, 97)), tables, identity)


def test_bytes_are_told_from_paths_and_tables_from_their_list(tables_of, photo, identity, tmp_path):
    tables = tables_of(50, 2)
    codes, grain = photo(5, 7, tables)
    data = write_stream(codes, grain, (79, 97), tables, identity)
    many = memoryview(b"before" + data + b"after")[6 : 6 + len(data)]  # as a part of a file in memory
    for held in (many, bytearray(data)):
        assert torch.equal(read_stream(held, [tables], identity).codes, codes) and read_header(held).size == (79, 97)
    for wrong in (tmp_path, str(tmp_path)):
        with pytest.raises(TypeError, match=r"data: expected the bytes of a stream, got .*: pass the file's bytes"):
            read_stream(wrong, tables, identity)
    with pytest.raises(TypeError, match=r"data: expected the bytes of a stream, got NoneType$"):
        read_stream(None, tables, identity)
    for maps, name in (((codes.numpy(), grain), "codes"), ((codes, grain.tolist()), "grain")):
        with pytest.raises(TypeError, match=rf"^{name}: expected a tensor, got"):
            write_stream(*maps, (79, 97), tables, identity)
    with pytest.raises(TypeError, match=r"tables: expected CodeTables, got list: .* take the first"):
        write_stream(codes, grain, (79, 97), [tables], identity)


def test_a_stream_is_as_short_as_its_predictions_allow(tables_of, photo, identity):
    tables = tables_of(200)
    codes, grain = photo(20, 30, tables)
    data = write_stream(codes, grain, (320, 480), tables, identity)
    header, bits = read_header(data), []

    class Meter:
        def code(self, predictor, left, upper, number):
            bits.append(24 - math.log2(predictor.weights(left, upper)[number] + 1))
            predictor.learn(number)
            return number

    walk = MapWalk(tables, grain.clone().numpy(), codes.clone().numpy())
    walk.take_grain(Meter())
    walk.take_codes(Meter(), 0)
    walk.take_codes(Meter(), 1)
    assert header.length <= 23
    assert sum(bits) / 8 < len(data) - header.length - 4 < sum(bits) / 8 + 4


def test_the_beginning_makes_a_preview(tables_of, photo, identity):
    tables = tables_of(num_granularities=3)
    codes, grain = photo(6, 6, tables)
    data = write_stream(codes, grain, (90, 96), tables, identity)
    header = read_header(data)
    coarse = data[: header.length + header.coarse_length]
    for part in (coarse, data, data[:-1]):
        decoded = read_stream(part, tables, identity, preview=True)
        known = (grain == 0).repeat_interleave(4, 0).repeat_interleave(4, 1)
        assert torch.equal(decoded.codes, codes.where(known, tables.codebook_size))
        assert torch.equal(decoded.grain, grain) and decoded.size == (90, 96)
    with pytest.raises(InputError, match="truncated"):
        read_stream(coarse[:-1], tables, identity, preview=True)
    with pytest.raises(InputError, match="truncated"):
        read_stream(coarse, tables, identity)
    broken = coarse[:-1] + bytes([coarse[-1] ^ 1])
    with pytest.raises(InputError, match="coarse part"):
        read_stream(broken, tables, identity, preview=True)


def test_headers_that_break_off_or_say_what_cannot_be(tables_of, photo, identity):
    tables = tables_of()
    data = write_stream(*photo(4, 4, tables), (64, 64), tables, identity)
    for end in range(3, read_header(data).length):
        with pytest.raises(InputError, match=r"a\.dqc: truncated, it breaks off in the header"):
            read_header(data[:end], "a.dqc")
    for place, value, match in (
        (3, b"\x02", "version 2"),
        (14, b"\x40", "64x64 pixels and 0 granularities"),
        (15, b"\x00", "64x0 pixels"),
        (16, b"\x00", "0x64 pixels"),
        (15, b"\xff" * 4, "a number in the header does not end"),
    ):
        with pytest.raises(InputError, match=match):
            read_header(data[:place] + value + data[place + len(value) :])


def test_another_model_and_other_tables_are_refused_by_name(tables_of, photo, identity):
    tables, others = tables_of(seed=0), tables_of(seed=1)
    data = write_stream(*photo(4, 4, tables), (64, 64), tables, identity)
    with pytest.raises(InputError, match=rf"a\.dqc: written by the model {identity[:16]}, this one is {'f' * 16}"):
        read_stream(data, tables, "f" * 64, name="a.dqc")
    with pytest.raises(InputError, match=rf"tables {tables.identity[:4]}, here there are only {others.identity[:4]}"):
        read_stream(data, others, identity)
    assert read_stream(data, [others, tables], identity).size == (64, 64)


def test_tables_whose_identity_begins_alike_are_told_apart(tables_of, photo, identity):
    tables = tables_of()
    data = write_stream(*photo(4, 4, tables), (64, 64), tables, identity)
    others = tables_of(seed=1)
    object.__setattr__(others, "identity", tables.identity[:4] + others.identity[4:])
    with pytest.raises(InputError, match="checksum"):
        read_stream(data, others, identity)


def test_what_does_not_fit_is_not_written(tables_of, photo, identity):
    tables = tables_of()
    codes, grain = photo(4, 5, tables)
    for change, match in (
        ((codes[:-1], grain, (64, 80)), "codes: expected a code map"),
        ((codes + 50, grain, (64, 80)), r"codes: expected integers in \[0, 50\)"),
        ((codes.double(), grain, (64, 80)), "codes: expected integers"),
        ((codes, grain + 1, (64, 80)), r"grain: expected integers in \[0, 2\)"),
        ((codes, grain, (64, 81)), "size: expected height and width"),
        ((codes, grain, (64.5, 80)), "size: expected height and width in whole pixels"),
        ((codes, grain, (64, 80, 3)), "size: expected height and width in whole pixels"),
        ((codes.to(torch.complex64), grain, (64, 80)), "codes: expected integers"),
        ((torch.arange(80).view(8, 10) % 50, grain * 0, (64, 80)), "fill its whole block"),
    ):
        with pytest.raises(InputError, match=match):
            write_stream(*change, tables, identity)
    with pytest.raises(InputError, match="identity: expected a fingerprint"):
        write_stream(codes, grain, (64, 80), tables, "mine")


def test_a_small_file_cannot_ask_for_a_large_photo(tables_of, photo, identity):
    tables = tables_of()
    data = write_stream(*photo(2, 2, tables), (32, 32), tables, identity)
    header = read_header(data)
    for size, match in (((1 << 15, 1 << 15), "at most"), ((1 << 13, 1 << 13), "cannot hold")):
        large = resealed(data, type(header)(**{**vars(header), "size": size}), tables)
        with pytest.raises(InputError, match=match):
            read_stream(large, tables, identity)


def test_codes_closer_than_every_second_pixel_are_refused(tables_of, photo, identity):
    """A header may claim so many granularities that a small photo has a huge code map."""
    tables = tables_of(num_granularities=3)
    data = write_stream(*photo(2, 2, tables), (32, 32), tables, identity)
    close = resealed(data, dataclasses.replace(read_header(data), stride=1, size=(16, 16)), tables)
    with pytest.raises(InputError, match="at most 16383 pixels"):  # 16 codes in every pixel: 4 * 16**3 = 16384
        read_stream(close, tables, identity, max_pixels=16383)


def test_the_smallest_photo(tables_of, photo, identity):
    tables = tables_of()
    codes, grain = photo(1, 1, tables)
    decoded = read_stream(write_stream(codes, grain, (1, 1), tables, identity), tables, identity)
    assert torch.equal(decoded.codes, codes) and decoded.size == (1, 1)
    with pytest.raises(InputError, match="grain: expected 2 dimensions, none of them empty"):
        write_stream(codes[:0], grain[:0], (0, 1), tables, identity)


def resealed(data, header, tables):
    """The stream with another header, and checksums that are right."""
    before = read_header(data)
    coarse = data[before.length : before.length + before.coarse_length]
    body = header.to_bytes(coarse) + data[before.length : -4]
    return body + zlib.crc32(body, zlib.crc32(bytes.fromhex(tables.identity))).to_bytes(4, "little")


def test_who_has_a_damaged_end_is_told_of_the_preview(tables_of, photo, identity):
    tables = tables_of(50, 2)
    codes, grain = photo(5, 7, tables)
    data = write_stream(codes, grain, (79, 97), tables, identity)
    for damaged in (data[:-5], data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]):
        with pytest.raises(InputError, match="its checksum is wrong; its preview can still be decoded"):
            read_stream(damaged, tables, identity)
        assert torch.equal(read_stream(damaged, tables, identity, preview=True).grain, grain)


def test_ten_thousand_damaged_streams(tables_of, photo, identity):
    """Each gives the codes or one InputError with the file's name; half of them have checksums that are right."""
    tables, draw = tables_of(), random.Random(0)
    whole = [write_stream(*photo(3, 3, tables, seed), (41, 48), tables, identity) for seed in range(4)]
    outcomes = {True: 0, False: 0}
    for number in range(10_000):
        data = bytearray(draw.choice(whole))
        for _ in range(draw.choice((1, 1, 2, 8))):
            place = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(15, len(data))
            data[place] = draw.randrange(256)
        data = bytes(data[: draw.randrange(len(data))] if draw.random() < 0.3 else data + bytes(draw.choice((0, 0, 3))))
        if number % 2:
            with contextlib.suppress(InputError):
                data = resealed(data, read_header(data), tables)
        preview = draw.random() < 0.2
        try:
            decoded = read_stream(data, tables, identity, name="photo.dqc", preview=preview, max_pixels=1 << 14)
        except InputError as error:
            assert str(error).startswith("photo.dqc: "), error
            outcomes[False] += 1
        else:
            limit = tables.codebook_size + preview
            assert all(0 <= code < limit for code in decoded.codes.flatten().tolist())
            outcomes[True] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_uniform_tables_do_for_any_model(photo, identity):
    tables = CodeTables.uniform(256, 2)
    codes, grain = photo(8, 8, tables)
    data = write_stream(codes, grain, (128, 128), tables, identity)
    assert torch.equal(read_stream(data, tables, identity).codes, codes)
    assert len(data) < 1.1 * (64 + 8 * int((4**grain).sum())) / 8 + 30  # codes at random cannot be foreseen


def test_a_flat_photo_takes_next_to_nothing(identity):
    tables = CodeTables.uniform(256, 2)
    codes = torch.full((64, 96), 7)
    data = write_stream(codes, torch.zeros(32, 48, dtype=torch.int64), (512, 768), tables, identity)
    assert len(data) < 300
    assert torch.equal(read_stream(data, tables, identity).codes, codes)


def test_the_bytes_never_change(identity):
    """Streams on people's disks must stay readable: this one was written by the first version."""
    counts = (torch.arange(40) ** 2 % 17).view(2, 20)
    grain = torch.arange(12).view(3, 4) % 3 // 2
    fine = grain.repeat_interleave(2, 0).repeat_interleave(2, 1)
    codes = torch.where(fine == 1, torch.arange(48).view(6, 8) * 7 % 20, fine + 3)
    data = write_stream(codes, grain, (48, 64), CodeTables.fit(counts, torch.tensor([5, 3])), identity)
    assert data.hex() == "647163010123456789abcdefea58423040056d1844c753197f8aa4b6a0eb885a87e69707739ae4"


def test_numbers_that_take_no_bits_take_no_time(identity, monkeypatch):
    """26 bytes stand for 67 million pixels, where there is one code and one granularity."""
    monkeypatch.setattr(walking, "_take", None)  # one number after another
    tables, side = CodeTables.uniform(1, 1), 1 << 12
    data = write_stream(torch.zeros(side, side).long(), torch.zeros(side, side).long(), (8192, 8192), tables, identity)
    decoded = read_stream(data, tables, identity)
    assert len(data) == 26 and decoded.codes.shape == decoded.grain.shape == (side, side)
    assert not decoded.codes.any() and not decoded.grain.any()


@pytest.mark.parametrize("sizes", [(1, 2), (1, 3), (5, 1)])
def test_one_code_or_one_granularity(tables_of, photo, identity, sizes):
    tables = tables_of(*sizes)
    codes, grain = photo(5, 7, tables)
    decoded = read_stream(write_stream(codes, grain, (79, 97), tables, identity), tables, identity)
    assert torch.equal(decoded.codes, codes) and torch.equal(decoded.grain, grain)
    whole = read_stream(write_stream(codes, grain, (79, 97), tables, identity), tables, identity, preview=True)
    fine = grain.repeat_interleave(codes.shape[0] // 5, 0).repeat_interleave(codes.shape[1] // 7, 1) > 0
    assert torch.equal(whole.codes, codes.masked_fill(fine, tables.codebook_size))
