"""What a model says of itself in an interactive session: in a line, in a table, and in a notebook."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

from torch import nn

from dqcore.codebook.modules import count_numbers
from dqcore.drawing import as_html, bars

__all__ = ["html_of", "line_of", "preset_of", "table_of"]


def preset_of(model: Any) -> str | None:
    """The preset that has the model's config; which tokenizer a prior belongs to is no difference."""
    free = {"tokenizer": ""} if hasattr(model.config, "tokenizer") else {}
    config = dataclasses.replace(model.config, **free)
    return next((name for name, preset in model.PRESETS.items() if preset == config), None)


def line_of(model: Any) -> str:
    """Such as ``DQVAE(dqvae-dual-tiny, 1.07 M parameters, strides 16 and 8, ..)``."""
    preset = preset_of(model)
    named = [preset] if preset else []
    weight = next(model.parameters(), None)
    where = [] if weight is None or weight.device.type == "cpu" else [f"on {weight.device}"]
    parts = [*named, _millions(count_numbers(model)[0]), *model.facts().values(), *where]
    return f"{type(model).__name__}({', '.join(parts)})"


def table_of(model: Any) -> str:
    """A table: the model, its facts, and how many parameters each of its parts has."""
    parts = _parts(model)
    facts = {name: fact.removeprefix(name).removesuffix(name).strip() for name, fact in model.facts().items()}
    rows = {"preset": preset_of(model) or "none, a config of its own", **facts}
    parameters, codebook = count_numbers(model)
    rows["parameters"] = f"{parameters:,}" + (f", and a codebook of {codebook:,} numbers" if codebook else "")
    rows |= {f"  {name}": f"{size:,}" for name, size in parts.items()}
    width = max(map(len, rows))
    mode = "training" if model.training else "evaluation"
    lines = [f"{name:{width}}  {value}" for name, value in rows.items()]
    return "\n".join([f"{type(model).__name__}, in {mode} mode", *lines])


def html_of(model: Any) -> str:
    """The line, the parameters of each part as bars, and PyTorch's tree of modules to unfold."""
    parts = _parts(model)
    chart = bars(list(parts.values()), [f"{name}: {_millions(size)}" for name, size in parts.items()])
    names = ", ".join(f"{name} {_millions(size).removesuffix(' parameters')}" for name, size in parts.items())
    tree = f"<details><summary>modules</summary><pre>{html.escape(str(model))}</pre></details>"
    return as_html(line_of(model), extra=f'<div style="margin:6px 0">{chart}<br>{html.escape(names)}</div>{tree}')


def _parts(model: nn.Module) -> dict[str, int]:
    """Numbers of each child that has any; an EMA codebook's, which are no parameters, count too."""
    sizes = {name: sum(count_numbers(part)) for name, part in model.named_children()}
    own = sum(parameter.numel() for parameter in model.parameters(recurse=False))
    return {name: size for name, size in (sizes | {"its own": own}).items() if size}


def _millions(number: int) -> str:
    return f"{number / 1e6:.3g} M parameters" if number >= 1e5 else f"{number / 1e3:.3g} thousand parameters"
