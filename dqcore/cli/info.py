"""``dqcore info``: what this installation is and can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterator

import torch

from dqcore import __version__, backends
from dqcore.codebook.modules import count_numbers
from dqcore.models.auto import PRIORS, TOKENIZERS
from dqcore.printing import say
from dqcore.progress import counted

__all__ = ["info", "lines"]


def info() -> None:
    """Show versions, devices, which kernels are there and why others are not, and the presets."""
    for line in lines():
        say(line)


def lines() -> Iterator[str]:
    """What :func:`info` prints, line by line; presets stand with their sizes.

    A tokenizer's size is that of its parameters and its codebook, as the paper counts; both follow in brackets.
    """
    yield f"dqcore {__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    yield f"devices    {', '.join(_devices())}"
    record, module = backends.build_record(), backends.extension()
    yield f"extension  {'available' if module is not None else _missing(record['extension'])}"
    yield f"CUDA       {_cuda(module is not None and bool(module.has_cuda), record['cuda'])}"
    yield f"Triton     {_triton()}"
    yield f"LPIPS      {_package('lpips', 'perceptual')}"
    yield f"logging    TensorBoard {_package('tensorboard', 'tensorboard')}"
    yield f"LMDB       {_package('lmdb', 'lmdb')}"
    yield "presets"
    for kind in (*TOKENIZERS.values(), *PRIORS.values()):
        for name in kind.PRESETS:
            with torch.device("meta"):
                count, codebook = count_numbers(kind.from_preset(name))
            parts = f" + codebook ({count:,} + {codebook:,})" if codebook else ""
            yield f"  {name:<26}{count + codebook:>12,} parameters{parts}"


def _devices() -> list[str]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [f"CPU ({counted(torch.get_num_threads(), 'core')})", *(gpus or ["no GPU that torch can use"])]


def _missing(record: str) -> str:
    return f"missing: {record}" + ", from other sources than these; install again" * record.startswith("built")


def _cuda(built: bool, record: str) -> str:
    if not built:
        return f"missing: {record}" + ", which is newer than the driver" * record.startswith("built")
    return "available" if torch.cuda.is_available() else "built, and there is no GPU to run it on"


def _triton() -> str:
    if not backends.has_triton():
        return "missing: the package is not installed; ops on a GPU run as plain PyTorch"
    version = importlib.metadata.version("triton")
    if not torch.cuda.is_available():
        return f"{version}, and there is no GPU to run it on"
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if any(backends.is_ampere(gpu) for gpu in gpus):
        return f"{version}, available"
    return f"{version}, for GPUs from Ampere on; on an older one ops run as plain PyTorch"


def _package(name: str, extra: str) -> str:
    found = importlib.util.find_spec(name) is not None
    return "available" if found else f"missing: pip install 'dqcore[{extra}]'"
