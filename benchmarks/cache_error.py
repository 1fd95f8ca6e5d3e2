"""What keys and values in fewer bytes do to the logits of the prior that comes with the package, on codes of photos.

``python benchmarks/cache_error.py PHOTO ...`` encodes the centres of the photos, as the prior's training data was
made, reads their codes token by token, as sampling does, from caches of each kind, and prints how far the logits of the
codes are from those of float32 caches: the largest and the mean difference, the mean KL divergence a code, and how
often the likeliest code is another.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHORT_SIDE = 224  # what the prior's photos were resized to


def codes_of(paths: list[Path], tokenizer: Any, prior: Any) -> Any:
    """The code sequence of the photos."""
    from dqcore.data.crops import CenterCrop
    from dqcore.data.images import image_to_tensor, read_image
    from dqcore.ops.pack_codes import pack_codes

    crop = CenterCrop(prior.config.region_grid[0] * tokenizer.config.strides[0], SHORT_SIDE)
    images = (crop.cut(crop.prepare(read_image(path)), random.Random(0)) for path in paths)
    encoding = tokenizer.encode(torch.stack([image_to_tensor(image) for image in images]))
    return pack_codes(encoding.codes, encoding.grain, num_granularities=prior.config.num_granularities)


def logits_of(prior: Any, sequence: Any, kind: str) -> tuple[Tensor, Tensor]:
    """Logits of all contents ``(N, K)`` and of all positions, token by token from caches of this kind."""
    tokens = prior.tape.lay_out(sequence, torch.zeros(len(sequence), dtype=torch.int64))
    grains, lengths = prior.tape.grains[tokens.entries], tokens.cu_seqlens.diff()
    steps = prior.new_steps(len(sequence), int(lengths.max()) + 1, kind)
    contents, positions = [], []
    starts = tokens.cu_seqlens[:-1].long()
    for step in range(int(lengths.max())):
        steps.active.copy_(step < lengths)
        at = tokens.inputs[starts + torch.minimum(lengths.long() - 1, torch.tensor(step))]
        columns = steps.positions(tokens.contents[at], tokens.rows[at], grains[at])
        codes = steps.codes(tokens.rows[at + 1])
        steps.lengths += steps.active
        here = steps.active.clone()
        contents.append(codes[here])
        positions += [] if columns is None else [columns[here]]
    return torch.cat(contents), torch.cat(positions)


@torch.inference_mode()
def main() -> None:
    """Print a line for each kind of cache and each kind of logits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    paths = parser.parse_args().photos
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"PHOTO: expected files, got {', '.join(missing)}")
    from dqcore.inference.sample import load_pair
    from dqcore.models.weights import PRIOR, weights_folder

    prior, tokenizer = load_pair(weights_folder(PRIOR))
    sequence = codes_of(paths, tokenizer, prior)
    exact = logits_of(prior, sequence, "weights")
    print(f"{len(paths)} photos, {len(sequence.codes)} codes; standard deviation of the logits {exact[0].std():.2f}")
    for kind in ("bfloat16", "int8"):
        for name, right, logits in zip(("contents", "positions"), exact, logits_of(prior, sequence, kind), strict=True):
            error = (logits - right).abs()
            kl = (right.softmax(1) * (right.log_softmax(1) - logits.log_softmax(1))).sum(1)
            other = (logits.argmax(1) != right.argmax(1)).float().mean()
            print(f"{kind:9} {name:10} largest {error.max():.4f} mean {error.mean():.5f} KL {kl.mean():.2e} nats, "
                  f"largest {kl.max():.2e}; likeliest differs for {100 * other:.2f} %")  # fmt: skip


if __name__ == "__main__":
    main()
