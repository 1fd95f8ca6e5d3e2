"""Which stored rows still hold: those whose compiler would be given just what it was given when they were stored."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

#: What reads numbers from compiled code: a change there makes every row anew.
READERS = ("compile_measure.py", "sass.py")


class Known(NamedTuple):
    """Stands for the compiled kernel of a stored row."""

    src: Any
    made_from: str


def digest(src: Any, backend: Any, options: Any) -> str:
    """Of all that decides a row: kernel and helpers, types, constants, options, target, Triton, ptxas, and `READERS`.

    The same words as in the key of Triton's own cache, but for the build of its wheel, which differs between Pythons.
    Of global constants it has those that a kernel reads by name and that are ``tl.constexpr(..)``; no kernel of ours
    may have others (``tests/kernels/test_constants.py``).
    """
    import triton
    from triton.compiler.compiler import get_cache_invalidating_env_vars

    readers = [Path(__file__).with_name(name).read_text() for name in READERS]
    asked = [f"{name}={value}" for name, value in sorted(get_cache_invalidating_env_vars().items())]
    words = (triton.__version__, src.hash(), backend.hash(), options.hash(), *asked, *readers)
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]


def watch(known: dict[str, dict[str, Any]]) -> None:
    """From here on what is compiled says what it was ``made_from``, and a digest among ``known`` is not compiled."""
    import triton
    from triton.compiler.compiler import compile as compile_anew

    def compile_unless_known(src: Any, target: Any, options: dict[str, Any]) -> Any:
        backend = triton.compiler.make_backend(target)
        made_from = digest(src, backend, backend.parse_options(options))
        if made_from in known:
            return Known(src, made_from)
        compiled = compile_anew(src, target=target, options=options)
        compiled.made_from = made_from
        return compiled

    triton.compiler.compile = compile_unless_known  # where each kernel looks it up when it is first launched


def again(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row of each kernel, in turn of each target: compiled all the same, so that stored rows are what is compiled."""
    targets = sorted({row["arch"] for row in rows})
    names = sorted({row["kernel"] for row in rows})
    turn = {name: targets[i % len(targets)] for i, name in enumerate(names)}
    found = {row["kernel"]: row for row in reversed(rows) if row["arch"] == turn[row["kernel"]]}
    return [found[name] for name in names if name in found]
