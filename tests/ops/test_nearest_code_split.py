"""Nearest codes by tiles of bfloat16 parts: what they settle is right, and they settle nearly everything."""

import pytest
import torch

from dqcore.ops.cpu import split_codes
from dqcore.ops.cpu.code_search import CodeSearch
from dqcore.ops.reference.nearest_code import nearest_code_reference
from dqcore.testing import adversarial_codebooks

pytestmark = pytest.mark.skipif(not split_codes.supported(), reason="needs the extension, and a CPU with AMX")
SHAPES = [(1, 1, 1), (97, 2, 1), (70, 37, 3), (130, 500, 8), (65, 33, 16), (33, 64, 17), (40, 100, 33), (31, 70, 257)]
CASES = list(adversarial_codebooks(1, 1, 1))


def check(x, codebook):
    """Settled codes are the reference's, and so are all codes; how many vectors were left open."""
    expected, both = nearest_code_reference(x, codebook, "exact"), CodeSearch(codebook, "exact")
    assert torch.equal(both(x), expected)
    assert torch.equal(both.product(False)(x), expected)  # without the tiles
    if both.split is None:
        assert not codebook.mean(0).isfinite().all()
        return len(x)
    settled = both.split(x)
    assert torch.equal(settled, torch.where(settled < 0, settled, expected))
    return int((settled < 0).sum())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adversarial(shape, case):
    check(*adversarial_codebooks(*shape)[case])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    check(torch.randn(100, 40).to(dtype), torch.randn(90, 40).to(dtype))


@pytest.mark.parametrize("dim", [1, 3, 8, 16, 24, 100])
@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1.0, 1e20])
def test_beside_the_middle_of_two_codes(dim, scale):
    """As far from two codes, but for steps from far below the margin to far above it."""
    gen = torch.Generator().manual_seed(dim)
    codebook = torch.randn(40, dim, generator=gen)
    first, second = torch.randint(40, (2, 600), generator=gen)
    step = 10 ** (torch.rand(600, 1, generator=gen) * 8 - 8)
    x = (codebook[first] + codebook[second]) / 2 + step * (codebook[first] - codebook[second])
    check(x * scale, codebook * scale)


@pytest.mark.parametrize("dim", [8, 64])
def test_codes_that_differ_in_their_last_bits(dim):
    gen = torch.Generator().manual_seed(dim)
    base = torch.randn(1, dim, generator=gen)
    codebook = base * (1 + 2.0 ** -torch.randint(8, 24, (64, dim), generator=gen))
    check(torch.randn(200, dim, generator=gen) * 2.0 ** torch.arange(-10, 10).repeat(10)[:, None], codebook)


@pytest.mark.parametrize(("num", "size", "dim"), [(500, 1024, 256), (500, 16384, 8), (500, 1000, 100)])
def test_leaves_few_open(num, size, dim):
    gen = torch.Generator().manual_seed(0)
    assert check(torch.randn(num, dim, generator=gen), torch.randn(size, dim, generator=gen)) < num // 50


def test_a_tie_stays_open():
    codebook = torch.randn(40, 20)
    codebook[7] = codebook[30]
    both = CodeSearch(codebook, "exact")
    assert both.split(codebook[[7, 8, 30]]).tolist() == [-1, 8, -1]
    assert both(codebook[[7, 8, 30]]).tolist() == [7, 8, 7]


def test_neither_neighbours_nor_threads_change_a_code():
    x, codebook = torch.randn(3000, 32), torch.randn(600, 32)
    both = CodeSearch(codebook, "exact")
    whole, before = both.split(x), torch.get_num_threads()
    assert torch.equal(whole[5:1234], both.split(x[5:1234]))
    torch.set_num_threads(2)
    try:
        assert torch.equal(whole, both.split(x))
    finally:
        torch.set_num_threads(before)


def test_several_slabs_of_codes():
    x, codebook = torch.randn(70, 128), torch.randn(5000, 128)
    assert check(x, codebook) < 5
