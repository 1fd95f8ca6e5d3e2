import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dqcore.nn.blocks import AttnBlock, Downsample, Level, ResBlock, Upsample


def test_attention_is_one_head_over_all_positions():
    block = AttnBlock(16, groups=4).double()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    q, k, v = F.conv2d(block.norm(x), block.qkv.weight, block.qkv.bias).flatten(2).chunk(3, 1)
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / 16**0.5, -1)
    mixed = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
    torch.testing.assert_close(block(x), x + block.proj(mixed))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_attention_comes_to_a_fused_kernel(memory_format):
    """Of other strides PyTorch stores the weights of all pairs of positions, on a GPU as on a CPU."""
    block = AttnBlock(16, groups=4).to(memory_format=memory_format)
    x = torch.randn(2, 16, 3, 5).contiguous(memory_format=memory_format)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out = block(x)
    torch.testing.assert_close(out, copy.deepcopy(block).double()(x.double()).float())


def test_res_block_shortcut_only_where_widths_differ():
    assert not list(ResBlock(8, 8, 4).shortcut.parameters())
    wide = ResBlock(8, 16, 4)
    assert wide.shortcut.weight.shape == (16, 8, 1, 1)
    with torch.no_grad():
        wide.conv2.weight.zero_()
        wide.conv2.bias.zero_()
    x = torch.randn(1, 8, 4, 6)
    torch.testing.assert_close(wide(x), wide.shortcut(x))


def test_downsample_pads_bottom_and_right():
    down = Downsample(1)
    with torch.no_grad():
        down.conv.weight.zero_()
        down.conv.bias.zero_()
        down.conv.weight[0, 0, 2, 2] = 1
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert down(x)[0, 0].tolist() == [[10, 0], [0, 0]]


def test_upsample_repeats():
    up = Upsample(1)
    with torch.no_grad():
        up.conv.weight.zero_()
        up.conv.bias.zero_()
        up.conv.weight[0, 0, 1, 1] = 1
    assert up(torch.tensor([[[[1.0, 2.0]]]]))[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_level_attends_after_each_block():
    assert len(Level(8, 16, 3, True, 4).attentions) == 3
    assert len(Level(8, 16, 3, False, 4).attentions) == 0
