"""A codebook is prepared once while its codes stay as they are, and anew after any change, however it was made."""

import pytest
import torch

import dqcore
from dqcore.ops import nearest_code
from dqcore.ops.cpu import code_search
from dqcore.ops.reference.nearest_code import nearest_code_reference
from dqcore.testing import assert_nearest


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    """The codebooks that are prepared for many vectors."""
    made = []
    before = code_search.ProductSearch

    def prepare(codebook, precision, *, few):
        made.append(codebook)
        return before(codebook, precision, few=few)

    monkeypatch.setattr(code_search, "ProductSearch", prepare)
    monkeypatch.setattr(code_search, "split_codes", lambda codebook: None)
    code_search.forget()
    yield made
    code_search.forget()


def test_a_codebook_that_stays_is_prepared_twice_at_most(prepared):
    """At first, and when it comes again, as it may stay then; a part of it is another codebook."""
    x, codebook = torch.randn(300, 8), torch.nn.Parameter(torch.randn(50, 8))
    for _ in range(5):
        assert_nearest(nearest_code(x, codebook), x, codebook)
    assert len(prepared) == 2
    assert_nearest(nearest_code(x, codebook[:20]), x, codebook[:20])
    assert len(prepared) == 3


CHANGES = {
    "in place": lambda codebook: codebook.add_(1),
    "data": lambda codebook: codebook.data.mul_(-1),
    "numpy": lambda codebook: codebook.detach().numpy().__setitem__(slice(3), 0.5),
    "one bit": lambda codebook: codebook.data.view(torch.int32)[7].bitwise_xor_(1),
    "not a number": lambda codebook: codebook.data[3].fill_(torch.nan),
    "inference": lambda codebook: torch.inference_mode()(codebook.zero_)(),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_every_change_is_seen(change, prepared):
    codebook = torch.randn(50, 8)
    x = torch.cat([codebook, torch.randn(300, 8)])
    for _ in range(3):
        nearest_code(x, codebook)
    CHANGES[change](codebook)
    for _ in range(3):
        assert torch.equal(nearest_code(x, codebook), nearest_code_reference(x, codebook, "exact"))


def test_a_codebook_at_the_address_of_another():
    x = torch.randn(300, 8)
    room = torch.empty(400)
    for seed in range(6):
        codebook = room.view(50, 8).copy_(torch.randn(50, 8, generator=torch.Generator().manual_seed(seed // 3)))
        assert_nearest(nearest_code(x, codebook), x, codebook)


def test_settings_are_told_apart(prepared):
    """A search keeps the precision that PyTorch's products had when it was prepared."""
    x, codebook = torch.randn(300, 8), torch.randn(50, 8)
    for _ in range(3):
        nearest_code(x, codebook)
    torch.set_float32_matmul_precision("medium")
    try:
        for precision in ("exact", "fast"):
            nearest_code(x, codebook, precision=precision)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(prepared) == 4


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(code_search, "CODES", 1000)
    monkeypatch.setattr(code_search, "MOST", 5)
    x, codebooks = torch.randn(300, 8), [torch.randn(50, 8) for _ in range(9)]
    for codebook in codebooks:
        for _ in range(3):
            nearest_code(x, codebook)
    kept = [known.search for known in code_search._known.values()]
    assert len(kept) <= 5
    assert sum(search.codebook.numel() for search in kept if search is not None) <= 1000
    code_search.forget()
    nearest_code(x, torch.randn(126, 8))
    assert not code_search._known


def test_a_codebook_that_learns_is_never_copied():
    quantizer = dqcore.DynamicQuantizer(8, 50)
    for _ in range(4):
        quantizer(torch.randn(2, 8, 8, 8))
    assert all(known.search is None for known in code_search._known.values())
    quantizer.eval()
    for _ in range(2):
        quantizer(torch.randn(2, 8, 8, 8))
    assert any(known.search is not None for known in code_search._known.values())
