"""What this machine can run: its devices, its kernels, and the switch between kernels and the reference.

No other file looks for hardware. An op's implementation is chosen at each call: the reference in float64 or on request,
else the kernel of the tensor's device where it is available, else the reference. A missing kernel costs speed, never
correctness.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import types
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from dqcore.errors import InputError

Backend = Literal["auto", "reference", "interpreter"]
Kernel = Literal["torch", "triton", "extension"]
Precision = Literal["auto", "float32", "bfloat16"]
Function = TypeVar("Function", bound=Callable[..., Any])

_ROUTES: dict[str, Literal["cpu", "gpu"]] = {"cpu": "cpu", "cuda": "gpu"}
_backend: ContextVar[Backend] = ContextVar("backend", default="auto")
_INTERFACE = 3  # of csrc, see csrc/ops.h
_OLD = torch.__version__ < "2.14"  # torch.compile could not trace a ContextVar, nor tell itself from an export


def constant_before(function: Function) -> Function:
    """``function``; before PyTorch 2.14 a compiled graph keeps the result that it had when it was compiled."""
    return torch.compiler.assume_constant_result(function) if _OLD else function


def exporting() -> bool:
    """Whether ``torch.export`` is tracing. Older versions of PyTorch say so of ``torch.compile`` too."""
    return torch.compiler.is_exporting() and not (_OLD and torch.compiler.is_dynamo_compiling())


def has_values(values: torch.Tensor) -> bool:
    """Whether they can be read, at whatever cost: nothing is compiled, and they are no fake tensors on the CPU."""
    fake = torch._C._TorchDispatchModeKey.FAKE
    return not torch.compiler.is_compiling() and (values.is_cuda or torch._C._get_dispatch_mode(fake) is None)


def host_knows(values: torch.Tensor) -> bool:
    """Whether Python may ask for values without waiting: they have some, and lie on the CPU."""
    return values.device.type == "cpu" and has_values(values)


class backend:
    """Choose how ops run from here on; as a context manager, until its end.

    The choice is one of this thread (or asynchronous task), and of those that copy its context; others keep theirs. A
    backward pass on a GPU runs in threads of PyTorch's own, where it is always ``"auto"``.

    Args:
        name: ``"auto"``, the fastest kernel available for each tensor's device; ``"reference"``, plain PyTorch;
            ``"interpreter"``, the Triton kernels on CPU tensors (``TRITON_INTERPRET=1`` must be set before Triton is
            imported), which is how they are tested without a GPU.

    Raises:
        ValueError: ``name`` is none of these.
    """

    def __init__(self, name: Backend) -> None:
        if name not in ("auto", "reference", "interpreter"):
            raise InputError(f"backend: expected 'auto', 'reference' or 'interpreter', got {name!r}")
        self._previous = _backend.get()
        _backend.set(name)

    def __enter__(self) -> backend:
        return self

    def __exit__(self, *exception: object) -> None:
        _backend.set(self._previous)


@constant_before
def _chosen() -> Backend:
    return _backend.get()


def route(device: torch.device) -> Literal["reference", "cpu", "gpu"]:
    """Which implementation of an op to look for when its tensors lie on ``device``.

    Returns:
        ``"reference"``; ``"cpu"``; or ``"gpu"``, the implementation that is written for GPUs. ``"interpreter"`` runs
        that one on CPU tensors too.
    """
    chosen = _chosen()
    if chosen == "reference":
        return "reference"
    if chosen == "interpreter" and device.type == "cpu":
        return "gpu"
    return _ROUTES.get(device.type, "reference")


def available(kernel: Kernel, device: torch.device) -> bool:
    """Whether kernels of this kind can run on tensors of ``device``."""
    if kernel == "torch":
        return True
    if device.type == "cuda" and not is_ampere(device):
        return False
    if kernel == "triton":
        return has_triton() and (device.type == "cuda" or _chosen() == "interpreter")
    module = extension()
    return module is not None and (device.type == "cpu" or module.has_cuda)


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def is_ampere(device: torch.device) -> bool:
    """Whether a GPU is NVIDIA's and an Ampere or newer: kernels are compiled for it, and bfloat16 is not emulated."""
    own = torch.version.hip is None
    return not torch.cuda.is_available() or (own and torch.cuda.get_device_capability(device) >= (8, 0))


