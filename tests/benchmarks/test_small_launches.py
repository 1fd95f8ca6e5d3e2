"""That the launches which a GPU's run checks, and a sanitizer watches, are of every kernel there is."""

import re
from pathlib import Path

import pytest
import report_faults
import small_launches

import dqcore
from dqcore import backends

KERNELS = Path(small_launches.__file__).parents[1] / "kernels"


@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.slow
def test_every_kernel_is_launched(monkeypatch):
    from triton.runtime import interpreter

    seen, run = set(), interpreter.GridExecutor.__call__

    def noted(self, *args, **options):
        seen.add(self.fn.__name__)
        return run(self, *args, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", noted)
    with dqcore.backend("interpreter"):
        for launch in (*small_launches.every_kernel("cpu").values(), small_launches.learns("cpu", 1, 40, 8)):
            launch()
    text = "".join(path.read_text() for path in KERNELS.glob("*.py"))
    every = set(re.findall(r"^@triton\.jit.*\ndef (\w+_kernel)\(", text, re.MULTILINE))
    assert len(every) > 30 and seen == every


def test_a_sanitizer_watches_these():
    assert "every_kernel" in report_faults.SANITIZED and "learns" in report_faults.SANITIZED
