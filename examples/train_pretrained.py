"""Train the weights that come with the package: the tokenizer ``dqvae-dual-small`` and its prior.

    python examples/train_pretrained.py PHOTOS OUT --tokenizer-minutes 5.2 --prior-minutes 1 --compile

PHOTOS is a folder of photographs; the model card says which ones were used. OUT/tokenizer and OUT/prior are the two
runs, with their metrics; a run that was stopped goes on if the command is given again. OUT/weights gets the models in
half precision, as the package keeps them. The prior is trained on codes of the tokenizer as it is stored there.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

import dqcore
from dqcore.data.listing import list_images
from dqcore.data.provenance import RECORD
from dqcore.models.weights import PRIOR, TOKENIZER
from dqcore.training import PriorTraining, TokenizerTraining, train_prior, train_tokenizer
from dqcore.training.tokenizer.tables import some_images, write_tables


def main() -> None:
    """Train both, or what is left of them."""
    arguments = _arguments()
    # Whole batches and parts of them are decoded: two shapes, each compiled for itself.
    torch._dynamo.config.automatic_dynamic_shapes = False
    weights = arguments.out / "weights"
    if not (weights / TOKENIZER / RECORD).is_file():  # written last
        train_tokenizer(_tokenizer_options(arguments))
        model = dqcore.DQVAE.from_pretrained(arguments.out / "tokenizer" / "model")
        _store(model, arguments, weights / TOKENIZER)
    if arguments.prior_minutes:
        train_prior(_prior_options(arguments, weights / TOKENIZER))
        prior = dqcore.DQTransformer.from_pretrained(arguments.out / "prior" / "model")
        prior.save_pretrained(weights / PRIOR, torch.float16)


def _store(model: dqcore.DQVAE, arguments: argparse.Namespace, folder: Path) -> None:
    """Write the tokenizer as the package keeps it: half precision, code tables, hashes of photographs."""
    model.save_pretrained(folder, torch.float16)
    model = dqcore.DQVAE.from_pretrained(folder)  # the codes to count are those of the weights as they are stored
    write_tables(model, some_images(model, list_images(arguments.photos)), folder)
    shutil.copyfile(arguments.out / "tokenizer" / RECORD, folder / RECORD)


def _tokenizer_options(arguments: argparse.Namespace) -> TokenizerTraining:
    out = arguments.out / "tokenizer"
    if (out / "checkpoint.pt").is_file():
        return TokenizerTraining.of_run(out)
    return TokenizerTraining(
        recipe="photos",
        data=arguments.photos,
        out=out,
        minutes=arguments.tokenizer_minutes,
        in_memory=True,
        workers=arguments.workers,
        compile=arguments.compile,
        checkpoint_minutes=2.0,
        **arguments.tokenizer_options,
    )


def _prior_options(arguments: argparse.Namespace, tokenizer: Path) -> PriorTraining:
    out = arguments.out / "prior"
    if (out / "checkpoint.pt").is_file():
        return PriorTraining.of_run(out)
    return PriorTraining(
        recipe="photos",
        data=arguments.photos,
        tokenizer=tokenizer,
        out=out,
        minutes=arguments.prior_minutes,
        encode_batch=64,
        **arguments.prior_options,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer-minutes", type=float, default=5.2)
    parser.add_argument("--prior-minutes", type=float, default=1.0, help="0: no prior")
    parser.add_argument("--workers", type=int, default=12, help="processes that cut crops")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tokenizer-options", type=_options, default={}, metavar="NAME=VALUE,..")
    parser.add_argument("--prior-options", type=_options, default={}, metavar="NAME=VALUE,..")
    return parser.parse_args()


def _options(text: str) -> dict[str, float | int]:
    """Numbers by name, such as ``batch_size=4,image_size=128``."""
    pairs = (pair.split("=") for pair in text.split(","))
    return {name: float(value) if set(value) & set(".e") else int(value) for name, value in pairs}


if __name__ == "__main__":
    main()
