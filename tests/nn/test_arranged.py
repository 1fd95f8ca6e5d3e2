"""Mistakes with a quantizer's arguments: the message names what the user passed, and what was expected."""

import pytest
import torch

from dqcore import DynamicQuantizer

FINE, COARSE = torch.zeros(2, 8, 4, 6), torch.zeros(2, 8, 2, 3)
GRAIN = torch.zeros(2, 2, 3, dtype=torch.int64)
WANTED = r"grain: expected a grain map \(2, 2, 3\), int64, each region's granularity in \[0, 2\), got "

DYNAMIC = {
    "no grain": (([COARSE, FINE],), WANTED + "None"),
    "no grain for one map": ((FINE,), WANTED + "None"),
    "list for grain": (([COARSE, FINE], GRAIN.tolist()), WANTED + "list"),
    "grain of the finest grid": (([COARSE, FINE], GRAIN.repeat_interleave(2, 1)), WANTED + r"\(2, 4, 3\)"),
    "grain without batch": (([COARSE, FINE], GRAIN[0]), WANTED + r"\(2, 3\)"),
    "grain int32": (([COARSE, FINE], GRAIN.int()), WANTED + "torch.int32"),
    "grain elsewhere": (([COARSE, FINE], GRAIN.to("meta")), "grain: expected device cpu, as features, got meta"),
    "grain range": (([COARSE, FINE], GRAIN + 2), r"grain: expected values in \[0, 2\), got values in \[2, 2\]"),
    "maps not in a list": ((FINE, FINE), "feature maps go into one list"),
    "one map in a list": (([FINE], GRAIN), "features: expected a list of 2 feature maps .*coarse to fine"),
    "None in the list": (([COARSE, None], GRAIN), "features: expected a list of 2 feature maps .*NoneType"),
    "fine to coarse": (([FINE, COARSE], GRAIN), r"features\[1\]: expected shape \(2, 8, 8, 12\), got \(2, 8, 2, 3\)"),
    "channels of a map": (([COARSE, FINE[:, :4]], GRAIN), r"features\[1\]: expected \(B, 8, H, W\)"),
    "batch of a map": (([COARSE, FINE[:1]], GRAIN), r"features\[1\]: expected shape \(2, 8, 4, 6\)"),
    "dtype of a map": (([COARSE, FINE.half()], GRAIN), r"features\[1\]: expected torch.float32, as features\[0\]"),
    "device of a map": (([COARSE, FINE.to("meta")], GRAIN), r"features\[1\]: expected device cpu, as features\[0\]"),
    "integers": (([COARSE.long(), FINE.long()], GRAIN), r"features\[0\]: expected floating-point numbers"),
    "sparse": (([COARSE, FINE.to_sparse()], GRAIN), r"features\[1\]: expected a plain tensor, got torch.sparse_coo"),
    "odd grid": ((FINE[:, :, :3], GRAIN), "features: expected height and width to be multiples of 2"),
    "mask elsewhere": (([COARSE, FINE], GRAIN, (GRAIN == 0).to("meta")), "mask: expected device cpu"),
    "mask in a list": (([COARSE, FINE], GRAIN, [True]), "mask: expected a tensor of bool, got list"),
}
PLAIN = {
    "channels last": ((FINE.movedim(1, -1),), "features: expected .*channel_last=True takes such features"),
    "integers": ((FINE.long(),), "features: expected floating-point numbers, got torch.int64"),
    "array": ((FINE.numpy(),), r"features: expected a feature map \(B, 8, H, W\), got ndarray"),
    "nothing": ((None,), "features: expected a feature map .* got NoneType"),
    "elsewhere": ((FINE.to("meta"),), "features: expected device cpu, as the codebook, got meta"),
    "sparse": ((FINE.to_sparse(),), r"features: expected a plain tensor, got torch.sparse_coo: pass .to_dense\(\)"),
    "lengths in a list": ((FINE[..., 0], None, None, [1, 2]), "lengths: expected 2 integers in a tensor, got list"),
}


def refuse(quantizer, arguments, message):
    *given, lengths = arguments if len(arguments) == 4 else (*arguments, None)
    with pytest.raises((ValueError, TypeError), match=message):
        quantizer(*given, lengths=lengths)


@pytest.mark.parametrize("mistake", DYNAMIC)
def test_mistakes_with_several_maps(mistake):
    refuse(DynamicQuantizer(8, 16, 2), *DYNAMIC[mistake])


@pytest.mark.parametrize("mistake", PLAIN)
def test_mistakes_with_one_map(mistake):
    refuse(DynamicQuantizer(8, 16), *PLAIN[mistake])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    nested = torch.nested.nested_tensor([torch.zeros(3, 8), torch.zeros(5, 8)], layout=layout)
    refuse(DynamicQuantizer(8, 16, channel_last=True), (nested,), "features: expected a plain tensor, got a nested one")


def test_embed_names_codes():
    with pytest.raises(ValueError, match="codes: expected device cpu, as the codebook, got meta"):
        DynamicQuantizer(8, 16).embed(torch.zeros(1, 2, 2, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("size", [64.0, (64,), 0, "64"])
def test_sizes_are_whole_numbers(size):
    with pytest.raises(ValueError, match="dim: expected at least 1 and whole"):
        DynamicQuantizer(size, 16)


def test_any_sequence_of_maps_will_do():
    quantizer = DynamicQuantizer(8, 16, 2)
    expected = quantizer([COARSE, FINE], GRAIN, learn=False)
    for maps in ((COARSE, FINE), torch.nn.ParameterList([COARSE, FINE])):
        assert torch.equal(quantizer(maps, GRAIN, learn=False).codes, expected.codes)
