"""Triton's interpreter without its two costliest habits, for tests and for what runs at sizes of a model."""

from __future__ import annotations

import inspect
from typing import Any


def quicken() -> None:
    """From here on the interpreter does the same in two thirds of the time, if it has the functions that cost it."""
    from triton.runtime import interpreter

    for name, quicker in (("_patch_builtin", _replace_once), ("_get_np_dtype", _remember)):
        if hasattr(interpreter, name):
            setattr(interpreter, name, quicker(getattr(interpreter, name)))


def _replace_once(replace_all: Any) -> Any:
    """Without looking through all of ``tl`` at each call of a device function.

    A launch replaces the builtins of ``tl`` and puts them back; each device function that the kernel calls replaces
    those that are left, which are none. All of a module or class are replaced in order, so the last of them tells.
    """
    from triton.language.core import is_builtin

    last_of: dict[Any, str] = {}

    def replace(package: Any, *rest: Any) -> None:
        if package not in last_of:
            names = [name for name, member in inspect.getmembers(package) if is_builtin(member)]
            if names:
                last_of[package] = names[-1]
        elif not is_builtin(getattr(package, last_of[package])):
            return
        replace_all(package, *rest)

    return replace


def _remember(numpy_type: Any) -> Any:
    """Without making the table of all types to look up one."""
    import triton.language as tl

    known: dict[str, Any] = {}

    def remembered(kind: Any) -> Any:
        element = kind.element_ty if isinstance(kind, tl.block_type) else kind
        if type(element) is not tl.dtype:  # a pointer
            return numpy_type(kind)
        if element.name not in known:
            known[element.name] = numpy_type(element)
        return known[element.name]

    return remembered
