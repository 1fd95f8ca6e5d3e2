"""Kill verbs at random moments, and go on until they have made, bit for bit, what an undisturbed run makes.

    python tests/attack/kill_runs.py --kills 30 --seed 0 --verbs encode sample

Half of the kills are SIGKILL, half SIGTERM. After each, every file that stands under its own name must be one that an
undisturbed run has had there; in the end all must be there, with no temporary file beside them.
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
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tiny

#: A run is killed at most so often before it may end.
IN_A_ROW = 3
STEPS, CHECKPOINTS = 8, 3


class FoundError(Exception):
    """Something was lost, left behind or made otherwise."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A verb: its words for an output, the words that it goes on with, and what of its output must be the same."""

    words: Callable[[Path, Path], list]
    made: Callable[[Path], dict]
    again: tuple[str, ...] = ()
    #: Whether what is there before the end must be as it is in the end.
    files_are_final: bool = True
    checked: Callable[[Path], None] = lambda out: None


def bytes_of(out):
    """A hash of every file."""
    files = [path for path in out.rglob("*") if path.is_file()] if out.is_dir() else [out]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def streams_of(out):
    """The streams, and the index whatever its order."""
    index = json.loads((out / "index.json").read_text())
    listed = {entry["name"]: entry for entry in index["images"]}
    return {**bytes_of(out), "index.json": json.dumps([listed, index["broken"]], sort_keys=True)}


def index_and_files(out):
    """The files, and the index whatever its order."""
    return {**bytes_of(out), "index.json": _listed(out)}


def members_of(out):
    """What the shards hold, in whichever of them it is; and that no other file is there."""
    found = {"index.json": _listed(out), "others": sorted(p.name for p in out.iterdir() if p.suffix != ".tar")}
    for path in out.glob("*.tar"):
        with tarfile.open(path) as shard:
            for member in shard:
                if member.name in found:
                    raise FoundError(f"{member.name} is there twice")
                found[member.name] = hashlib.sha256(shard.extractfile(member).read()).hexdigest()
    return found


def _listed(out):
    index = json.loads((out / "index.json").read_text())
    images = {
        entry["name"]: {key: value for key, value in entry.items() if key != "shard"} for entry in index["images"]
    }
    return json.dumps([images, index["broken"], sorted(index)], sort_keys=True)


def codes_of(out):
    """The codes of each image, in whichever shard they are; and that no other file is there."""
    from dqcore.data.shards import read_index, read_shards

    found = {}
    for entry, codes, grain in read_shards(out):
        about = {name: value for name, value in entry.items() if name != "shard"}
        found[entry["name"]] = about, codes.tolist(), grain.tolist()
    known = {entry["shard"] for entry in read_index(out)["images"]} | {"index.json"}
    return found | {"others": sorted(set(os.listdir(out)) - known)}


def plain(value):
    """A state with a hash in place of each tensor."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if not hasattr(value, "numpy"):
        return value
    return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}"


def run_of(out):
    """A training run: its metrics, and all files of its model, its pictures and its checkpoint."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    from dqcore.training.state import read_state

    files = bytes_of(out)
    found = {name: sha for name, sha in files.items() if name.startswith(("model/", "pictures/"))}
    found["checkpoint"] = plain(read_state(out / "checkpoint.pt"))
    found["metrics"] = [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]
    return found | {"files": sorted(files)}


def check_run(out):
    """A run that was ended has lost no more than the steps since its last checkpoint."""
    from dqcore.training.log import read_metrics
    from dqcore.training.state import read_state

    rows = read_metrics(out / "metrics.jsonl")
    kept = read_state(out / "checkpoint.pt")["step"] if (out / "checkpoint.pt").is_file() else 0
    if rows and rows[-1]["step"] - kept > CHECKPOINTS:
        raise FoundError(f"step {rows[-1]['step']} was reached, and the checkpoint is of step {kept}")


def coded(*rest):
    return lambda root, out: [*("encode", root / "photos", "--checkpoint", root / "tokenizer"), "--out", out, *rest]


def made(*rest):
    return lambda root, out: ["data", "make", root / "photos", "--out", out, "--size", 24, *rest]


def decoded(name):
    return lambda root, out: [*("decode", root / name, "--checkpoint", root / "tokenizer"), "--out", out]


def trained(kind, *rest):
    every = ("--log-every", 1, "--validate-every", 4, "--checkpoint-every", CHECKPOINTS, "--steps", STEPS, "--seed", 3)
    first = ("--data", "photos", "--image-size", 32, *every, *rest)
    return lambda root, out: [
        *("train", kind, "--out", out),
        *(root / word if word in ("photos", "tokenizer") else word for word in first),
    ]


