"""The site: it builds, its Python blocks run, its commands are read by the verbs' own parsers."""

import ast
import dataclasses
import importlib.util
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dqcore import DQTransformerConfig, DQVAEConfig
from dqcore.cli.dispatch import read_arguments, split_verb

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [code for name, code in BLOCK.findall(page.read_text()) if name == language]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """One after the other in one namespace; a block that shows another library needs that one."""
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    for code in blocks(page, "python"):
        needed = re.findall(r"^from (accelerate|lightning_fabric|pytorch_lightning) ", code, re.MULTILINE)
        if all(importlib.util.find_spec(name) for name in needed):
            exec(compile(code, str(page), "exec"), namespace)


COMMANDS = [line for page in PAGES for code in blocks(page, "bash") for line in code.splitlines() if line.strip()]


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_commands_parse(command):
    program, *words = shlex.split(command)
    assert program == "dqcore"
    verb, rest = split_verb(words)
    assert callable(read_arguments(verb, rest))


def test_shown_numbers_of_codes_can_be_had():
    """3000 codes a megapixel were shown once; at a stride of 16 there are 3906 regions, so every photo was refused."""
    shown = re.findall(r"--num-codes (\d+) --per-megapixel", "".join(page.read_text() for page in PAGES))
    assert shown and all(1e6 / 16**2 < int(number) < 4e6 / 16**2 for number in shown)


def test_switches_to_the_authors_ways_are_real():
    """Each stands in the last column of the table, as an option of training or a field of a model's config."""
    _, _, section = (ROOT / "docs" / "exchange.md").read_text().partition("## Where the authors' code does otherwise")
    rows = [line.split("|") for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    switches = [switch for row in rows for switch in re.findall(r"`([^`]+)`", row[-2])]
    fields = {"entropy_bins": DQVAEConfig(), "num_heads": DQTransformerConfig()}
    assert len(switches) == 7
    for switch in switches:
        if switch.startswith("--"):
            stage, tokenizer = ("prior", ["--tokenizer", "runs/mine"]) if "views" in switch else ("tokenizer", [])
            assert callable(
                read_arguments(*split_verb(["train", stage, "--data", "photos", *tokenizer, *switch.split()]))
            )
        else:
            name, _, value = switch.partition("=")
            assert dataclasses.replace(fields[name], **{name: ast.literal_eval(value)}) != fields[name]


def test_cited_sections_are_there():
    """The paper has the tokenizer in section 3.2 and the prior in 3.3."""
    found, section = set(), re.compile(r"\b([Pp]aper|supplement)[,:]? section (\d(?:\.\d)?)")
    for path in (ROOT / "dqcore").rglob("*.py"):
        text = " ".join(path.read_text().split())
        found |= {(path.stem, *cited) for cited in section.findall(text)}
    assert {("budget", "paper", "3.2"), ("learning", "paper", "3.2"), ("raster", "supplement", "3.2")} <= found
    allowed = {"paper": {"3.2", "3.3"}, "supplement": {"1", "2.1", "2.2", "3.1", "3.2", "3.3"}}
    assert not {cited for cited in found if cited[2] not in allowed[cited[1].lower()]}


def test_every_page_is_in_the_contents():
    contents = re.findall(r"^  - [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(contents) == [page.name for page in PAGES]
    linked = re.findall(r"\]\((\S+\.md)\)", (ROOT / "docs" / "index.md").read_text())  # where the site is not built
    assert sorted({*linked, "index.md"}) == sorted(contents)


def test_the_api_page_names_what_is_public():
    """Each name by the function or class itself: an op and its module are called alike, and the module has more."""
    import dqcore

    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    found = [pkgutil.resolve_name(path) for path in listed]
    public = {name: getattr(dqcore, name) for name in dqcore.__all__ if name != "ops"}
    public |= {name: getattr(dqcore.ops, name) for name in dqcore.ops.__all__}
    assert not [name for name, value in public.items() if not any(value is other for other in found)]


def test_citation_is_of_this_version():
    import dqcore

    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {dqcore.__version__}\n" in text
    assert "Mengqi" in text


@pytest.mark.slow
def test_site_builds(tmp_path):
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DynamicQuantizer" in (tmp_path / "site" / "api" / "index.html").read_text()
