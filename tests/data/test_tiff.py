"""Grey TIFF files of more than 8 bits: what Pillow leaves to whoever reads them."""

import struct

import numpy as np
import pytest

from dqcore.data.images import read_image


def write_tiff(path, data, size, bits, photometric):
    """An uncompressed grey TIFF, little-endian."""
    width, height = size
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1), (278, height)]
    tags.append((279, len(data)))
    start = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in tags]
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + data)


def packed(values, bits):
    """Rows of numbers, the highest bit first where they are no whole bytes."""
    if bits in (8, 16):
        return values.astype(f"<u{bits // 8}").tobytes()
    ones = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(ones.reshape(len(values), -1), axis=1).tobytes()


@pytest.mark.parametrize(("bits", "photometric"), [(8, 0), (8, 1), (12, 1), (16, 0), (16, 1)])
def test_the_upper_8_bits_of_grey_and_of_its_negative(tmp_path, bits, photometric):
    values = np.random.default_rng(bits).integers(0, 1 << bits, (4, 6))
    write_tiff(tmp_path / "a.tif", packed(values, bits), (6, 4), bits, photometric)
    wanted = values >> bits - 8 if photometric else 255 - (values >> bits - 8)
    found = np.asarray(read_image(tmp_path / "a.tif"))
    assert np.array_equal(found, np.stack([wanted] * 3, -1))