PICTURE = "streams/a/00.dqc"
JOBS = {
    "train tokenizer": Job(
        trained("tokenizer", "--preset", "dqvae-dual-tiny", "--batch-size", 4, "--average-decay", 0.9),
        *(run_of, ("--resume",), False, check_run),
    ),
    "train prior": Job(
        trained("prior", "--tokenizer", "tokenizer", "--views", 2, "--token-budget", 60, "--start", "codes"),
        *(run_of, ("--resume",), False, check_run),
    ),
    "encode": Job(coded("--shard-size", 5, "--batch-size", 2), codes_of, files_are_final=False),
    "encode streams": Job(coded("--format", "dqc"), streams_of),
    "encode one": Job(
        lambda root, out: [
            *("encode", root / "photos" / "a" / "00.png", "--checkpoint", root / "tokenizer"),
            *("--out", out / "x.dqc"),
        ],
        bytes_of,
    ),
    "reconstruct": Job(
        lambda root, out: ["reconstruct", root / "photos", "--checkpoint", root / "tokenizer", "--out", out], bytes_of
    ),
    "data make": Job(made("--crop", "random", "--crops", 2), index_and_files),
    "data make tar": Job(made("--packing", "tar", "--shard-size", 5, "--classes"), members_of, files_are_final=False),
    "sample": Job(
        lambda root, out: [
            *("sample", root / "prior", "--tokenizer", root / "tokenizer", "--out", out),
            *("--count", 24, "--batch-size", 3, "--slots", 8),
        ],
        bytes_of,
    ),
    "decode": Job(decoded("shards"), bytes_of),
    "decode streams": Job(decoded("streams"), bytes_of),
    "decode one": Job(
        lambda root, out: [
            *("decode", root / PICTURE, "--checkpoint", root / "tokenizer"),
            *("--out", out / "x.png"),
        ],
        bytes_of,
    ),
}


@dataclasses.dataclass
class Attack:
    """Kills of one verb.

    Args:
        root: Where :func:`tiny.make` was.
        name: The verb's place in ``JOBS``.
        rng: When to kill, and how.
    """

    root: Path
    name: str
    rng: random.Random
    kills: int = 0
    runs: int = 0

    def __post_init__(self):
        self.job = JOBS[self.name]
        self.place = self.root / "out" / self.name.replace(" ", "-")
        self.log = self.place.with_suffix(".log")
        self.place.parent.mkdir(exist_ok=True)
        begin = time.perf_counter()
        if self.end(self.begin(self.out("whole"))):
            raise FoundError(f"the undisturbed run failed: {self.log.read_text()}")
        self.seconds = time.perf_counter() - begin
        self.whole = self.job.made(self.place / "whole")
        self.files = bytes_of(self.place / "whole")

    def out(self, name):
        folder = self.place / name
        if " one" in self.name:
            folder.mkdir(parents=True)
        return folder

    def begin(self, out, again=()):
        words = [*self.job.words(self.root, out), *again]
        words += [] if words[0] == "data" else ["--device", "cpu"]
        return tiny.start(words, self.log)

    def end(self, process):
        """Wait for a process; gives what it returned, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])

    def go(self, kills):
        """Kill until there were enough; each run may end after a few."""
        while self.kills < kills:
            out = self.out(f"run-{self.runs}")
            self.runs += 1
            again = ()
            for _ in range(min(IN_A_ROW, kills - self.kills)):
                if not self.killed(self.begin(out, again)):
                    break
                self.check_part(out)
                again = self.job.again
            else:
                if code := self.end(self.begin(out, again)):
                    raise FoundError(f"cannot go on: exit code {code}, {self.log.read_text()}")
            self.check_whole(out)
            shutil.rmtree(out)

    def killed(self, process):
        """Kill a process at a random moment; whether it had not ended before."""
        number = self.rng.choice((signal.SIGKILL, signal.SIGTERM))
        time.sleep(self.rng.uniform(0, self.seconds))
        os.kill(process, number)
        code, text = self.end(process), self.log.read_text()
        if code not in (0, -number, 128 + number) or "Traceback" in text or "error:" in text:
            raise FoundError(f"{number!r}: exit code {code}, {text}")
        self.kills += code != 0
        return code != 0

    def check_part(self, out):
        """What stands under its own name is whole, and nothing is there that is not to come."""
        self.job.checked(out)
        if not self.job.files_are_final or not out.exists():
            return
        for name, sha in bytes_of(out).items():
            if name not in ("index.json", ".begun") and not name.endswith(".tmp") and self.files.get(name) != sha:
                raise FoundError(f"{name} is not what it will be")

    def check_whole(self, out):
        made = self.job.made(out)
        if made != self.whole:
            different = sorted(n for n in made.keys() | self.whole.keys() if made.get(n) != self.whole.get(n))
            raise FoundError(f"made otherwise: {', '.join(different)}")
        left = [str(path) for path in out.rglob("*") if re.search(r"\.tmp$|lock", path.name)]
        if left:
            raise FoundError(f"left behind: {left}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="of each verb")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--keep", action="store_true", help="keep the folder, to look into it")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a run's numbers are those of a number of threads
    import dqcore.training  # noqa: F401 what the processes need not import each for itself

    root = Path(tempfile.mkdtemp(prefix="dqcore-kills-"))
    tiny.make(root)
    failed = 0
    for name in given.verbs:
        try:
            attack = Attack(root, name, random.Random(f"{given.seed} {name}"))
            attack.go(given.kills)
            said = f"{attack.kills} kills in {attack.runs} runs of {attack.seconds:.2f} s, nothing lost, nothing left"
        except FoundError as error:
            failed, said = failed + 1, f"FAILED: {error}"
        print(f"{name}: {said}", flush=True)
    if not given.keep:
        shutil.rmtree(root)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
