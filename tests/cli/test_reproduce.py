"""``dqcore reproduce``: what it prints, what it refuses; tests/experiments runs the experiments themselves."""

import re
import shlex
import subprocess
import sys

import pytest
import torch

from dqcore.experiments import headline


def test_headline_prints_commands_and_hours(run, tmp_path):
    code, out, _ = run("reproduce", "headline", "--out", tmp_path)
    assert code == 0
    for row in headline.ROWS:
        assert all(command in out for command in headline.commands(row))
        assert "--metrics fid" in headline.commands(row)[-1]
    assert re.search(r"FFHQ +4\.91 +60,000 .* 33 +8 ", out)
    assert (tmp_path / "headline" / "summary.json").is_file()


@pytest.mark.parametrize("number", range(4), ids=["tokenizer", "prior", "sample", "evaluate"])
def test_the_commands_of_the_headline_results_are_real(number, run):
    lines = [headline.commands(row)[number] for row in headline.ROWS]
    words = shlex.split(lines[0])
    verb = words[1:3] if words[1] == "train" else words[1:2]
    code, shown, _ = run(*verb, "--help")
    assert code == 0
    for option in {word for line in lines for word in shlex.split(line) if word.startswith("--")}:
        assert option in shown, option


def test_options_that_change_nothing_are_named(run, tmp_path):
    _, _, told = run("reproduce", "headline", "--out", tmp_path, "--seeds", 5, "--page", "x.md")
    assert "note: --seeds changed nothing: headline trains and measures nothing" in told
    assert "note: --page changed nothing: it is for report" in told
    assert not run("reproduce", "headline", "--out", tmp_path)[2]


def test_report_without_results_is_one_line(fails, tmp_path):
    assert "out: " in fails("reproduce", "report", "--out", tmp_path, "--page", tmp_path / "page.md")
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seeds", "0"), "seeds: expected at least 1, got 0"),
        (("--minutes-per-run", "0"), "minutes_per_run: expected more than 0, got 0"),
        (("--minutes-per-run", "inf"), "minutes_per_run: expected more than 0, got inf"),
        (("--jobs", "0"), "jobs: expected at least 1, got 0"),
        (("--data", "."), "data: expected a folder with train/ and val/"),
    ],
)
def test_mistakes_are_found_before_anything_is_made(words, message, fails, tmp_path):
    out = tmp_path / "out"
    assert message in fails("reproduce", "router", "--out", out, *words)
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_scale_needs_a_gpu(fails, tmp_path):
    assert "scale: gpu needs a CUDA device" in fails("reproduce", "all", "--scale", "gpu", "--out", tmp_path)


def test_two_at_once_are_refused(fails, tmp_path):
    code = "from pathlib import Path; from dqcore.files import sole_owner; import sys, time\n"
    code += "with sole_owner(Path(sys.argv[1])): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert f"out: another process is reproducing in {tmp_path}" in fails("reproduce", "router", "--out", tmp_path)
        other.kill()
