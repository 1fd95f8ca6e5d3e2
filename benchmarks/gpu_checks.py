"""Every kernel against float64 on adversarial inputs, in seconds: what ``gpu_report.py`` asks before it measures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from children import write

import dqcore
from dqcore.models.sampling.draw import uniforms
from dqcore.models.sampling.walk import Plan, Walk
from dqcore.models.tapes import coarse_to_fine_tape
from dqcore.ops import (
    add_layer_norm,
    bias_gelu,
    code_sums,
    codebook_update,
    cross_entropy,
    decode_attention,
    dynamic_lookup,
    expand_features,
    linear_gelu,
    lookup_loss,
    nearest_code,
    pack_codes,
    pack_features,
    patch_entropy,
    unpack_codes,
    varlen_attention,
    varlen_attention_packed,
)
from dqcore.ops.add_rows import add_rows
from dqcore.ops.draw import draw
from dqcore.ops.reference.decode_attention import quantized
from dqcore.ops.take_content import take_content
from dqcore.ops.take_entry import take_entry
from dqcore.testing import adversarial_codebooks, assert_close, assert_nearest

Check = Callable[[], None]


def run(device: str, *, tiny: bool) -> Iterator[tuple[str, str | None]]:
    """Every check's name, and what went wrong, or None."""
    for name, check in checks(device, tiny).items():
        try:
            check()
            yield name, None
        except Exception as error:  # the others still tell something
            yield name, f"{type(error).__name__}: {str(error).strip()[:300]}"


def checks(device: str, tiny: bool) -> dict[str, Check]:
    """Against the float64 argmin; against the reference in float64; twice the same."""
    every: dict[str, Check] = {}
    sizes = [(33, 40, 8)] if tiny else [(1000, 300, 8), (3000, 1030, 256), (129, 65, 100)]
    for num, size, dim in sizes:
        for case, (x, codebook) in adversarial_codebooks(num, size, dim).items():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                pair = x.to(device, dtype), codebook.to(device, dtype)
                if all(tensor.isfinite().all() for tensor in pair):
                    every[f"nearest_code {case} {num}x{size}x{dim} {dtype}"] = lambda pair=pair: _nearest(*pair)
    for name, launch in every_kernel(device).items():
        if not name.startswith("decode_attention"):  # appends to its caches
            every[f"{name} again"] = lambda launch=launch: _same(launch(), launch())
        every[f"{name} against the reference"] = lambda launch=launch: _against_reference(launch)
    # programs that wait for each other: many of them, and few
    for images, size, dim in [(1, 20, 8)] if tiny else [(1, 40, 8), (8, 1024, 256), (64, 4099, 16)]:
        learns = _learns(device, images, size, dim)
        every[f"codebook_update {images}x{size}x{dim}"] = lambda learns=learns: _against_reference(learns)
        every[f"codebook_update {images}x{size}x{dim} again"] = lambda learns=learns: _same(learns(), learns())
    if device == "cuda":
        for num, size in [(700, 1100), (32768, 1024), (300001, 9973), (1048576, 16384)]:
            every[f"code order {num}x{size}"] = lambda num=num, size=size: _order(num, size)
    return every


