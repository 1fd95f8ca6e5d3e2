import importlib
import inspect
import itertools
import json
import timeit
from pathlib import Path

import pytest

pytest.importorskip("triton")

import tune_problems

from dqcore.kernels import tuned

TARGETS = (80, 86, 89, 90, 100, 120)
SHIPPED = sorted(path.stem for path in tuned.TABLES.glob("*.json"))


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A folder of tables in the place of the shipped ones, and how to say which GPU it is."""
    monkeypatch.setattr(tuned, "TABLES", tmp_path)
    tuned.forget()

    def write(text, arch=90):
        (tmp_path / "made_up.json").write_text(text if isinstance(text, str) else json.dumps(text))
        monkeypatch.setattr(tuned.common, "architecture", lambda: arch)
        tuned.forget()

    yield write
    tuned.forget()


def table(**archs):
    """A table with one row an architecture, ``X`` saying which."""
    return {arch[1:]: {"source": "made up", "rows": [{"when": {}, "config": {"X": x}}]} for arch, x in archs.items()}


@pytest.mark.parametrize(
    ("arch", "expected"), [(75, 1), (80, 1), (86, 1), (90, 2), (100, 2), (103, 2), (120, 3), (121, 3)]
)
def test_a_gpu_without_a_table_takes_an_older_one(tables, arch, expected):
    tables(table(_90=2, _120=3, _80=1), arch)  # in no order; by number, not as text: "120" < "80"
    assert tuned.config("made_up") == {"X": expected}


ROWS = [
    {"when": {"dtype": "half", "dim": 64}, "config": {"X": 1}},
    {"when": {"dtype": "half", "dim": 128, "tokens": 4096}, "config": {"X": 2}},
    {"when": {"tokens": 4096}, "config": {"X": 3}},
    {"when": {}, "config": {"X": 4}},
]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (("half", 64, 10**9), 1),
        (("half", 65, 4096), 2),
        (("half", 65, 4097), 4),
        (("float32", 64, 4096), 3),
        (("half", 129, 4096), 3),
        (("float32", 64, 4097), 4),
    ],
)
def test_the_first_row_that_applies(tables, size, expected):
    tables({"80": {"source": "", "rows": ROWS}})
    assert tuned.config("made_up", **dict(zip(("dtype", "dim", "tokens"), size, strict=True))) == {"X": expected}


def test_a_config_is_the_callers_own(tables):
    tables(table(_80=1))
    tuned.config("made_up")["X"] = 7
    assert tuned.config("made_up") == {"X": 1}
    with tuned.force("made_up", {"X": 2}):
        tuned.config("made_up")["X"] = 7
        assert tuned.config("made_up") == {"X": 2}


def test_force_nests_and_ends(tables):
    tables(table(_80=1))
    with pytest.raises(RuntimeError), tuned.force("made_up", {"X": 2}):
        with tuned.force("made_up", {"X": 3}), tuned.force("other", {"X": 4}):
            assert tuned.config("made_up", dim=5) == {"X": 3}
        assert tuned.config("made_up") == {"X": 2}
        raise RuntimeError
    assert tuned.config("made_up") == {"X": 1}


def test_sizes_that_no_row_is_for(tables):
    tables({"80": {"source": "", "rows": ROWS[:1]}})
    with pytest.raises(LookupError, match=r"made_up\.json has no row for .*'dim': 65"):
        tuned.config("made_up", dtype="half", dim=65)
    with pytest.raises(LookupError, match=r"made_up\.json asks for dim"):
        tuned.config("made_up", dtype="half")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[]",
        '{"80": {"rows": []}}',
        '{"80": {"rows": [{"config": {}}]}}',
        '{"80": {"rows": [{"when": {}}]}}',
        '{"80": {"rows": [{"when": {}, "config": {"X": "64"}}]}}',
        '{"sm_80": {"rows": [{"when": {}, "config": {"X": 64}}]}}',
    ],
)
def test_bad_tables_are_named(tables, text):
    tables(text)
    with pytest.raises(ValueError, match=r"made_up\.json"):
        tuned.config("made_up")


def test_a_lookup_is_cheap(tables):
    """A few microseconds: without the caches it takes a hundred, mostly to read the file."""
    tables({"80": {"source": "", "rows": ROWS}})
    best = min(timeit.repeat(lambda: tuned.config("made_up", dtype="half", dim=99, tokens=5000), number=500, repeat=9))
    assert best / 500 < 10e-6


def kernels():
    """Each kernel's parameters and the text of its file, by the kernel's name."""
    found = {}
    for path in Path(tuned.__file__).parent.glob("[a-z]*.py"):
        module = importlib.import_module(f"dqcore.kernels.{path.stem}")
        for name, value in vars(module).items():
            if name.endswith("_kernel") and hasattr(value, "fn"):
                found[name] = set(inspect.signature(value.fn).parameters), path.read_text()
    return found


def problems(stem, table):
    """What is wrong with a shipped table, one line each."""
    known, stems = kernels(), tune_problems.STEMS
    if stem not in stems or stems[stem].kernel not in known:
        return [f"{stem}: there is no such kernel"]
    domain, name = stems[stem].domain, stems[stem].kernel
    sizes = [dict(zip(domain, values, strict=True)) for values in itertools.product(*domain.values())]
    parameters, source = known[name]
    allowed = {"num_warps", "num_stages", "num_ctas", "maxnreg"} | parameters
    lines = []
    if min(map(int, table)) > min(TARGETS) or not {int(arch) for arch in table} <= set(TARGETS):
        lines.append(f"{stem}: architectures {sorted(table)}")
    for arch, part in table.items():
        if not part.get("source"):
            lines.append(f"{stem} {arch}: no source")
        for size in sizes:
            if not any(tuned.applies(row["when"], size) for row in part["rows"]):
                lines.append(f"{stem} {arch}: no row is for {size}")
        for row in part["rows"]:
            # A key in small letters is the launcher's own, which reads it by its name.
            own = {key for key in row["config"] if key.islower() and f'"{key}"' in source}
            lines += [f"{stem} {arch}: {key}" for key in sorted(row["config"].keys() - allowed - own)]
            if row["config"].keys() != part["rows"][0]["config"].keys():
                lines.append(f"{stem} {arch}: rows differ in their keys")
    return lines


@pytest.mark.parametrize("stem", SHIPPED)
def test_shipped_tables_fit_their_kernels(stem):
    assert problems(stem, json.loads((tuned.TABLES / f"{stem}.json").read_text())) == []
    assert tuned.table(stem)


def test_problems_are_seen():
    good = {"source": "made up", "rows": [{"when": {}, "config": {"BLOCK_N": 64, "num_warps": 4}}]}
    assert problems("nearest_code", {"80": good, "90": good}) == []
    assert problems("nearest", {"80": good}) == ["nearest: there is no such kernel"]
    assert problems("nearest_code", {"90": good}) == ["nearest_code: architectures ['90']"]
    bad = {"source": "", "rows": [{"when": {"width": 64}, "config": {"BLOCK_Q": 64, "own": 1}}]}
    assert problems("nearest_code", {"80": bad}) == [
        "nearest_code 80: no source",
        "nearest_code 80: no row is for {'width': 65}",
        "nearest_code 80: no row is for {'width': 512}",
        "nearest_code 80: BLOCK_Q",
        "nearest_code 80: own",
    ]
