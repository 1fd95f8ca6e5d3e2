"""The verbs of the command line: where each one's function lies, what it does, and how it is called."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["VERBS", "Verb"]


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        function: The function that does it, as ``"module:function"``. Its arguments and docstring become the verb's
            options and help. The module is imported when the verb is used, so ``dqcore --help`` imports none of them.
        summary: The verb's line in the overview.
        example: A line that works, shown in the verb's help.
    """

    function: str
    summary: str
    example: str


VERBS = {
    "demo": Verb(
        "dqcore.cli.demo.run:run_demo",
        "train a small tokenizer and prior on sample photographs, and write a report",
        "dqcore demo --out runs/demo",
    ),
    "data stats": Verb(
        "dqcore.cli.data_stats:data_stats",
        "count a data set's images, sizes, formats, broken files",
        "dqcore data stats photos/ --json photos.json",
    ),
    "data make": Verb(
        "dqcore.cli.data_make:data_make",
        "make a data set from another: crops at one size, .tar shards",
        "dqcore data make photos/ --out photos-256/ --size 256",
    ),
    "train tokenizer": Verb(
        "dqcore.cli.train:train_tokenizer",
        "train a tokenizer on a folder of images",
        "dqcore train tokenizer --data photos/ --out runs/mine --minutes 10",
    ),
    "train prior": Verb(
        "dqcore.cli.train:train_prior",
        "train a prior on a tokenizer's codes",
        "dqcore train prior --tokenizer runs/mine --data photos/ --out runs/prior",
    ),
    "sample": Verb(
        "dqcore.cli.sample:sample", "draw images from a prior", "dqcore sample runs/prior --count 64 --out samples/"
    ),
    "complete": Verb(
        "dqcore.cli.complete:complete",
        "keep a part of a photo, and let a prior draw the rest",
        "dqcore complete holiday.jpg --prior runs/prior --keep upper --out pictures/",
    ),
    "encode": Verb(
        "dqcore.cli.encode:encode",
        "encode photos to .dqc files, or a folder of images to codes",
        "dqcore encode holiday.jpg -o holiday.dqc --bpp 0.05",
    ),
    "decode": Verb(
        "dqcore.cli.decode:decode", "decode .dqc files or codes to pictures", "dqcore decode holiday.dqc -o holiday.png"
    ),
    "fit-tables": Verb(
        "dqcore.cli.fit_tables:fit_tables",
        "count a tokenizer's codes, for shorter .dqc files",
        "dqcore fit-tables runs/mine --data photos/",
    ),
    "reconstruct": Verb(
        "dqcore.cli.reconstruct:reconstruct",
        "encode and decode images, and write what came back",
        "dqcore reconstruct holiday.jpg --out pictures/",
    ),
    "evaluate": Verb(
        "dqcore.cli.evaluate:evaluate",
        "measure a tokenizer on photos, beside JPEG and WebP",
        "dqcore evaluate photos/ --checkpoint runs/mine --ratios 0 0.25 0.5 0.75 1",
    ),
    "report": Verb(
        "dqcore.cli.report:report", "write the report of a training run", "dqcore report runs/mine --images photos/"
    ),
    "reproduce": Verb(
        "dqcore.cli.reproduce:reproduce",
        "measure the paper's tables and figures, and say what holds",
        "dqcore reproduce router --data photos/",
    ),
    "convert": Verb(
        "dqcore.cli.convert:convert",
        "convert a checkpoint of the paper's authors, taming-transformers or LlamaGen",
        "dqcore convert theirs.ckpt --out models/theirs",
    ),
    "export": Verb(
        "dqcore.cli.export:export",
        "write a tokenizer's encoder and decoder as ONNX or for torch.export",
        "dqcore export runs/mine --out exported/ --height 256 --width 256",
    ),
    "info": Verb("dqcore.cli.info:info", "show versions, devices, kernels and presets", "dqcore info"),
    "completion": Verb(
        "dqcore.cli.completion:completion",
        "print what a shell needs to complete verbs and options",
        "dqcore completion bash > ~/.local/share/bash-completion/completions/dqcore",
    ),
}
