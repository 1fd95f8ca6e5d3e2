"""Launches of a kernel that was launched before, past most of what Triton does on the host for each.

Triton's binder says, as ever, what a launch would be compiled for: dtypes, divisibility by 16, ones, ``None`` and
constants. Where that was compiled and launched before, the compiled kernel is called directly. What is left out has no
effect: options written as text, hooks that nobody set, globals compared by value that are the same objects. Where
anything asks for more, as a profiler's hook, a debug mode or a ``JITFunction`` with other methods, and in versions of
Triton that were not read for this file, every launch is Triton's own.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import triton
from triton.compiler import CompiledKernel
from triton.runtime import jit
from triton.runtime.jit import JITFunction

#: Versions whose ``JITFunction.run`` does what this file takes over, and no more.
READ = ("3.6.", "3.8.", "3.9.")
_METHODS = (JITFunction.run, JITFunction.__getitem__)


class Known(NamedTuple):
    """A kernel as Triton compiled and launched it.

    Attributes:
        run: What launches it.
        function: The loaded kernel.
        metadata: Of the launch: warps, blocks of a cluster, shared memory.
        watched: Globals that it was compiled with: where they are, their names, what they were.
        caches: What Triton keeps of the kernel for this device.
        kept: The kernel and what was compiled, which unloads itself when nobody keeps it.
    """

    run: Any
    function: Any
    metadata: Any
    watched: tuple[tuple[dict[str, Any], str, Any], ...]
    caches: Any
    kept: tuple[JITFunction, CompiledKernel]

    def holds(self) -> bool:
        """Whether no global has changed since."""
        for names, name, value in self.watched:  # noqa: SIM110 - a third of the time of a generator
            if names.get(name) is not value:
                return False
        return True


_known: dict[tuple, Known] = {}
#: What takes note of the launches of a thread, as ``noting.recorder``; see ``replay``.
noting = threading.local()


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
    """``launch(kernel, grid)(*args, **constants)`` for ``kernel[grid](*args, **constants)``.

    A grid is one to three numbers; constants and options are hashable.
    """
    return functools.partial(_launch, kernel, grid)


def _launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    recorder = getattr(noting, "recorder", None)
    if not is_free() or type(kernel) is not JITFunction or kernel.pre_run_hooks or kernel.debug:
        if recorder is not None:
            recorder.refuse()
        kernel[grid](*args, **constants)
        return
    device = triton.runtime.driver.active.get_current_device()
    caches = kernel.device_caches[device]
    bound, specialization, options = caches[4](*args, **constants)
    key = (id(kernel), device, *specialization, *options, *options.values())
    known = _known.get(key)
    if known is None or known.caches is not caches or not known.holds():
        compiled = kernel[grid](*args, **constants)
        known = _remember(key, kernel, caches, compiled)
    else:
        send(known, grid, device, bound.values())
    if recorder is not None:
        recorder.note(known, grid, device, tuple(bound.values()))


def send(known: Known, grid: Sequence[int], device: int, values: Any) -> None:
    """Launch it with the values of all parameters, constants too, as Triton hands them to its launcher."""
    x, y, z = (*grid, 1, 1)[:3]
    stream = triton.runtime.driver.active.get_current_stream(device)
    known.run(x, y, z, stream, known.function, known.metadata, None, None, None, *values)


def is_free() -> bool:
    """Whether nobody asked Triton to do more than launch, and nobody stands in its place."""
    if not SUPPORTED or (JITFunction.run, JITFunction.__getitem__) != _METHODS:
        return False  # first: other versions of Triton have other knobs
    runtime, compilation = triton.knobs.runtime, triton.knobs.compilation
    return not (
        runtime.debug
        or getattr(runtime.launch_enter_hook, "calls", runtime.launch_enter_hook)
        or getattr(runtime.launch_exit_hook, "calls", runtime.launch_exit_hook)
        or runtime.add_stages_inspection_hook
        or compilation.instrumentation_mode
        or getattr(compilation, "fpsan_homomorphic_casts", False)
    )


def _remember(key: tuple, kernel: JITFunction, caches: Any, compiled: Any) -> Known | None:
    """What was launched, so that it can be launched again; None where Triton is not done with it."""
    if not isinstance(compiled, CompiledKernel):
        return None
    watched = tuple((names, name, names.get(name)) for (name, _), (_, names) in kernel.used_global_vals.items())
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    _known[key] = Known(run, function, metadata, watched, caches, (kernel, compiled))
    return _known[key]


def _supported() -> bool:
    """Whether this Triton has what this file calls, by the names that it calls it, and nobody replaced it before."""
    runtime = ("debug", "launch_enter_hook", "launch_exit_hook", "add_stages_inspection_hook")
    parts = ((triton.knobs.runtime, runtime), (triton.knobs.compilation, ("instrumentation_mode",)))
    named = all(hasattr(part, name) for part, names in parts for name in names)
    own = all(getattr(method, "__globals__", None) is vars(jit) for method in _METHODS)
    return named and own and triton.__version__.startswith(READ)


SUPPORTED = _supported()
