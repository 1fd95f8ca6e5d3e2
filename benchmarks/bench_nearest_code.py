"""``nearest_code`` against what PyTorch users write: ``cdist`` and ``addmm``, each followed by ``argmin``."""

import functools

import pytest
import torch
from rows import compare, missing, running, tf32

from dqcore.ops import nearest_code
from dqcore.testing import assert_nearest

SHAPES = {  # vectors, codes, channels, dtype
    "cpu": [(8192, 1024, 256, torch.float32), (8192, 8192, 32, torch.float32)],
    "cuda": [
        (32768, 8192, 256, torch.float32),
        (32768, 8192, 256, torch.bfloat16),
        (32768, 8192, 256, torch.float16),
        (1048576, 16384, 8, torch.float32),
        (32768, 1024, 256, torch.float32),
    ],
}
TINY = [(40, 70, 16, torch.float32), (40, 70, 16, torch.bfloat16), (300, 20, 8, torch.float32)]
TARGETS = {
    (32768, 8192, 256, torch.float32): {"seconds": 340e-6, "speedup": {"cdist": 7, "addmm": 7}},
    (32768, 8192, 256, torch.bfloat16): {"seconds": 310e-6},
    (32768, 8192, 256, torch.float16): {"seconds": 310e-6},
    (1048576, 16384, 8, torch.float32): {"speedup": {"addmm": 3}},
}
MOST = 2**31  # elements of one matrix of distances; a longer batch is cut, as whoever writes it this way has to


def _addmm(x, codebook):
    square = x.square().sum(1, keepdim=True) + codebook.square().sum(1)
    return torch.addmm(square, x, codebook.T, alpha=-2).argmin(1)


def _cdist(x, codebook):
    return torch.cdist(x, codebook).argmin(1)


def _in_parts(lookup, x, codebook):
    return torch.cat([lookup(part, codebook) for part in x.split(max(1, MOST // len(codebook)))])


def _with_tf32(lookup, x, codebook):
    with tf32(True):
        return lookup(x, codebook)


@functools.cache
def _compiled(allow_tf32):
    """A function of its own each, since what is compiled depends on the setting."""
    compiled = torch.compile(lambda x, codebook: _addmm(x, codebook), dynamic=False)
    return functools.partial(_with_tf32, compiled) if allow_tf32 else compiled


def _package(codebook):
    """vector-quantize-pytorch's layer with this codebook, in evaluation."""
    import vector_quantize_pytorch as package

    layer = package.VectorQuantize(codebook.shape[1], codebook_size=len(codebook)).to(codebook.device).eval()
    layer._codebook.embed.data.copy_(codebook[None])
    return torch.no_grad()(lambda x, _: layer(x[None])[1][0])


def peers(codebook, device):
    """By name: takes vectors and codebook, gives codes."""
    found = {"cdist": _cdist, "addmm": _addmm}
    if codebook.dtype != torch.float32:
        return {"addmm": _addmm}
    if device == "cuda":
        found |= {"addmm_tf32": functools.partial(_with_tf32, _addmm), "compiled": _compiled(False)}
        found |= {"compiled_tf32": _compiled(True)}
    try:
        found["vector_quantize_pytorch"] = _package(codebook)
    except ImportError as error:
        found["vector_quantize_pytorch"] = missing(error)
    return found


@pytest.mark.parametrize("index", range(5))
def bench_nearest_code(benchmark, device, index):
    """Exact lookup; the peers are wrong for up to 2 % of vectors at VQGAN's initialisation."""
    if index >= len(SHAPES[device]):
        pytest.skip("no such shape on this device")
    shape = SHAPES[device][index]
    num, size, dim, dtype = shape
    torch.manual_seed(0)
    x = torch.randn(num, dim, device=device).to(dtype)
    codebook = ((torch.rand(size, dim, device=device) * 2 - 1) / size).to(dtype)
    codes = nearest_code(x, codebook)
    rows = torch.randint(num, (32,), device=device)
    assert_nearest(codes[rows], x[rows], codebook)
    left_out: dict[str, str] = {}
    calls = {
        name: functools.partial(_in_parts, lookup, x, codebook) for name, lookup in peers(codebook, device).items()
    }
    calls = running(calls, left_out)
    wrong = {name: (call() != codes).float().mean().item() for name, call in calls.items()}
    # The layer and cdist take the square root and more memory; at a million vectors one formula is enough.
    if num > 2**19:
        calls = {name: call for name, call in calls.items() if name in ("addmm", "addmm_tf32", "compiled_tf32")}
    waits = {name: calls.pop(name) for name in ("vector_quantize_pytorch",) if name in calls}
    seconds = compare(
        benchmark,
        device,
        lambda: nearest_code(x, codebook),
        calls,
        TARGETS.get(shape),
        waits=waits,
        rounds=5 if num > 2**19 else None,
        shape=[num, size, dim],
        dtype=str(dtype),
        wrong_share_of_peers=wrong,
        peers_in_parts=num * size > MOST,
    )
    benchmark.extra_info["left_out"] |= left_out
    benchmark.extra_info["tflops"] = 2 * num * size * dim / seconds["dqcore"] / 1e12
