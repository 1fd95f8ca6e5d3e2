"""Attention over packed sequences, by ours and by what PyTorch has for it: packed, padded, masked, one at a time."""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from dqcore.ops import varlen_attention


class Batch:
    """Random sequences of one shape: views of one packed product, as a transformer has them."""

    def __init__(self, shape, device, dtype):
        count, shortest, longest, heads, dim = shape
        generator = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
        self.longest = max(self.lengths)
        ends = list(itertools.accumulate(self.lengths, initial=0))
        self.cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=device)
        qkv = torch.randn(ends[-1], 3, heads, dim, device=device, dtype=dtype)
        self.leaves = [x.requires_grad_() for x in qkv.unbind(1)]


class Packed:
    """Ours."""

    dropout = True
    captured = True  # whether a CUDA graph can hold its calls

    def __init__(self, batch, precision="ieee"):
        self.batch, self.leaves, self.precision = batch, batch.leaves, precision

    def __call__(self, dropout_p=0.0, seed=None):
        """Output, which has a gradient to ``leaves``."""
        options = {"dropout_p": dropout_p, "dropout_seed": seed, "precision": self.precision}
        return varlen_attention(*self.leaves, self.batch.cu_seqlens, **options)

    def rows(self, out):
        """The output as ``(T, H, d)``."""
        return out


class Flash(Packed):
    """FlashAttention 2 inside PyTorch, on the packed rows."""

    def __call__(self, dropout_p=0.0):
        """Its forward operator has a gradient of its own."""
        cu, longest = self.batch.cu_seqlens, self.batch.longest
        args = (cu, cu, longest, longest, dropout_p, True, False)
        return torch.ops.aten._flash_attention_forward(*self.leaves, *args)[0]


class CuDNN(Packed):
    """cuDNN's attention inside PyTorch, on the packed rows where it takes them; the host waits for it."""

    captured = False

    def __call__(self, dropout_p=0.0):
        """Asked for the lse only where a gradient will need it."""
        cu, longest = self.batch.cu_seqlens, self.batch.longest
        args = (None, cu, cu, longest, longest, torch.is_grad_enabled(), dropout_p, True, False)
        return torch.ops.aten._cudnn_attention_forward(*self.leaves, *args)[0]


class Efficient(Packed):
    """The memory-efficient attention inside PyTorch, on the packed rows; it takes float32."""

    def __call__(self, dropout_p=0.0):
        """Mask type 1 is causal."""
        cu, longest = self.batch.cu_seqlens, self.batch.longest
        args = (None, cu, cu, longest, longest, dropout_p, 1, torch.is_grad_enabled())
        return torch.ops.aten._efficient_attention_forward(*(x[None] for x in self.leaves), *args)[0][0]


class Flex(Packed):
    """FlexAttention on the packed rows with a mask of documents, which is made outside of the measured time."""

    dropout = False

    def __init__(self, batch):
        super().__init__(batch)
        device = batch.cu_seqlens.device
        lengths = torch.tensor(batch.lengths, device=device)
        owner = torch.arange(len(lengths), device=device).repeat_interleave(lengths)

        def seen(_batch, _head, i, j):
            return (owner[i] == owner[j]) & (j <= i)

        self.mask = create_block_mask(seen, None, None, len(owner), len(owner), device=device.type)
        self.attend = _compiled_flex() if device.type == "cuda" else flex_attention

    def __call__(self, dropout_p=0.0):
        """Heads first, as it wants them: views."""
        out = self.attend(*(x.transpose(0, 1)[None] for x in self.leaves), block_mask=self.mask)
        return out[0].transpose(0, 1)


@functools.cache
def _compiled_flex():
    return torch.compile(flex_attention, dynamic=False)


class Padded(Packed):
    """One call of SDPA; under a causal mask no query sees padding."""

    def __init__(self, batch):
        parts = (x.detach().split(batch.lengths) for x in batch.leaves)
        padded = [torch.nn.utils.rnn.pad_sequence(x, batch_first=True).transpose(1, 2) for x in parts]
        self.batch, self.leaves = batch, [x.requires_grad_() for x in padded]

    def __call__(self, dropout_p=0.0):
        """``(B, H, longest, d)``."""
        return F.scaled_dot_product_attention(*self.leaves, dropout_p=dropout_p, is_causal=True)

    def rows(self, out):
        """Without the padding."""
        return torch.cat([x[:, :length].transpose(0, 1) for x, length in zip(out, self.batch.lengths, strict=True)])


class EachAlone(Packed):
    """One call of SDPA for each sequence."""

    def __call__(self, dropout_p=0.0):
        """A list."""
        parts = zip(*(x.transpose(0, 1).split(self.batch.lengths, 1) for x in self.leaves), strict=True)
        return [
            F.scaled_dot_product_attention(*(x[None] for x in some), dropout_p=dropout_p, is_causal=True)
            for some in parts
        ]

    def rows(self, out):
        """The list as one."""
        return torch.cat([x[0].transpose(0, 1) for x in out])
