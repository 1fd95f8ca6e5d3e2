"""How many 32-byte sectors the kernels of csrc move, by the addresses that each lane reads and writes on a CPU.

What one instruction of a warp touches counts once; caches keep nothing from one to the next.
"""

import ctypes
import shutil

import numpy as np
import pytest
import torch

from dqcore.ops.extension import call, features_argument, lay_out, native
from dqcore.ops.layout import count_codes
from dqcore.ops.patch_entropy import patch_entropy_extension

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler"),
]
SECTOR, DRIFT = 32, 0.05
MOST = 1.3  # times the distinct sectors
#: What is moved, times what lies there. A coarse code's vector is read for each of its cells, whole lines at once.
MOVED = {
    ("pack_features", "NCHW"): 1.0,
    ("pack_features", "channels-last"): 1.0,
    ("expand_features", "NCHW"): 1.077,
    ("expand_features", "channels-last"): 1.231,
}
FORMATS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}


def watched(module, tensors, run):
    """The accesses to these tensors: address, instruction, bytes, block, thread, and barriers passed before."""
    library = ctypes.CDLL(module.__file__)
    library.watch_begin.argtypes, library.watch_end.restype = [ctypes.c_uint64] * 4, ctypes.c_int64
    library.watch_found.restype = ctypes.POINTER(ctypes.c_int64)
    library.watch_begin(*(x.data_ptr() + end for x in tensors for end in (0, x.numel() * x.element_size())))
    run()
    number = library.watch_end()
    return np.ctypeslib.as_array(library.watch_found(), (number, 6)).copy()


def sectors(accesses):
    """Sectors that the instructions of warps touch, each by itself, and those that there are."""
    address, instruction, size, block, thread, barriers = accesses.T
    _, same = np.unique(np.stack([instruction, block, thread, barriers]), axis=1, return_inverse=True)
    order = np.argsort(same.ravel(), kind="stable")
    run = same.ravel()[order]
    first = np.searchsorted(run, run)
    turn = np.empty(len(run), np.int64)
    turn[order] = np.arange(len(run)) - first  # the how manieth time that this thread came by
    ends = [(address + more) // SECTOR for more in (np.zeros_like(size), size - 1)]
    touched = [np.stack([instruction, block, thread // 32, barriers, turn, end]) for end in ends]
    return np.unique(np.concatenate(touched, 1), axis=1).shape[1], np.unique(np.concatenate(ends)).size


def moved(module, name, form, dtype, shape):
    """Sectors moved, and the least; ``shape``: images, channels, rows and columns of regions, half of them fine."""
    images, channels, rows, columns = shape
    grain = torch.rand(images, rows * columns).argsort(1).lt(rows * columns // 2).long().view(images, rows, columns)
    total = count_codes(grain)
    features = torch.zeros(images, channels, 2 * rows, 2 * columns, dtype=dtype)
    features = features.contiguous(memory_format=FORMATS[form])
    packed = torch.zeros(total, channels, dtype=dtype)
    layout = lay_out(grain, "row-first", 2, "total", total)  # which keeps what its pointers lead to
    maps, vectors = features_argument(features), native().Packed(packed.data_ptr(), total)
    arguments = (maps, vectors) if name == "pack_features" else (vectors, maps)
    found = watched(module, (features, packed), lambda: call(name, features.device, layout.native, *arguments, False))
    return sectors(found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "form"), MOVED)
def test_whole_sectors_are_moved(module, on_cpu, name, form, dtype):
    touched, least = moved(module, name, form, dtype, (1, 256, 16, 16))
    assert least * SECTOR >= (32 * 32 + 640) * 256 * dtype.itemsize  # all was seen
    assert touched <= MOST * least
    assert abs(touched / least - MOVED[name, form]) <= DRIFT * MOVED[name, form]


@pytest.mark.parametrize(("name", "side", "most"), [("pack_features", 14, 2.0), ("expand_features", 7, 2.1)])
def test_narrow_maps_move_in_the_widest_words_that_fit(module, on_cpu, name, side, most):
    """Rows of 28 and planes of 14 x 14 half numbers, of photos of 224 pixels: 8 bytes at once; one by one it is 6.7."""
    touched, least = moved(module, name, "NCHW", torch.bfloat16, (1, 256, side, side))
    assert touched <= most * least


def test_scattered_lanes_are_seen():
    """Lanes of one instruction that are 32 bytes apart; and the same bytes by neighbours."""
    one = [[32 * lane, 7, 4, 0, lane, 0] for lane in range(32)]
    assert sectors(np.array(one)) == (32, 32)
    assert sectors(np.array([[4 * lane, 7, 4, 0, lane, 0] for lane in range(32)])) == (4, 4)
    twice = [[32 * lane + more, 7, 4, 0, lane, 0] for lane in range(32) for more in (0, 4)]
    assert sectors(np.array(twice)) == (64, 32)  # two instructions, each of which touches all
    assert sectors(np.array([[16, 7, 32, 0, 0, 0]])) == (2, 2)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1.0), (torch.bfloat16, 1.0)], ids=str)
def test_patches_are_read_once(module, on_cpu, dtype, most):
    """A warp reads two lines of a patch together, whose pixels lie side by side: whole sectors of each plane."""
    images = torch.zeros(1, 3, 32, 64, dtype=dtype)
    found = watched(module, (images, images), lambda: patch_entropy_extension(images, 16, -1.0, 1.0, 32, 0.01, 1))
    touched, least = sectors(found)
    assert least * SECTOR == images.numel() * dtype.itemsize and touched == most * least
