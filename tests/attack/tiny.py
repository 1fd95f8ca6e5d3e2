"""What the attacks work on: a few small photos, a tokenizer, a prior and codes, and how a verb is run."""

import contextlib
import os
import random
import traceback

from PIL import Image

SIZES = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


def make(root, seed=0):
    """Twelve photos in two folders, a tokenizer and a prior, and the codes of the photos as shards and as streams."""
    import torch

    import dqcore
    from dqcore.models.auto import fingerprint

    rng = random.Random(seed)
    for number in range(12):
        path = root / "photos" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.frombytes("RGB", (6, 6), rng.randbytes(108))
        small.resize((32, 32), Image.Resampling.BICUBIC).save(path)
    torch.manual_seed(seed)
    dqcore.DQVAE.from_preset("dqvae-dual-tiny", **SIZES).save_pretrained(root / "tokenizer")
    prior = {"codebook_size": 16, "region_grid": (2, 2), "tokenizer": fingerprint(root / "tokenizer")}
    dqcore.DQTransformer.from_preset("dqtransformer-tiny", **prior).save_pretrained(root / "prior")
    words = ["encode", root / "photos", "--checkpoint", root / "tokenizer", "--device", "cpu"]
    run([*words, "--out", root / "shards", "--shard-size", 5])
    run([*words, "--out", root / "streams", "--format", "dqc"])


def run(words, out=os.devnull):
    """Run a verb in this process, its output into a file; gives the exit code."""
    from dqcore.cli import main

    with open(out, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return main([str(word) for word in words])


def start(words, out):
    """Run a verb in a process of its own, which need not import everything anew; gives its number."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        code = run(words, out)
    except BaseException:
        with open(out, "a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)
