"""A training step of a stack of transformer blocks on packed sequences, against the same stack on a padded batch."""

import copy

import torch
import torch.nn.functional as F
from rows import met
from timing import interleaved_medians
from torch import nn

from dqcore.nn.attention import CausalSelfAttention
from dqcore.nn.transformer import Transformer, initialise

SHAPES = {  # sequences, shortest, longest, channels, heads, layers
    "cpu": (8, 30, 70, 128, 4, 2),
    "cuda": (32, 300, 700, 1024, 16, 24),
}
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
DROPOUT = 0.1


class PaddedAttention(CausalSelfAttention):
    """The same layer on ``(B, longest, dim)``; under a causal mask no code sees padding."""

    def forward(self, x, cu_seqlens, dropout_seed=None):
        """SDPA with its own dropout, which on a GPU is FlashAttention 2."""
        q, k, v = (each.transpose(1, 2) for each in self._heads(x).unbind(-3))
        dropout_p = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)
        return self.proj(out.transpose(1, 2).flatten(2))


def padded_twin(model):
    """A copy of the stack with the same weights and padded attention."""
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        block.attention.__class__ = PaddedAttention
    return twin


class Stacks:
    """Both stacks, their optimizers, and one batch."""

    def __init__(self, shape, device, dtype):
        count, shortest, longest, dim, heads, layers = shape
        torch.manual_seed(0)
        lengths = torch.randint(shortest, longest + 1, (count,)).tolist()
        self.lengths, self.rows = lengths, torch.randn(sum(lengths), dim, dtype=dtype, device=device)
        self.cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
        self.batch = nn.utils.rnn.pad_sequence(self.rows.split(lengths), batch_first=True)
        there = torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]
        self.there = there.flatten().nonzero()[:, 0]  # with a mask the host would wait in each padded step
        self.packed = Transformer(dim, heads, layers, DROPOUT)
        initialise(self.packed)
        self.packed = self.packed.to(device, dtype)
        self.padded = padded_twin(self.packed)
        fused = device == "cuda"
        self.optimizers = [torch.optim.AdamW(x.parameters(), 1e-4, fused=fused) for x in (self.packed, self.padded)]

    def packed_step(self):
        """Ours."""
        self._update(self.packed(self.rows, self.cu_seqlens), self.optimizers[0])

    def padded_step(self):
        """Linear layers, normalizations and dropout also run on padding; the loss does not."""
        self._update(self.padded(self.batch, self.cu_seqlens).flatten(0, 1)[self.there], self.optimizers[1])

    def _update(self, out, optimizer):
        out.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def check(self, tolerance):
        """Without dropout both give the same."""
        with torch.no_grad():
            mine = self.packed.eval()(self.rows, self.cu_seqlens)
            theirs = self.padded.eval()(self.batch, self.cu_seqlens).flatten(0, 1)[self.there]
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item())
        self.packed.train()
        self.padded.train()


def bench_transformer_training(benchmark, device):
    """Forward, backward and AdamW with dropout 0.1 everywhere, by the clock on the wall."""
    stacks = Stacks(SHAPES[device], device, DTYPE[device])
    stacks.check(1e-4 if device == "cpu" else 3e-2)
    mine, theirs = interleaved_medians(stacks.packed_step, stacks.padded_step, rounds=3 if device == "cpu" else 10)
    tokens, slots = sum(stacks.lengths), stacks.batch.shape[0] * stacks.batch.shape[1]
    benchmark.extra_info |= {"shape": SHAPES[device], "tokens": tokens, "padded_tokens": slots}
    benchmark.extra_info |= {"seconds": mine, "peers": {"padded": theirs}, "speedup": {"padded": theirs / mine}}
    if device == "cuda":
        target = {"speedup": {"padded": 1.6}}
        benchmark.extra_info |= {"target": target, "met": met(target, mine, benchmark.extra_info["speedup"])}
    benchmark(stacks.packed_step)
