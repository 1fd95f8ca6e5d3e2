"""Command lines that nobody means: each must be refused in one line, or do what it says.

    python tests/attack/odd_words.py --cases 1300 --seed 0

All in one process. Every option of every verb gets empty texts, numbers of 20 digits, NaN, paths of the wrong kind, and
is left without its value; a line that works is the rest.
"""

import argparse
import os
import random
import re
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import tiny

SECONDS, MEMORY = 60, 16 << 30
VALUES = ["", "x", "-1", "0", "nan", "inf", "-inf", "1e400", "1.5", "9" * 20, "-" + "9" * 20, "ä", "a" * 3000]
VALUES += ["@nowhere", "@photos", "@photos/a/00.png", "@tokenizer/config.json", "@empty", "@fifo", "--", "--seed", None]
#: Too large to be computed, which must be noticed first; not where it is only a length of time or of a list.
HUGE = {"image_size", "size", "resize", "height", "width", "shard_size", "codebook_size", "dim", "discriminator_dim"}
HUGE |= {"position_layers", "content_layers", "max_pixels", "batch_size", "token_budget", "patch_size", "encode_batch"}

#: A line of each verb that does its work in a moment; ``demo`` and ``reproduce`` have none, and must be refused.
LINES = {
    "demo": "--out @photos --steps 0",
    "data stats": "@photos",
    "data make": "@photos --out @out --size 16",
    "train tokenizer": "--data @photos --image-size 32 --batch-size 4 --preset dqvae-dual-tiny --steps 1 --out @out",
    "train prior": "--codes @shards --steps 1 --recipe paper --preset dqtransformer-tiny --token-budget 60 --out @out",
    "sample": "@prior --tokenizer @tokenizer --count 2 --slots 4 --out @out",
    "complete": "@photos/a/00.png --prior @prior --tokenizer @tokenizer --out @out",
    "encode": "@photos/a --checkpoint @tokenizer --out @out",
    "decode": "@streams/a --checkpoint @tokenizer --out @out",
    "fit-tables": "@tokenizer --data @photos/a",
    "reconstruct": "@photos/a --checkpoint @tokenizer --out @out",
    "evaluate": "@photos/a --checkpoint @tokenizer --no-peers",
    "report": "@nowhere",
    "reproduce": "router --data @nowhere",
    "convert": "@tokenizer/model.safetensors --out @out",
    "export": "@tokenizer --out @out",
    "info": "",
    "completion": "bash",
}


def make(root):
    """What the lines name."""
    tiny.make(root)
    (root / "empty").mkdir()


def lines():
    """Every option of every verb with every odd value, as words."""
    from dqcore.cli.options import options_of

    for verb, rest in LINES.items():
        first = [*verb.split(), *rest.split()]
        for option in options_of(verb):
            for value in [*VALUES, *(["1000000000"] if option.name in HUGE else [])]:
                if option.positional:
                    yield [*verb.split(), *([] if value is None else [value]), *rest.split()[1:]]
                elif option.switch:
                    yield [*first, option.flags[0] if value is None else f"{option.flags[0]}={value}"]
                else:
                    yield [*first, option.flags[0], *([] if value is None else [value])]


class HungError(BaseException):
    """A verb took too long."""


def _hang(number, frame):
    raise HungError


class Attack:
    """Runs odd lines in an empty folder of their own.

    Args:
        root: Where :func:`make` was.
    """

    def __init__(self, root):
        self.whole, self.root = root, root.with_name(root.name + "-work")
        self.log, self.here = root.with_name(root.name + ".log"), self.root / "here"
        self.counts = {"refused": 0, "done": 0}
        self.wrong, self.done = [], []
        signal.signal(signal.SIGALRM, _hang)

    def run(self, words):
        signal.alarm(SECONDS)
        try:
            return tiny.run(words, self.log)
        except HungError:
            return -signal.SIGALRM
        finally:
            signal.alarm(0)

    def case(self, words):
        """Run a line, and judge what came of it."""
        shutil.rmtree(self.root / "out", ignore_errors=True)
        if not self.here.exists():  # what was refused has changed nothing else
            shutil.copytree(self.whole, self.root)
            os.mkfifo(self.root / "fifo")
            self.here.mkdir()
        os.chdir(self.here)
        code = self.run([f"{self.root}/{word[1:]}" if word.startswith("@") else word for word in words])
        text, said = self.log.read_text(errors="replace"), " ".join(word[:60] for word in words)
        left = os.listdir(self.here)
        one_line = re.search(r"^dqcore: error: [^\n]+\n\Z", text, re.MULTILINE) and "Traceback" not in text
        if code != 2 or left:
            shutil.rmtree(self.root)
        if code == 0:
            self.counts["done"] += 1
            self.done.append(said)
        elif code == 2 and one_line and not left:
            self.counts["refused"] += 1
        else:
            self.wrong.append(said)
            print(f"{said}: exit code {code}, left {left}, {text[-300:]!r}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="lines with this text alone")
    parser.add_argument("--done", action="store_true", help="list the lines that were not refused")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    root = Path(tempfile.mkdtemp(prefix="dqcore-words-"))
    (root / "whole").mkdir()
    make(root / "whole")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    chosen = [words for words in lines() if given.only in " ".join(words)]
    random.Random(given.seed).shuffle(chosen)
    attack = Attack(root / "whole")
    for words in chosen[: given.cases]:
        attack.case(words)
    for line in attack.done if given.done else ():
        print(f"done: {line}")
    print(f"{min(len(chosen), given.cases)} of {len(chosen)} lines: {attack.counts}, {len(attack.wrong)} wrong")
    os.chdir("/")
    shutil.rmtree(root)
    raise SystemExit(bool(attack.wrong))


if __name__ == "__main__":
    main()
