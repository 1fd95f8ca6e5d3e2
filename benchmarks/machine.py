"""What numbers were measured on, and what was measured."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

#: One file a machine.
RESULTS = Path(__file__).with_name("results")
#: Fields of such a file that are no findings, or have versions of their own.
ABOUT = {"machine", "unit", "versions", "versions_of", "rows", "minutes", "note"}


def machine() -> dict[str, str | int | None]:
    """What the numbers were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"gpu": gpu, "cpu": _cpu(), "threads": torch.get_num_threads(), "system": platform.system()}


def name_of(about: dict[str, str | int | None]) -> str:
    """A machine's name in file names, ``h200`` for ``NVIDIA H200``."""
    words = re.sub(r"[^a-z0-9]+", "-", str(about["gpu"] or about["cpu"]).lower()).strip("-")
    return words.removeprefix("nvidia-")


def versions() -> dict[str, str | int | None]:
    """What was measured, and with how many threads; a row keeps its own, since a run may replace only some.

    A copy without git names its commit in ``DQCORE_COMMIT``.
    """
    from dqcore.files.checkout import checked_out_commit

    try:
        import triton
    except ImportError:
        triton = None
    return {
        "dqcore": checked_out_commit() or os.environ.get("DQCORE_COMMIT") or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": getattr(triton, "__version__", None),
        "threads": torch.get_num_threads(),
    }


def keep(path: Path, record: dict[str, Any]) -> None:
    """Write a record into a machine's file, whose other fields, and rows that this record has not, stay as they are.

    A row that was skipped replaces none, and one that failed none that the same versions measured, which says so. Each
    row gets the ``versions`` that it was measured with; those of the other fields stand in ``versions_of``, since a run
    may find only some of them anew.
    """
    before = json.loads(path.read_text()) if path.exists() else {}
    now = record.get("versions") or versions()
    rows = {row["name"]: row for row in before.get("rows", [])}
    for row in record.get("rows", []):
        own, known = row.get("versions", now), rows.get(row["name"])
        if known and "failed" in row and "median" in known and known.get("versions") == own:
            rows[row["name"]] = {**known, "failed_again": row["failed"]}
        elif known is None or "skipped" not in row:
            rows[row["name"]] = {**row, "versions": own}
    of = {key: before.get("versions") for key in before.keys() - ABOUT} | before.get("versions_of", {})
    of |= {key: now for key in record.keys() - ABOUT}
    whole = before | record | {"unit": "seconds", "rows": [rows[name] for name in sorted(rows)]}
    whole |= {"versions_of": {key: of[key] for key in whole if key in of}} if of else {}
    first = [key for key in ("machine", "unit") if key in whole]
    ordered = {key: whole[key] for key in (*first, *(key for key in whole if key not in (*first, "rows")), "rows")}
    store(path, ordered)


def store(path: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON, whole or not at all."""
    from dqcore.files import write_atomically

    text = json.dumps(record, indent=1, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def needs_triton() -> None:
    """End with one sentence where there is no Triton."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        sys.exit(f"no Triton, which this counts kernels of ({error}); it comes with PyTorch on Linux")


def power() -> dict[str, str] | None:
    """The GPU's clocks, power and temperature now, as nvidia-smi says; None without it."""
    names = "name,driver_version,pstate,clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu"
    names += ",clocks_event_reasons.active"
    try:
        text = subprocess.run(
            ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=20,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    first = (text.splitlines() or [""])[0]
    return dict(zip(names.split(","), map(str.strip, first.split(",")), strict=False)) if first else None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()