def every_kernel(device: str) -> dict[str, Callable[[], tuple]]:
    """A small launch of each op, forward and backward."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    grain = torch.randint(0, 2, (3, 4, 5), generator=generator).to(device)
    maps = [normal(3, 24, 4 << g, 5 << g).requires_grad_() for g in range(2)]
    codebook, flat = normal(70, 24), normal(300, 24)
    codes = torch.randint(-1, 7, (300,), generator=generator).to(device)
    code_map = torch.randint(0, 70, (3, 8, 10), generator=generator).to(device)
    features = normal(3, 24, 8, 10).requires_grad_()

    def lookup() -> tuple:
        out = dynamic_lookup(maps, grain, codebook, with_sums=True)
        grads = torch.autograd.grad(out.quantized.square().sum() + out.error.sum(), maps)
        return (out.codes, out.quantized, out.error, *out.statistics, *grads)

    def channels_last() -> tuple:
        rows = [x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for x in maps]
        out = dynamic_lookup(rows, grain, codebook)
        return (out.quantized, out.error, *torch.autograd.grad(out.quantized.square().sum() + out.error.sum(), rows))

    def loss() -> tuple:
        return tuple(lookup_loss(code_map.float(), code_map - 7, 24, 0.25))

    def scatter() -> tuple:
        packed = pack_features(features, grain)
        wide = expand_features(packed, grain, num_granularities=2)
        return (packed, wide, *torch.autograd.grad(wide.square().sum(), features))

    def sequence() -> tuple:
        seq = pack_codes(code_map, grain)
        return (seq.codes, seq.positions, *unpack_codes(seq))

    return {
        "nearest_code": lambda: (nearest_code(flat, codebook),),
        "dynamic_lookup": lookup,
        "dynamic_lookup, channels last": channels_last,
        "lookup_loss": loss,
        "code_sums": lambda: tuple(code_sums(flat, codes, 7)),
        "patch_entropy": lambda: (_entropy(device),),
        "pack and expand features": scatter,
        "pack and unpack codes": sequence,
        **_transformer(device, normal),
        **_decoding(device, normal),
        **_walking(device, generator),
    }


def _transformer(device: str, normal: Callable[..., torch.Tensor]) -> dict[str, Callable[[], tuple]]:
    """What a training step and a sampling step launch beside decoding."""
    qkv, flat, weight = normal(41, 3, 2, 32).requires_grad_(), normal(200, 24), normal(70, 24)
    offset = weight[0].clone().requires_grad_()
    ends = torch.tensor([0, 7, 7, 40], dtype=torch.int32, device=device)
    seed = torch.tensor([3, 5], device=device)
    logits, codes = flat.clone().requires_grad_(), torch.arange(200, device=device) % 7

    def tokens() -> tuple:
        losses = cross_entropy(logits, codes)
        return (losses, *torch.autograd.grad(losses.mean(), logits))

    def sums() -> tuple:
        narrow, weight, bias = (value.detach().requires_grad_() for value in (flat.bfloat16(), flat[0], flat[1]))
        out = add_layer_norm(logits, narrow, weight, bias, dropout_p=0.1, dropout_seed=seed)
        return (*out, *torch.autograd.grad(out[0].square().sum() + out[1].sin().sum(), (logits, narrow, weight, bias)))

    def activation() -> tuple:
        out = bias_gelu(logits, offset)
        return (out, *torch.autograd.grad(out.square().sum(), (logits, offset)))

    def attention() -> tuple:
        out = varlen_attention(*qkv.unbind(1), ends, dropout_p=0.1, dropout_seed=seed)
        return (out, *torch.autograd.grad(out.square().sum(), qkv))

    def attention_packed() -> tuple:
        out = varlen_attention_packed(qkv, ends, dropout_p=0.1, dropout_seed=seed)
        return (out, *torch.autograd.grad(out.square().sum(), qkv))

    return {
        "cross_entropy": tokens,
        "add_layer_norm": sums,
        "bias_gelu": activation,
        "linear_gelu": lambda: (linear_gelu(flat.bfloat16(), weight.bfloat16(), weight[:, 0].bfloat16()),),
        "varlen_attention": attention,
        "varlen_attention_packed": attention_packed,
    }


def _decoding(device: str, normal: Callable[..., torch.Tensor]) -> dict[str, Callable[[], tuple]]:
    """A step with each kind of cache."""
    caches = normal(2, 3, 40, 2, 32)
    new = normal(3, 3, 2, 32).bfloat16().float().unbind(1)  # which a narrower cache keeps exactly
    lengths = torch.tensor([0, 17, 39], dtype=torch.int32, device=device)
    integers, scales = quantized(caches)
    kept = {"k_scales": scales[0], "v_scales": scales[1]}
    return {
        "decode_attention": lambda: (decode_attention(*new, *caches, lengths),),
        "decode_attention, bfloat16": lambda: (decode_attention(*new, *caches.bfloat16(), lengths),),
        "decode_attention, integers": lambda: (decode_attention(*new, *integers, lengths, **kept),),
    }


def _walking(device: str, generator: torch.Generator) -> dict[str, Callable[[], tuple]]:
    """A step of the walk with logits whose probabilities are rounded alike everywhere, so that all is equal."""
    tape = coarse_to_fine_tape((16, 16), 2, 1024, 1, "row-first").to(device)
    walk, samples = Walk(tape, 5, 2), torch.arange(5, device=device)
    labels = torch.zeros(2, 5, dtype=torch.int64, device=device)
    walk.load(samples < 4, Plan(tape, labels, uniforms(3, samples, 2 * len(tape))))
    even = -200.0 * torch.randint(0, 2, (10, 1284), generator=generator).to(device)
    lengths, active = torch.zeros(10, dtype=torch.int32, device=device), torch.ones(10, dtype=torch.bool, device=device)
    tables = [even[:3, :257].bfloat16() / 7, even[3:, :257].bfloat16() / 3]

    def step() -> tuple:
        here, status, taken, *read = (x.clone() for x in (walk._here, walk.status, walk.taken, lengths, active))
        take_entry(here, status, walk.tokens, tape.columns, tape.rules, even[:, :1027], 3.0, 0.7, 40, 0.9)
        take_content(here, taken, *read, even[:, :1024], 3.0, 1.0, 300, 1.0)
        return here, status, taken, *read

    def first() -> tuple:
        here, status = walk._here.clone(), walk.status.clone()
        take_entry(here, status, walk.tokens, tape.columns, tape.rules, None, 1.0, 1.0, None, 1.0)
        return here, status

    return {
        "a step of the walk": step,
        "the first entry": first,
        "draw": lambda: (draw(even, walk.tokens[0, :, :2, -1].flatten(), 0.5, 30, 0.8),),
        "add_rows": lambda: (add_rows(None, tables, [lengths, samples.repeat(2)]),),
    }


def _learns(device: str, images: int, size: int, dim: int) -> Callable[[], tuple]:
    """A batch that leaves most codes unused, so that they are revived: codes, sizes, ages and sums after it."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(images, dim, 16 << g, 16 << g, generator=generator).to(device) for g in range(2)]
    grain = torch.randint(0, 2, (images, 16, 16), generator=generator).to(device)
    codes = torch.randn(size + 1, dim, generator=generator).to(device)
    with dqcore.backend("reference"):
        found = dynamic_lookup(maps, grain, codes[:-1], with_sums=True)
    start = (codes, torch.full((size,), 0.01, device=device), torch.arange(size, device=device), codes[:-1] * 0.01)

    def learn() -> tuple:
        state = tuple(value.clone() for value in start)
        codebook_update(state, found, maps, grain, decay=0.99, threshold=0.5)
        return state

    return learn