@functools.cache
def extension() -> types.ModuleType | None:
    """The compiled ``dqcore._C``, or None where it was not built, or from other sources than these."""
    try:
        module = importlib.import_module("dqcore._C")
    except ImportError:
        return None
    return module if getattr(module, "interface", 1) == _INTERFACE else None


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter rather than on a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def exact_float32_matmul() -> bool:
    """Whether float32 matrix products on the CPU keep float32's 24 bits (False: bfloat16 or TF32 was allowed)."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    precision = getattr(matmul, "fp32_precision", None)
    if precision is None:
        return torch.get_float32_matmul_precision() == "highest"
    if precision == "none":
        precision = getattr(torch.backends, "fp32_precision", "none")
    return precision in ("none", "ieee")


def build_record() -> dict[str, str]:
    """What the installation could build, ``{"extension": ..., "cuda": ...}``: ``"built ..."`` or the reason why not."""
    path = Path(__file__).with_name("_build.json")
    if not path.is_file():
        return {"extension": "not built: dqcore was not installed with pip", "cuda": "not built"}
    return json.loads(path.read_text())


def choose_device(device: str, index: int | None = None) -> torch.device:
    """The device that a user named.

    Args:
        device: ``"auto"`` (the GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or another of torch's devices.
        index: The GPU that ``"auto"`` and ``"cuda"`` stand for; None leaves it open, and torch takes its current one.

    Raises:
        ValueError: there is no such device.
    """
    best = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(best if device == "auto" else device)
    except RuntimeError as error:
        raise InputError(f"device: {device!r} cannot be used here (expected auto, cpu, cuda or cuda:N)") from error
    if chosen.type == "meta":
        raise InputError("device: 'meta' cannot be used here (expected auto, cpu, cuda or cuda:N)")
    if chosen.type == "cuda" and chosen.index is None and index is not None:
        chosen = torch.device("cuda", index)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device: {device!r} cannot be used here (there is no {chosen} on this machine)")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device: {device!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return chosen


def choose_autocast(precision: Precision, device: torch.device) -> bool:
    """Whether networks run in bfloat16: if asked for, and by default where the hardware multiplies matrices in it."""
    if precision == "auto":
        return has_amx() if device.type == "cpu" else device.type == "cuda" and is_ampere(device)
    return precision == "bfloat16"


@functools.cache
def has_amx() -> bool:
    """Whether this CPU has AMX, with which a small network trains about twice as fast in bfloat16."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported is not None and supported())


@dataclass(frozen=True)
class Machine:
    """What a machine offers a run, for defaults that suit it.

    Attributes:
        cores: CPU cores that this process may use.
        memory: Bytes of main memory.
        gpu_memory: Bytes of memory of the GPU that is used; 0 without one.
        gpu: Its name; empty without one.
    """

    cores: int
    memory: int
    gpu_memory: int = 0
    gpu: str = ""

    def __str__(self) -> str:
        place = f"{self.gpu} with {self.gpu_memory / 2**30:.0f} GiB" if self.gpu else "no GPU"
        used = torch.get_num_threads()
        cores = f"{used} of {self.cores}" if used < self.cores else f"{self.cores}"
        return f"{cores} CPU core{'s' * (self.cores > 1)}, {self.memory / 2**30:.0f} GiB of memory, {place}"


def this_machine(device: torch.device) -> Machine:
    """The machine that this process runs on, with the GPU that ``device`` names."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type != "cuda":
        return Machine(cores, main_memory())
    about = torch.cuda.get_device_properties(device)
    return Machine(cores, main_memory(), about.total_memory, about.name)


@functools.cache
def main_memory() -> int:
    """Bytes of this machine's main memory; 4 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 4 << 30
