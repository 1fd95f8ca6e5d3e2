"""The page of results: what the experiments measured beside what the paper says, as Markdown with charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqcore.errors import InputError
from dqcore.files import write_atomically
from dqcore.report.curves import Series, line_chart

__all__ = ["MARK", "write_results"]

#: The first line of a page that may be replaced.
MARK = "<!-- dqcore reproduce report writes this page -->"
#: The chart at the top of the page.
OPENING = "rate-distortion"

#: What every chart has.
_CHART_MARK = "<style>\nsvg { --ink:"
_STYLE = """<style>
svg { --ink: #1d1f24; --soft: #5d6678; --line: #e2dfd8; --first: #3a6ec4; --second: #c4620f; --third: #2b8a63;
  --faint: #8f97a6; background: #fff; font: 11px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) { svg { --ink: #eceef2; --soft: #a2abbc; --line: #2f323c; --first: #7ba7f0;
  --second: #f2a35a; --third: #66c79b; --faint: #7d8595; background: #1b1d23; } }
.grid { stroke: var(--line); } .tick, .axis { fill: var(--soft); }
polyline { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
polyline.first { stroke: var(--first); } polyline.second { stroke: var(--second); }
polyline.third { stroke: var(--third); } polyline.faint { stroke: var(--faint); }
.first:not(polyline) { fill: var(--first); } .second:not(polyline) { fill: var(--second); }
.third:not(polyline) { fill: var(--third); } .faint:not(polyline) { fill: var(--faint); }
.legend { text-anchor: end; font-weight: 600; } .target { stroke: var(--ink); stroke-dasharray: 4 4; opacity: .55; }
</style>"""


def write_results(summaries: Sequence[dict[str, Any]], page: Path) -> Path:
    """Write the page, and its charts into a folder of the page's name beside it.

    Args:
        summaries: Of each experiment: ``name``, ``title``, ``notes``, ``claims``, ``tables``, ``charts``, ``protocol``.
        page: The Markdown file; one that was not made by this function is left alone.

    Returns:
        ``page``.

    Raises:
        InputError: There is another file of this name or of a chart's, or the name has no ending.
    """
    charts = [chart for each in summaries for chart in each["charts"]]
    _check_targets(page, [_file(page, chart) for chart in charts])
    parts = [MARK, "# Results", "", _opening(summaries, page), _verdicts(summaries)]
    parts += [_section(each, page) for each in summaries]
    for chart in charts:
        _write(_file(page, chart), _svg(chart))
    _write(page, "\n".join(parts).rstrip() + "\n")
    return page


def _check_targets(page: Path, charts: Sequence[Path]) -> None:
    """Refuse names that belong to something else, before anything is written."""
    if not page.suffix:
        raise InputError(f"page: expected the name of a file with an ending, such as results.md, got {page}")
    if page.exists() and not (page.is_file() and page.read_bytes().startswith(MARK.encode())):
        raise InputError(f"page: {page} is there already and is no page of results; choose another name")
    for path in charts:
        if path.exists() and not (path.is_file() and _CHART_MARK.encode() in path.read_bytes()):
            raise InputError(f"page: {path} is there already and is no chart of results; choose another name")


def _opening(summaries: Sequence[dict[str, Any]], page: Path) -> str:
    charts = [chart for each in summaries for chart in each["charts"] if chart["name"] == OPENING]
    head = "".join(f"{_picture(chart, page)}\n\n" for chart in charts)
    return head + (
        "Measured by `dqcore reproduce all`, written by `dqcore reproduce report`. Numbers are means over seeds with "
        "95 % intervals of Student's t; differences are taken seed by seed. A claim holds where the whole interval "
        "says so, does not hold where none of it does, and cannot be said otherwise.\n"
    )


def _verdicts(summaries: Sequence[dict[str, Any]]) -> str:
    lines = ["| claim | measured | outcome |", "|---|---|---|"]
    for each in summaries:
        lines += [f"| {_cell(c['claim'])} | {_cell(c['measured'])} | **{c['verdict']}** |" for c in each["claims"]]
    return "\n".join(lines) + "\n"


def _section(summary: dict[str, Any], page: Path) -> str:
    parts = [f"## {summary['title']}", ""]
    parts += [f"- {claim['sentence']}" for claim in summary["claims"]] + [""]
    parts += [f"{note}\n" for note in summary["notes"]]
    for table in summary["tables"]:
        parts += [_table(table), ""]
    for chart in summary["charts"]:
        if chart["name"] != OPENING:
            parts += [_picture(chart, page), ""]
    if summary["protocol"]:
        said = [f"{name} {', '.join(map(str, _listed(value)))}" for name, value in summary["protocol"].items()]
        parts += [f"Protocol: native size, 8-bit; {'; '.join(said)}.", ""]
    return "\n".join(parts)


def _table(table: dict[str, Any]) -> str:
    lines = [f"| {' | '.join(map(_cell, table['columns']))} |", f"|{'---|' * len(table['columns'])}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in table["rows"]]
    return "\n".join(lines)


def _picture(chart: dict[str, Any], page: Path) -> str:
    """A chart below its title, since no page shows the text that stands for a picture."""
    path = _file(page, chart).relative_to(page.parent)
    return f"**{chart['title']}**\n\n![{chart['title']}]({path.as_posix()})"


def _file(page: Path, chart: dict[str, Any]) -> Path:
    return page.with_suffix("") / f"{chart['name']}.svg"


def _svg(chart: dict[str, Any]) -> str:
    """The chart as a file of its own, with its colours."""
    lines = [Series(**line) for line in chart["series"]]
    labels = {name: chart[name] for name in ("x_label", "y_label", "target", "log")}
    svg = line_chart(lines, label=chart["title"], **labels)
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg" width="640">{_STYLE}{rest}\n'


def _write(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
