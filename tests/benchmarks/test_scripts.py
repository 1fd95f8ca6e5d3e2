"""Every script says what it takes, and ends with one sentence where it needs a GPU that is not there."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "\nif __name__" in path.read_text())
NEED_A_GPU = {"gpu_report.py": [], "tune.py": [], "gpu_checks.py": [], "report_rows.py": ["x"],
              "report_kernels.py": ["code_sums"]}  # fmt: skip
NEED_TRITON = {"compile_check.py": [], "compile_sectors.py": [], "host_time.py": [], "launches.py": [],
               "tune.py": ["--compile-only"]}  # fmt: skip


def ends(script, *arguments):
    """How a script ends that is started like this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_all_that_help_does(script, capsys):
    assert ends(script, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: {script}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", NEED_A_GPU)
def test_no_gpu_is_one_sentence(script, capsys):
    assert ends(script, *NEED_A_GPU[script]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and "no GPU" in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("script", NEED_TRITON)
def test_no_triton_is_one_sentence(script, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert ends(script, *NEED_TRITON[script]).startswith("no Triton, ")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("option", ["--update", "--note"])
def test_a_part_of_the_targets_does_not_stand_for_the_table(option, capsys):
    assert ends("compile_check.py", option, "--arch", "90") == 2
    assert "--arch: expected all targets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--minutes", "0"], "--minutes: expected more than 0"),
        (["--only", "("], "--only: expected a regular expression, got '('"),
        (["--only", "nothing like it"], "--only: no row and no table of kernels"),
        (["--parts", "rows,colums"], "--parts: expected some of"),
    ],
)
def test_what_a_report_cannot_do_it_says_before_it_starts(options, sentence, capsys, tmp_path):
    assert ends("gpu_report.py", "--dry-run", "--out", str(tmp_path / "out"), *options) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_copy_without_git_names_its_commit(monkeypatch):
    import machine

    monkeypatch.setattr("dqcore.files.checkout.checked_out_commit", lambda: None)
    assert machine.versions()["dqcore"] == "unknown"
    monkeypatch.setenv("DQCORE_COMMIT", "0123456789ab")
    assert machine.versions()["dqcore"] == "0123456789ab"


def test_a_photo_that_is_none_is_named(capsys):
    assert ends("cache_error.py", "nothing.png") == 2
    assert "expected files, got nothing.png" in capsys.readouterr().err


def test_a_check_that_a_person_starts_prints(capsys, monkeypatch):
    monkeypatch.delenv("REPORT_OUT", raising=False)
    import children

    children.wait()
    children.write({"name": "nearest_code", "fault": None})
    assert capsys.readouterr().out == '{"name": "nearest_code", "fault": null}\n'
