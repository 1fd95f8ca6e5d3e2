"""Damage files that verbs read: each verb must refuse them in one line, or make what it makes of the whole file.

    python tests/attack/damage_files.py --cases 600 --seed 0

All in one process. A case is a file with flipped bits, cut off, with other bytes, and if it is JSON also with keys that
are gone, values of wrong types and huge numbers.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import tiny

SECONDS = 60
ODD = (None, True, -1, 0, 3, 2**31, 10**19, 10**400, -0.5, 1e308, "", "x", "../../x", [], [1, "a"], {}, {"a": [None]})


@dataclasses.dataclass(frozen=True)
class Target:
    """Files to damage, in a folder that is copied for each case, and a verb that reads them.

    Attributes:
        files: Below the root.
        words: Of the verb; those that name something below the root begin with ``@``, and ``@out`` is for its output.
        result: What it makes, as plain values, given the root.
    """

    files: tuple[str, ...]
    words: str
    result: Callable[[Path], object]


def files_of(*folders):
    """Hashes of all files in some folders, but for what says when and how they were made."""

    def result(root):
        places = [root / folder for folder in folders]
        paths = [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*")))]
        paths = [path for path in paths if path.is_file()]
        return [(str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]

    return result


def run_of(folder):
    """The metrics and the weights of a run."""

    def result(root):
        rows = [json.loads(line) for line in (root / folder / "metrics.jsonl").read_text().splitlines()]
        rows = [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]
        return rows, files_of(f"{folder}/model")(root)

    return result


def numbers_of(root):
    return json.loads((root / "out").read_text())


TOKENIZER = ("tokenizer/config.json", "tokenizer/model.safetensors")
TARGETS = (
    Target(TOKENIZER, "encode @photos/a/00.png --checkpoint @tokenizer --out @out.dqc", files_of("out.dqc")),
    Target(TOKENIZER, "decode @streams/a/00.dqc --checkpoint @tokenizer --out @out", files_of("out")),
    Target(
        ("prior/config.json", "prior/model.safetensors"),
        "sample @prior --tokenizer @tokenizer --count 2 --slots 4 --out @out",
        files_of("out"),
    ),
    Target(
        ("shards/index.json", "shards/codes-00001.safetensors"),
        "decode @shards --checkpoint @tokenizer --out @out",
        files_of("out"),
    ),
    Target(
        ("shards/index.json", "shards/codes-00001.safetensors"),
        "train prior --codes @shards --classes --recipe paper --preset dqtransformer-tiny --steps 1 --out @out",
        run_of("out"),
    ),
    Target(("streams/a/00.dqc",), "decode @streams/a/00.dqc --checkpoint @tokenizer --out @out", files_of("out")),
    Target(
        ("streams/a/02.dqc", "streams/b/03.dqc"), "decode @streams --checkpoint @tokenizer --out @out", files_of("out")
    ),
    Target(
        ("streams/index.json",),
        "encode @photos --checkpoint @tokenizer --format dqc --out @streams",
        files_of("streams"),
    ),
    Target(
        ("run/checkpoint.pt", "run/config.json"),
        "train tokenizer --resume --steps 2 --out @run",
        run_of("run"),
    ),
    Target(  # a log: what it says of earlier steps changes no weights
        ("run/metrics.jsonl", "run/seen_images.json", "run/status.json"),
        "train tokenizer --resume --steps 2 --out @run",
        files_of("run/model/model.safetensors"),
    ),
    Target(
        (
            "prior-run/checkpoint.pt",
            "prior-run/codes.pt",
            "prior-run/config.json",
            "prior-run/model/tokenizer/config.json",
        ),
        "train prior --resume --steps 2 --out @prior-run",
        run_of("prior-run"),
    ),
    Target(("numbers.json",), "evaluate --compare @numbers.json @others.json --json @out", numbers_of),
    Target(("taming.ckpt",), "convert @taming.ckpt --out @out", files_of("out")),
    Target(  # a page shows what the log says, whatever it is
        ("run/metrics.jsonl", "run/status.json", "run/seen_images.json", "run/model/config.json"),
        "report @run --images @photos/a/00.png --photos 1 --out @out.html",
        lambda root: (root / "out.html").exists(),
    ),
)


def make(root):
    """All files, whole."""
    import dqcore

    tiny.make(root)
    sizes = {"channels": 32, "groups": 32, "encoder_multipliers": (1,) * 4, "decoder_multipliers": (1,) * 4}
    dqcore.VQGAN.from_preset("vqgan-f8-tiny", **sizes).save_pretrained(root / "vqgan")  # as theirs can be
    small = f"--data {root}/photos --image-size 32 --steps 1"
    measured = f"evaluate {root}/photos --limit 3 --checkpoint {root}/tokenizer --no-peers"
    words = [
        f"train tokenizer {small} --batch-size 4 --preset dqvae-dual-tiny --out {root}/run",
        f"train prior {small} --tokenizer {root}/tokenizer --views 1 --out {root}/prior-run",
        f"{measured} --json {root}/numbers.json",
        f"{measured} --json {root}/others.json --ratio 1",
        f"convert {root}/vqgan --to taming --out {root}/taming.ckpt",
    ]
    for line in words:
        if tiny.run([*line.split(), *([] if line.startswith("convert") else ["--device", "cpu"])]):
            raise SystemExit(f"failed: {line}")


def damaged(data, name, rng):
    """The bytes of a file, damaged, and how in words."""
    kinds = ["flip", "flip near the start", "cut", "other bytes", "zeros", "more"]
    if name.endswith((".json", ".jsonl")):
        kinds += ["key", "value", "value", "value"]
    kind = rng.choice(kinds)
    if kind in ("key", "value"):
        return _other_json(data, kind, rng)
    place = rng.randrange(min(len(data), 300) if kind == "flip near the start" else len(data))
    changed = bytearray(data)
    if kind.startswith("flip"):
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[place:]
    elif kind == "more":
        changed += rng.randbytes(1 + place % 40)
    else:
        length = rng.randrange(1, 64)
        new = bytes(length) if kind == "zeros" else rng.randbytes(length)
        changed[place : place + length] = new
    return bytes(changed), f"{kind} at {place}"


def _other_json(data, kind, rng):
    """JSON, one line or several of it, with a key gone or with another value somewhere."""
    lines = data.decode().splitlines() if data.count(b"\n{") else [data.decode()]
    number = rng.randrange(len(lines))
    value = json.loads(lines[number])
    places = []

    def walk(part):
        for key in part if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], (dict, list)):
                walk(part[key])

    walk(value)
    part, key = rng.choice(places)
    said = f"line {number}, {key!r}: {str(part[key])[:30]!r}"
    if kind == "key":
        del part[key]
        said += " is gone"
    else:
        part[key] = rng.choice(ODD)
        said += f" is {str(part[key])[:30]!r}"
    lines[number] = json.dumps(value)
    return "\n".join(lines).encode() + b"\n", said


class HungError(BaseException):
    """A verb took too long."""


def _hang(number, frame):
    raise HungError


class Attack:
    """Runs a verb on damaged files, over and over.

    Args:
        whole: The folder of all files.
        rng: What to damage, and how.
    """

    def __init__(self, whole, rng):
        self.whole, self.rng = whole, rng
        self.work = whole.with_name(whole.name + "-work")
        self.log = whole.with_name(whole.name + ".log")
        self.wanted = {}
        self.counts = {"refused": 0, "the same": 0, "unchanged": 0}
        self.wrong = []
        signal.signal(signal.SIGALRM, _hang)

    def run(self, target):
        """Run the verb in the working folder; the exit code and what it printed."""
        words = [f"{self.work}/{word[1:]}" if word.startswith("@") else word for word in target.words.split()]
        signal.alarm(SECONDS)
        try:
            plain = words[0] == "convert" or "--compare" in words
            code = tiny.run(words if plain else [*words, "--device", "cpu"], self.log)
        except HungError:
            code = -signal.SIGALRM
        finally:
            signal.alarm(0)
        return code, self.log.read_text(errors="replace")

    def fresh(self, target):
        """The files as they were, and what the verb makes of them."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.whole, self.work)
        if target not in self.wanted:
            code, text = self.run(target)
            if code:
                raise SystemExit(f"{target.words}: {text}")
            self.wanted[target] = target.result(self.work)
            self.fresh(target)

    def case(self, target):
        """Damage a file, run the verb, and judge what came of it."""
        self.fresh(target)
        name = self.rng.choice(target.files)
        before = (self.work / name).read_bytes()
        data, how = damaged(before, name, self.rng)
        (self.work / name).write_bytes(data)
        code, text = self.run(target)
        if data == before:
            self.counts["unchanged"] += 1
        elif code == 2 and re.search(r"^dqcore: error: [^\n]+\n\Z", text, re.MULTILINE) and "Traceback" not in text:
            self.counts["refused"] += 1
        elif code == 0 and self.made(target) == self.wanted[target]:
            self.counts["the same"] += 1
        else:
            self.wrong.append(f"{name}, {how}: {target.words}: exit code {code}, {text[-300:]!r}")
            print(self.wrong[-1], flush=True)

    def made(self, target):
        try:
            return target.result(self.work)
        except (OSError, ValueError) as error:
            return repr(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="files and verbs with this text alone")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="dqcore-damage-"))
    make(folder / "whole")
    attack = Attack(folder / "whole", random.Random(given.seed))
    targets = [target for target in TARGETS if given.only in f"{target.files} {target.words}"]
    for number in range(given.cases):
        attack.case(targets[number % len(targets)])
    print(f"{given.cases} damaged files: {attack.counts}, {len(attack.wrong)} wrong")
    shutil.rmtree(folder)
    raise SystemExit(bool(attack.wrong))


if __name__ == "__main__":
    main()