def _order(num: int, size: int) -> None:
    """Codes in order, as a stable sort puts them; most vectors have the first codes, many have none."""
    from dqcore.kernels.code_order import order_by_code

    keys = (torch.rand(num, device="cuda").square() * (size + 1)).int() - 1
    found, order, offsets, counts = order_by_code(keys, size)
    buckets = torch.where(keys < 0, size, keys)
    expected, places = buckets.sort(stable=True)
    assert torch.equal(order, places), "another order"
    assert torch.equal(found, torch.where(expected == size, -1, expected).int()), "other codes"
    every = torch.arange(size + 1, dtype=torch.int32, device="cuda")
    assert torch.equal(offsets, torch.searchsorted(expected, every)), "codes begin elsewhere"
    assert torch.equal(counts, offsets.diff().float()), "other counts"


def _entropy(device: str) -> torch.Tensor:
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    images[0, :, :16, :16] = 0.03  # one value: all mass in two bins
    return patch_entropy(images.to(device), 16)


def _nearest(x: torch.Tensor, codebook: torch.Tensor) -> None:
    assert_nearest(nearest_code(x, codebook), x, codebook)


def _same(first: tuple, second: tuple) -> None:
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "two runs differ"


def _against_reference(launch: Callable[[], tuple]) -> None:
    actual = launch()
    with dqcore.backend("reference"):
        expected = launch()
    for a, b in zip(actual, expected, strict=True):
        if b.is_floating_point():
            scale = b.double().abs().max().clamp_min(1e-30)
            precision = a.dtype if a.dtype.itemsize == 2 else torch.float32
            assert_close(a.double() / scale, b.double() / scale, precision)
        else:
            assert torch.equal(a, b), "indices differ"


def main() -> None:
    """Write a line a check, so that those before a crash are known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    for name, fault in run(args.device, tiny=args.tiny):
        write({"name": name, "fault": fault})


if __name__ == "__main__":
    main()
