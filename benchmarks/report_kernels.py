"""Where the time of the larger ops and of steps of sampling and training goes: their kernels, by ``torch.profiler``.

``python report_kernels.py NAME`` waits for a line on its standard input, then profiles the case of this name and writes
its table (:mod:`children`). ``gpu_report.py`` runs each in a process of its own.
"""

from __future__ import annotations

import argparse
import collections
import importlib
from collections.abc import Callable
from typing import Any

import torch
from children import wait, write
from torch.profiler import ProfilerActivity, profile

#: A call, and how many steps it does.
Case = tuple[Callable[[], object], int]
KEPT = 40  # kernels of a table


def _nearest(dtype: torch.dtype) -> Callable[[str, bool], Case]:
    def case(device: str, tiny: bool) -> Case:
        from dqcore.ops import nearest_code

        num, size, dim = (40, 30, 16) if tiny else (32768, 8192, 256)
        x, codebook = (torch.randn(rows, dim, device=device).to(dtype) for rows in (num, size))
        return lambda: nearest_code(x, codebook), 1

    return case


def _maps(device: str, tiny: bool, dtype: torch.dtype, memory: torch.memory_format) -> tuple[list, Any, Any]:
    images, dim, side, size = (2, 8, 4, 20) if tiny else (32, 256, 16, 1024)
    maps = [torch.randn(images, dim, side << g, side << g, device=device, dtype=dtype) for g in range(2)]
    grain = torch.rand(images, side * side, device=device).argsort(1).lt(side * side // 2).long()
    codebook = torch.randn(size, dim, device=device)
    return [x.contiguous(memory_format=memory) for x in maps], grain.view(images, side, side), codebook


def _lookup(dtype: torch.dtype, memory: torch.memory_format) -> Callable[[str, bool], Case]:
    def case(device: str, tiny: bool) -> Case:
        from dqcore.ops import dynamic_lookup

        maps, grain, codebook = _maps(device, tiny, dtype, memory)
        return lambda: dynamic_lookup(maps, grain, codebook.to(dtype)), 1

    return case


def _quantizer(memory: torch.memory_format) -> Callable[[str, bool], Case]:
    def case(device: str, tiny: bool) -> Case:
        import dqcore

        maps, grain, codebook = _maps(device, tiny, torch.float32, memory)
        quantizer = dqcore.DynamicQuantizer(codebook.shape[1], len(codebook), num_granularities=2).to(device)
        leaves, grad = [x.requires_grad_() for x in maps], torch.randn_like(maps[1])

        def step() -> object:
            out = quantizer(leaves, grain)
            return torch.autograd.grad([out.map, out.loss], leaves, [grad, None])

        return step, 1

    return case


def _attention(index: int, direction: str, dropout_p: float) -> Callable[[str, bool], Case]:
    def case(device: str, tiny: bool) -> Case:
        bench = importlib.import_module("bench_varlen_attention")
        shape = (2, 5, 9, 2, 16) if tiny else bench.SHAPES["cuda"][index]
        batch = bench.Batch(shape, device, torch.float32 if tiny else torch.bfloat16)
        return bench.prepared(bench.Packed(batch), direction, dropout_p), 1

    return case


def _decode(device: str, tiny: bool) -> Case:
    bench = importlib.import_module("bench_decode_attention")
    cached = min(500, bench.SHAPES[device][1] - 1)
    return bench.Step(bench.SHAPES[device], device, bench.DTYPE[device], cached).mine, 1


def _entropy(device: str, tiny: bool) -> Case:
    from dqcore.ops import patch_entropy

    images = torch.rand((2, 3, 32, 32) if tiny else (32, 3, 256, 256), device=device) * 2 - 1
    return lambda: patch_entropy(images, 16), 1


def _features(name: str, memory: torch.memory_format) -> Callable[[str, bool], Case]:
    def case(device: str, tiny: bool) -> Case:
        from dqcore.ops import expand_features, pack_features

        (_, fine), grain, _ = _maps(device, tiny, torch.float32, memory)
        vectors = pack_features(fine, grain)
        if name == "pack":
            return lambda: pack_features(fine, grain), 1
        return lambda: expand_features(vectors, grain, num_granularities=2), 1

    return case


def _sums(device: str, tiny: bool) -> Case:
    from dqcore.ops import code_sums

    rows, dim, size = (40, 8, 7) if tiny else (32768, 256, 1024)
    codes, x = torch.randint(0, size, (rows,), device=device), torch.randn(rows, dim, device=device)
    return lambda: code_sums(x, codes, size), 1


def _pack_codes(device: str, tiny: bool) -> Case:
    from dqcore.ops import pack_codes, unpack_codes

    (_, fine), grain, codebook = _maps(device, tiny, torch.float32, torch.contiguous_format)
    code_map = torch.randint(0, len(codebook), (len(fine), *fine.shape[2:]), device=device)
    return lambda: unpack_codes(pack_codes(code_map, grain)), 1


def _sampling(device: str, tiny: bool) -> Case:
    """All steps of one batch of the benchmark's slots; the table is of one."""
    bench = importlib.import_module("bench_generate")
    prior, slots = bench.large()
    given = bench.half_coarse(prior, slots)
    options = {"slots": slots, "given": given, "closed": 1}
    tokens = int(prior.generate(slots, **options).lengths[0]) + 3
    return lambda: prior.generate(slots, **options), tokens


def _training(device: str, tiny: bool) -> Case:
    import dqcore
    from dqcore.distributed import World
    from dqcore.models.priors.dq_transformer import DQTransformer
    from dqcore.training.prior.step import PriorStep

    preset, images, side = ("dqtransformer-tiny", 2, 8) if tiny else ("dqtransformer-base", 32, 16)
    model = DQTransformer.from_preset(preset).to(device)
    grain = torch.stack([torch.randperm(side * side).view(side, side) % 2 for _ in range(images)])
    codes = torch.randint(0, model.config.codebook_size, (images, 2 * side, 2 * side))
    sequence = dqcore.pack_codes(codes, grain, num_granularities=2).to(device)
    step = PriorStep(model, World(0, 1, torch.device(device)), autocast=device == "cuda")
    return lambda: step(sequence, None, 1, 3e-4), 1


_ROWS, _PLANES = torch.channels_last, torch.contiguous_format
#: The most important first.
CASES: dict[str, Callable[[str, bool], Case]] = {
    "sampling step, base model": _sampling,
    "training step, base model": _training,
    "quantizer step": _quantizer(_PLANES),
    "quantizer step, channels last": _quantizer(_ROWS),
    "dynamic_lookup float32": _lookup(torch.float32, _PLANES),
    "dynamic_lookup float32, channels last": _lookup(torch.float32, _ROWS),
    "dynamic_lookup bfloat16, channels last": _lookup(torch.bfloat16, _ROWS),
    "nearest_code float32": _nearest(torch.float32),
    "nearest_code bfloat16": _nearest(torch.bfloat16),
    **{
        f"attention {heads} {direction}, dropout {dropout}": _attention(index, direction, dropout)
        for index, heads in ((0, "16 x 64"), (1, "8 x 128"))
        for direction in ("forward", "backward")
        for dropout in (0.0, 0.1)
    },
    "decode_attention": _decode,
    "expand_features planes": _features("expand", _PLANES),
    "expand_features vectors": _features("expand", _ROWS),
    "pack_features planes": _features("pack", _PLANES),
    "pack_features vectors": _features("pack", _ROWS),
    "patch_entropy": _entropy,
    "code_sums": _sums,
    "pack_codes and unpack_codes": _pack_codes,
}


def table(call: Callable[[], object], steps: int, device: str) -> dict[str, Any]:
    """Microseconds and launches of each kernel in one step, the longest first; on a CPU of each of PyTorch's ops."""
    on_gpu = device == "cuda"

    def run(times: int) -> None:
        for _ in range(times):
            call()
        if on_gpu:
            torch.cuda.synchronize()

    calls = 1 if steps > 1 else 5
    run(1 if steps > 1 else 3)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as watched:
        run(calls)
    nanoseconds: collections.Counter[str] = collections.Counter()
    launches: collections.Counter[str] = collections.Counter()
    for event in watched.profiler.kineto_results.events():  # key_averages() takes a minute for a whole sample
        # the host's calls of the driver are listed too, and ranges that a program named, over what runs in them
        if (event.device_type() == torch.autograd.DeviceType.CUDA) == on_gpu and not _is_range(event):
            nanoseconds[event.name()] += event.duration_ns()
            launches[event.name()] += 1
    share = steps * calls
    rows = [
        {"us": round(time / 1e3 / share, 3), "launches": round(launches[name] / share, 2), "kernel": name[:200]}
        for name, time in nanoseconds.most_common(KEPT)
    ]
    return {
        "us": round(sum(nanoseconds.values()) / 1e3 / share, 2),
        "launches": round(sum(launches.values()) / share, 1),
        "kernels": rows,
    }


def _is_range(event: Any) -> bool:
    """Whether an event is a range that a program named; versions of PyTorch that do not say note none on a GPU."""
    return getattr(event, "is_user_annotation", bool)()


def show(name: str, found: dict[str, Any], most: int = 8) -> str:
    """A case's table in words."""
    lines = [f"{name}: {found['us']} us in kernels, {found['launches']} launches"]
    lines += [f"  {row['us']:10.1f} us x{row['launches']:<6} {row['kernel'][:90]}" for row in found["kernels"][:most]]
    return "\n".join(lines)


def main() -> None:
    """Profile one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CASES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU; --device cpu --tiny needs none")
    wait()
    torch.manual_seed(0)
    call, steps = CASES[args.name](args.device, args.tiny)
    write({"name": args.name, **table(call, steps, args.device)})


if __name__ == "__main__":
    main()
