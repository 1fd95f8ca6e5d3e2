"""Every code block of the README runs, its commands are those that CI runs, and its numbers were measured."""

import json
import re
import shlex
from pathlib import Path

import pytest

from dqcore.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_block_names_its_language():
    assert {language for language, _ in BLOCKS} <= {"python", "bash", "text"}
    assert README.count("```") == 2 * len(BLOCKS)


def test_python_blocks_run(tmp_path, monkeypatch):
    """One after the other in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    blocks = [code for language, code in BLOCKS if language == "python"]
    assert blocks
    for code in blocks:
        exec(compile(code, "README.md", "exec"), namespace)


COMMANDS = [line for language, code in BLOCKS if language == "bash" for line in code.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("dqcore ")])
def test_cli_lines_parse(command, capsys):
    """Every ``dqcore`` line names a verb and options that exist: its ``--help`` lists them."""
    words = shlex.split(command, comments=True)[1:]
    verb = [word for word in words[:2] if not word.startswith("-") and "/" not in word and "." not in word]
    verb = verb if verb[:1] in (["train"], ["data"]) else verb[:1]
    assert main([*verb, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option.split("=")[0] in shown, f"{option} is not in `dqcore {' '.join(verb)} --help`"


def test_install_commands_are_what_ci_runs():
    script = (ROOT / ".ci" / "run").read_text()
    assert "pip install -e . && dqcore demo" in README
    assert "pip install -e '.[test]' && pytest" in README
    assert "-e '.[test]'" in script
    assert "pytest" in script


#: Rows of the table of compat classes, by the first word: names of benchmarks.
COMPAT = {
    "vector-quantize-pytorch": ["vector_quantize_pytorch::bench_{}[cpu-2threads-defaults]"],
    "taming-transformers": [f"::bench_{{}}[cpu-{name}]" for name in ("taming_first", "taming", "taming_ema")],
    "LlamaGen": ["::bench_{}[cpu-llamagen]"],
    "TiTok": ["::bench_{}[cpu-titok]"],
    "diffusers": ["::bench_{}[cpu-diffusers]"],
}


@pytest.mark.parametrize("peer", COMPAT)
def test_how_much_faster_the_compat_classes_are_is_stored(peer):
    (line,) = re.findall(rf"^\| {peer}[^|]*\| `\w+\.[^|]*\|([^|]*)\|([^|]*)\|$", README, re.MULTILINE)
    stored = json.loads((ROOT / "benchmarks/results/intel-r-xeon-r-processor.json").read_text())["rows"]
    for cell, what in zip(line, ("training_step", "inference"), strict=True):
        for number, name in zip(cell.split(","), COMPAT[peer], strict=True):
            (row,) = (row for row in stored if row["name"].endswith(name.format(what)) and "compat" in row["name"])
            (times,) = row["extra_info"]["speedup"].values()
            assert float(number) == round(times, 1 if times < 100 and "." in number else None)
