"""Which commit of the source tree is running."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["checked_out_commit"]


def checked_out_commit() -> str | None:
    """Twelve digits, with a ``+`` where the package differs from that commit; None without a source tree or git."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "dqcore", "kernels", "csrc")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
