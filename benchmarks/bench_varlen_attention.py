"""``varlen_attention`` against what PyTorch has for the same sequences: packed, padded, masked, and one at a time."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from timing import medians
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import dqcore
from dqcore.ops import varlen_attention

SHAPES = {  # sequences, shortest, longest, heads, channels
    "cpu": [(8, 300, 700, 8, 64)],
    "cuda": [(32, 300, 700, 16, 64), (32, 300, 700, 8, 128), (64, 256, 1024, 16, 64)],
}
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest value
SECONDS = {  # of an H200 on the first shape, by direction and dropout
    ("forward", 0.0): 95e-6,
    ("backward", 0.0): 220e-6,
    ("forward", 0.1): 115e-6,
    ("backward", 0.1): 260e-6,
}


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


PEERS = {
    "cpu": {"each_alone": EachAlone, "padded": Padded},
    "cuda": {"flash_attention_2": Flash, "cudnn": CuDNN, "flex_attention": Flex, "padded": Padded},
}


def _close(actual, expected, tolerance):
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double() / scale, expected.double() / scale, rtol=0, atol=tolerance)


def check(mine, dropout_p, tolerance):
    """Ours against the reference in float32: the output and the three gradients."""
    batch, results = mine.batch, []
    seed = torch.tensor([3, 4], device=batch.cu_seqlens.device)
    for name, leaves in (("auto", batch.leaves), ("reference", [x.detach().float() for x in batch.leaves])):
        mine.leaves = [x.requires_grad_() for x in leaves]
        with dqcore.backend(name):
            out = mine(dropout_p, seed)
            pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(batch.leaves[0])
            results.append([out, *torch.autograd.grad(out, mine.leaves, pull.to(out.dtype))])
    mine.leaves = batch.leaves
    for actual, expected in zip(*results, strict=True):
        _close(actual, expected, tolerance)


def prepared(peer, direction, dropout_p):
    """What is measured: the forward pass without a graph, or the backward pass of one forward pass again and again."""

    def forward():
        with torch.no_grad():
            return peer(dropout_p)

    kept = []

    def backward():
        if not kept:  # on the stream on which the gradients will be taken
            outs = peer(dropout_p)
            outs = outs if isinstance(outs, list) else [outs]
            kept.extend((outs, [torch.randn_like(x) for x in outs]))
        return torch.autograd.grad(kept[0], peer.leaves, kept[1], retain_graph=True)

    return forward if direction == "forward" else backward


def peers_of(batch, kinds, dropout_p, mine, tolerance):
    """The peers that can do the same and do it right; and why others are left out."""
    able, reasons = {}, {}
    with torch.no_grad():
        expected = mine()
        for name, kind in kinds.items():
            if dropout_p and not kind.dropout:
                reasons[name] = "has no dropout"
                continue
            try:
                peer = kind(batch)
                _close(peer.rows(peer()), expected, 2 * tolerance)
                able[name] = peer
            except (AssertionError, NotImplementedError, RuntimeError) as error:
                reasons[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return able, reasons


def measure(benchmark, mine, kinds, direction, dropout_p, tolerance, target):
    """Check, then time ours and the peers in turn; the row's own median counts the host's part too."""
    batch = mine.batch
    check(mine, dropout_p, tolerance)
    peers, reasons = peers_of(batch, kinds, dropout_p, mine, tolerance)
    calls = {name: prepared(peer, direction, dropout_p) for name, peer in {"dqcore": mine, **peers}.items()}
    device = batch.cu_seqlens.device
    alone = [name for name, peer in peers.items() if not peer.captured]
    seconds, failed = medians(calls, device, rounds=5 if device.type == "cpu" else 15, alone=alone)
    ours = seconds.pop("dqcore")
    benchmark.extra_info |= {"lengths": [min(batch.lengths), batch.longest], "tokens": sum(batch.lengths)}
    benchmark.extra_info |= {"seconds": ours, "peers": seconds, "left_out": reasons | failed}
    benchmark.extra_info |= {"launched_one_by_one": alone}
    benchmark.extra_info |= {"speedup": {name: peer / ours for name, peer in seconds.items()}}
    if target:
        limits = [target["seconds"]] if "seconds" in target else []
        limits += [seconds[name] for name in target["no_slower_than"] if name in seconds]
        benchmark.extra_info |= {"target": target, "met": bool(limits) and ours <= min(limits)}
    benchmark(prepared(mine, direction, dropout_p))


def _shape(device, index):
    if index >= len(SHAPES[device]):
        pytest.skip("no such shape on this device")
    return SHAPES[device][index]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.parametrize("index", range(3))
def bench_varlen_attention(benchmark, device, index, dropout_p, direction):
    """One pass over a packed batch: bfloat16 on a GPU, float32 on the CPU."""
    mine = Packed(Batch(_shape(device, index), device, DTYPE[device]))
    target = {}
    if device == "cuda":
        target["no_slower_than"] = ["flash_attention_2", "cudnn", "padded"] if dropout_p else ["flash_attention_2"]
        if index == 0:
            target["seconds"] = SECONDS[direction, dropout_p]
    elif not dropout_p:
        target = {"at_most": "1.3 times each_alone", "no_slower_than": []}
    measure(benchmark, mine, PEERS[device], direction, dropout_p, TOLERANCE[DTYPE[device]], target)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def bench_float32(benchmark, device, precision, direction):
    """Float32 on a GPU, where FlashAttention has none."""
    if device == "cpu":
        pytest.skip("on the CPU every row is float32")
    mine = Packed(Batch(SHAPES[device][0], device, torch.float32), precision)
    kinds, target = {"efficient_attention": Efficient, "padded": Padded}, {"no_slower_than": ["efficient_attention"]}
    measure(benchmark, mine, kinds, direction, 0.0, TOLERANCE[torch.float32], target)
