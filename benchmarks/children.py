"""Processes that do a part of the work each: what one breaks, or how long it takes, costs the others nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
_alive: set[Child] = set()
_over = threading.Event()


class Ended(NamedTuple):
    """What a child left: the objects that it wrote, why it did not end well, or None, and whether it took too long."""

    lines: list[dict[str, Any]]
    why: str | None
    late: bool = False


class Child:
    """A Python process that writes a JSON object a line into a file, and all that it prints into a log beside it.

    It leads a group of processes, so that those that it starts end with it.

    Args:
        arguments: What follows ``python``.
        folder: Where its log, ``<name>.log``, and its results, ``<name>.jsonl``, go. It finds the latter's path in the
            environment as ``REPORT_OUT``.
        name: Of the two files.
    """

    def __init__(self, arguments: list[str], folder: Path, name: str) -> None:
        if _over.is_set():
            raise RuntimeError("no process is started any more")
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.log = (folder.resolve() / f"{name}.{ending}" for ending in ("jsonl", "log"))
        self.out.unlink(missing_ok=True)
        paths = [str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        known = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "REPORT_OUT": str(self.out)}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=HERE.parent, env=known, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        _alive.add(self)

    def go(self) -> None:
        """Let a child that waits (:func:`wait`) begin."""
        with contextlib.suppress(OSError):  # it is dead already; finish() says why
            self.process.stdin.write("go\n")
            self.process.stdin.flush()

    def finish(self, seconds: float) -> Ended:
        """Wait for the end, but not longer than this."""
        try:
            self.process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            self.stop()
            return Ended(self._lines(), f"took over {seconds:.0f} s", late=True)
        finally:
            self.stop()
        code = self.process.returncode
        return Ended(self._lines(), None if code == 0 else f"exit code {code}: {self.last()}")

    def stop(self) -> None:
        """End it and its group; once more does nothing."""
        _alive.discard(self)
        if self.process.stdin.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it
            self.process.wait(10)
        self.process.stdin.close()

    def last(self) -> str:
        """The last line that it printed."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else ""

    def _lines(self) -> list[dict[str, Any]]:
        if not self.out.exists():
            return []
        found = []
        for line in self.out.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # cut off in the middle
                found.append(json.loads(line))
        return [line for line in found if isinstance(line, dict)]


def stop_all() -> None:
    """End all that are alive, and start no others: each leads a group, which no signal to the parent reaches."""
    _over.set()
    for child in list(_alive):
        child.stop()


def write(row: dict[str, Any]) -> None:
    """In a child: one object of the results; printed where a person started the script."""
    line = json.dumps(row, default=str)
    if "REPORT_OUT" not in os.environ:
        print(line, flush=True)
        return
    with Path(os.environ["REPORT_OUT"]).open("a") as file:
        file.write(line + "\n")


def wait() -> None:
    """In a child: until :meth:`Child.go`; end if the parent has. A script that a person started goes on at once."""
    if "REPORT_OUT" in os.environ and not sys.stdin.readline():
        sys.exit("the parent has ended")
