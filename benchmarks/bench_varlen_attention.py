"""``varlen_attention`` against what PyTorch has for the same sequences: packed, padded, masked, and one at a time."""

import pytest
import torch
from attention_peers import Batch, CuDNN, EachAlone, Efficient, Flash, Flex, Packed, Padded
from rows import met
from timing import interleaved_medians, medians, reason

import dqcore

SHAPES = {  # sequences, shortest, longest, heads, channels
    "cpu": [(8, 300, 700, 8, 64)],
    "cuda": [(32, 300, 700, 16, 64), (32, 300, 700, 8, 128), (64, 256, 1024, 16, 64)],
}
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest value
SECONDS = {  # at most, of an H100, by shape, direction and dropout
    (0, "forward", 0.0): 90e-6,
    (0, "backward", 0.0): 300e-6,
    (0, "forward", 0.1): 130e-6,
    (0, "backward", 0.1): 360e-6,
    (1, "forward", 0.0): 95e-6,
    (1, "backward", 0.0): 280e-6,
}
FLOAT32 = {"forward": 1.2, "backward": 1.1}  # times memory-efficient attention, at least


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
            except Exception as error:
                reasons[name] = reason(error)
    return able, reasons


def measure(benchmark, mine, kinds, direction, dropout_p, tolerance, target):
    """Check, then time ours and the peers in turn; the row's own median counts the host's part too."""
    batch = mine.batch
    check(mine, dropout_p, tolerance)
    peers, reasons = peers_of(batch, kinds, dropout_p, mine, tolerance)
    calls = {name: prepared(peer, direction, dropout_p) for name, peer in {"dqcore": mine, **peers}.items()}
    device = batch.cu_seqlens.device
    alone, rounds = [name for name, peer in peers.items() if not peer.captured], 5 if device.type == "cpu" else 15
    seconds, failed = medians(calls, device, rounds=rounds, alone=alone)
    alike = {}
    for name in [name for name in alone if name in seconds and device.type == "cuda"]:
        launched, theirs = interleaved_medians(calls["dqcore"], calls[name], rounds=rounds)
        alike[name] = theirs / launched
    ours = seconds.pop("dqcore")
    benchmark.extra_info |= {"lengths": [min(batch.lengths), batch.longest], "tokens": sum(batch.lengths)}
    benchmark.extra_info |= {"seconds": ours, "peers": seconds, "left_out": reasons | failed}
    benchmark.extra_info |= {"launched_one_by_one": alone, "speedup_launched_alike": alike}
    speedup = {name: peer / ours for name, peer in seconds.items()}
    benchmark.extra_info["speedup"] = speedup
    if target:
        benchmark.extra_info |= {"target": target, "met": met(target, ours, speedup)}
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
        target["speedup"] = dict.fromkeys(["flash_attention_2", *(["cudnn", "padded"] if dropout_p else [])], 1.0)
        if (index, direction, dropout_p) in SECONDS:
            target["seconds"] = SECONDS[index, direction, dropout_p]
    elif not dropout_p:
        target = {"speedup": {"each_alone": 1 / 1.3}}
    measure(benchmark, mine, PEERS[device], direction, dropout_p, TOLERANCE[DTYPE[device]], target)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("precision", ["ieee", "tf32x3"])
def bench_float32(benchmark, device, precision, direction):
    """Float32 on a GPU, where FlashAttention has none."""
    if device == "cpu":
        pytest.skip("on the CPU every row is float32")
    mine = Packed(Batch(SHAPES[device][0], device, torch.float32), precision)
    kinds = {"efficient_attention": Efficient, "padded": Padded}
    target = {"speedup": {"efficient_attention": FLOAT32[direction]}} if precision == "tf32x3" else {}
    measure(benchmark, mine, kinds, direction, 0.0, TOLERANCE[torch.float32], target)
