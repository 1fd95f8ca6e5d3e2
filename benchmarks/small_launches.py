"""A small launch of each op, forward and backward: what ``gpu_checks.py`` runs twice and against the reference."""

from __future__ import annotations

from collections.abc import Callable

import torch

import dqcore
from dqcore.models.sampling.draw import uniforms
from dqcore.models.sampling.walk import Plan, TapeWalk
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
from dqcore.ops.draw_vectors import draw_vectors
from dqcore.ops.reference.decode_attention import quantized
from dqcore.ops.take_content import take_content
from dqcore.ops.take_entry import take_entry

Launches = dict[str, Callable[[], tuple]]


def every_kernel(device: str) -> Launches:
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

    def parts() -> tuple:
        drawn: tuple = ()
        for part in (slice(0, 1), slice(1, 3)):
            found = dynamic_lookup([x.detach()[part] for x in maps], grain[part], codebook)
            given = [x.detach()[part] for x in maps], grain[part], found.codes, found.error
            drawn = draw_vectors(*given, grain.sum(), 70, before=80 * part.start, pool=drawn)
        return drawn

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
        "draw_vectors": parts,
        "lookup_loss": loss,
        "code_sums": lambda: tuple(code_sums(flat, codes, 7)),
        "patch_entropy": lambda: (_entropy(device),),
        "pack and expand features": scatter,
        "pack and unpack codes": sequence,
        **_transformer(device, normal),
        **_decoding(device, normal),
        **_walking(device, generator),
        **_large(device, generator),
    }


def _transformer(device: str, normal: Callable[..., torch.Tensor]) -> Launches:
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


def _decoding(device: str, normal: Callable[..., torch.Tensor]) -> Launches:
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


def _walking(device: str, generator: torch.Generator, side: int = 16, codes: int = 1024) -> Launches:
    """A step of the walk with logits whose probabilities are rounded alike everywhere, so that all is equal."""
    tape = coarse_to_fine_tape((side, side), 2, codes, 1, "row-first").to(device)
    walk, samples = TapeWalk(tape, 5, 2), torch.arange(5, device=device)
    labels = torch.zeros(2, 5, dtype=torch.int64, device=device)
    walk.load(samples < 4, Plan(tape, labels, uniforms(3, samples, 2 * len(tape))))
    positions = int(tape.columns.max()) + 1
    even = -200.0 * torch.randint(0, 2, (10, max(codes, positions) + 257), generator=generator).to(device)
    lengths, active = torch.zeros(10, dtype=torch.int32, device=device), torch.ones(10, dtype=torch.bool, device=device)
    tables = [even[:3, :257].bfloat16() / 7, even[3:, :257].bfloat16() / 3]

    def step() -> tuple:
        here, status, taken, *read = (x.clone() for x in (walk._here, walk.status, walk.taken, lengths, active))
        take_entry(here, status, walk.tokens, tape.columns, tape.rules, even[:, :positions], 3.0, 0.7, 40, 0.9)
        take_content(here, taken, *read, even[:, :codes], 3.0, 1.0, 300, 1.0)
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


def _large(device: str, generator: torch.Generator) -> Launches:
    """What has kernels of its own where it is large: rows of over 8,192, a long cache, over 65,536 errors."""
    caches = torch.randn(2, 3, 300, 2, 32, generator=generator).to(device)
    new = torch.randn(3, 3, 2, 32, generator=generator).to(device).unbind(1)
    lengths = torch.tensor([0, 170, 299], dtype=torch.int32, device=device)
    error = torch.rand(5, 128, 128, generator=generator).to(device)
    codes = torch.randint(-1, 7, (5, 128, 128), generator=generator).to(device)
    walking = _walking(device, generator, 48, 9000)
    return {
        **{f"{name}, long rows": walking[name] for name in ("a step of the walk", "the first entry", "draw")},
        "decode_attention, a long cache": lambda: (decode_attention(*new, *caches, lengths),),
        "lookup_loss, many cells": lambda: tuple(lookup_loss(error, codes, 24, 0.25)),
    }


def _entropy(device: str) -> torch.Tensor:
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    images[0, :, :16, :16] = 0.03  # one value: all mass in two bins
    return patch_entropy(images.to(device), 16)


def learns(device: str, images: int, size: int, dim: int) -> Callable[[], tuple]:
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
