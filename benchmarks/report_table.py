"""What ``gpu_report.py`` found, in lines, and whether anything is wrong."""

from __future__ import annotations

import json
from typing import Any


def table(record: dict[str, Any]) -> str:
    """What was found, in lines; of a row our time, each peer's, the target and the verdict."""
    lines = [f"{name} broke: {why}" for name, why in record.get("broken", {}).items()]
    if "checks" in record:
        faults = {name: fault for name, fault in record["checks"].items() if fault}
        lines.append(f"{len(record['checks']) - len(faults)} of {len(record['checks'])} checks passed")
        lines += [f"  {name}: {fault}" for name, fault in faults.items()]
    lines += [f"{name}: {record[name]}" for name in ("tests", "sanitizer", "ceilings") if name in record]
    if unwell := record.get("rehearsal", {}):
        ended = unwell.get("ended", {"rehearsal": unwell.get("failed")})
        lines += [f"rehearsal of {name}: {why}" for name, why in ended.items()]
    lines += [_line(row) for row in record.get("rows", [])]
    lines += [f"{name:75} no time left" for name in record.get("no_time_for", [])]
    for name, found in record.get("kernels", {}).items():
        told = f"{found['us']} us, {found['launches']} launches" if "us" in found else f"failed: {found['failed']}"
        lines.append(f"{name:75} {told}")
    lines += [f"{name:75} no time left for its kernels" for name in record.get("no_kernels_of", [])]
    return "\n".join([*lines, f"{record['minutes']} minutes"])


def _line(row: dict[str, Any]) -> str:
    if "skipped" in row or "failed" in row:
        return f"{row['name']:75} {row.get('failed') or 'skipped: ' + row['skipped']}"
    about = row["extra_info"]
    peers = [f"{name} {ratio:.2f}x" for name, ratio in about.get("speedup", {}).items()]
    # a peer that no graph holds pays for its launches, ours does not
    peers += [f"{name} {ratio:.2f}x launched alike" for name, ratio in about.get("speedup_launched_alike", {}).items()]
    peers += [f"without {name} ({why})" for name, why in (about.get("left_out") or {}).items()]
    verdict = {True: "MET", False: "MISSED", None: "a peer is missing"}[about["met"]] if "met" in about else ""
    target = json.dumps(about["target"]) if "target" in about else ""
    time = 1e6 * about.get("seconds", row["median"])
    return f"{row['name']:75} {time:10.1f} us  {verdict} {target} {', '.join(peers)}".rstrip()


def wrong(record: dict[str, Any]) -> bool:
    """Whether anything failed or broke; a missed target is no failure, nor is what no time was left for."""
    parts = [record.get(name) or {} for name in ("tests", "rehearsal", "sanitizer", "ceilings", "broken")]
    faults = [*record.get("checks", {}).values(), *(part.get("failed") for part in parts), *parts[-1].values()]
    faults += ["failed" in found for found in (*record.get("rows", []), *record.get("kernels", {}).values())]
    sanitized = [found for found in parts[2].values() if isinstance(found, dict)]
    return any(faults) or not all(found.get("passed", True) for found in sanitized)
