"""One word for one thing: the synonyms that were retired stay out of code, docstrings and pages.

CONTRIBUTING.md says what each word means.
"""

import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: What nobody writes any more, what to write instead, and the files it is looked for in and left alone in.
RETIRED = [
    # words of the method
    (r"codebook entr(y|ies)", "code", ["*"], []),
    (r"\bgrain (level|size|index)s?\b", "granularity", ["*"], []),
    (r"\blevels?\b", "granularity; a level is a resolution of the encoder or decoder", ["dqcore/*"],
     ["dqcore/nn/encoder.py", "dqcore/nn/decoder.py", "dqcore/nn/blocks.py", "dqcore/models/tokenizers/base.py",
      "dqcore/convert/tokenizer.py", "dqcore/convert/vqgan.py", "dqcore/models/tokenizers/*.py"]),
    (r"\btokens?\b", "vector", ["dqcore/quantizer/*", "dqcore/codebook/*", "dqcore/estimators.py",
     "dqcore/ops/*nearest_code.py", "dqcore/ops/*dynamic_lookup.py", "dqcore/ops/*code_sums.py",
     "kernels/*_code*.py", "kernels/dynamic_lookup*.py", "kernels/rounding.py", "kernels/scan.py", "kernels/settle.py",
     "kernels/vectors.py"], []),
    (r"\bslots?\b", "place or index; a slot is a sample that is being drawn", ["csrc/*", "dqcore/ops/*layout.py",
     "dqcore/ops/*pack_codes.py", "dqcore/ops/*pack_features.py", "dqcore/ops/*dynamic_lookup.py"], []),
    (r"\bnum_slots\b", "num_places", ["dqcore/models/priors/*"], []),
    (r"\bstep_?\s?scores?\b", "refinement scores", ["dqcore/*"], []),
    (r"\b(index map|token map|code grid|grain grid)\b", "code map, grain map", ["*"], []),
    (r"\bholes?\b", "bad cell, bad vector; a hole is code K in a partial code map",
     ["dqcore/nn/*", "dqcore/ops/*", "dqcore/codebook/l*", "dqcore/codebook/draw.py"], []),
    (r"\bstage[- ][12]\b", "first stage, second stage; tokenizer, prior", ["*"], []),
    # names
    (r"\bperceptual_weights\b", "vgg_weights", ["dqcore/*", "README.md", "docs/*", "examples/*", "benchmarks/*"],
     ["dqcore/training/tokenizer/options.py", "dqcore/nn/perceptual.py"]),
    (r"packed=(True|False)|--packed", "in_memory", ["dqcore/*", "README.md", "docs/*", "examples/*", "benchmarks/*"],
     ["dqcore/training/tokenizer/options.py"]),
    (r"\btrainer\b", "step", ["dqcore/*"], []),
    (r"\bsurface\b", "reconstruction", ["dqcore/training/*"], []),
    (r"\bworld: int\b", "processes", ["dqcore/*"], []),
    (r"dqcore\.(evaluation|verbs|verbs_prior|demo_prior)\b", "its new path", ["*"],
     ["dqcore/compat/*", "CHANGELOG.md"]),
    # riddles
    (r"\bthe so many\b|first so many|so many (epochs|steps|images)", "how many, by number or name", ["*"], []),
    (r"\bits luck\b|companions mandatory|by the so many|mistaken resumption", "a plain sentence", ["*"], []),
    (r"unless nowhere|unless none is|nobody waits for their|own gives Any", "a plain sentence", ["*"], []),
    (r"\bof the user's\b", "of the user", ["*"], []),
]  # fmt: skip

PAGES = [
    path
    for pattern in (
        "dqcore/**/*.py",
        "kernels/*.py",
        "csrc/**/*",
        "benchmarks/*.py",
        "examples/*.py",
        "docs/*.md",
        "*.md",
    )
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix in {".py", ".md", ".h", ".cpp", ".cu", ".cuh"}
]


def matches(path, patterns):
    name = path.relative_to(ROOT).as_posix()
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


@pytest.mark.parametrize(("pattern", "instead", "places", "spared"), RETIRED, ids=[row[0] for row in RETIRED])
def test_retired_words_stay_away(pattern, instead, places, spared):
    found = []
    for path in PAGES:
        if matches(path, places) and not matches(path, spared):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if re.search(pattern, line, re.IGNORECASE):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, f"write {instead}:\n" + "\n".join(found)


def test_every_word_of_the_table_is_explained_once():
    words = re.findall(r"^\| ([a-z, ]+) \| ", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    names = [word for row in words[1:] for word in row.split(", ")]
    assert len(names) == len(set(names))
    assert {"slot", "step", "entry", "row", "token", "vector", "granularity", "region"} <= set(names)
