"""Small autoencoders around a quantizer: three data sets, one way to train, and what is measured on other pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqcore.data.idx import read_idx_pair
from dqcore.data.images import image_to_uint8, list_images, read_image, split_images
from dqcore.data.photos import sample_photos
from dqcore.metrics.coding import perplexity

#: A folder of photographs to use instead of the package's own; a tenth of them is held out.
PHOTOS = "DQCORE_BENCH_PHOTOS"
#: Where Debian's package dataset-fashion-mnist puts its files, unless this variable names another folder.
FASHION = "DQCORE_FASHION_MNIST"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
WIDTH = 32  # channels of the first convolution

Pictures = tuple[Tensor, Tensor]


class Missing(Exception):
    """A data set is not on this machine."""


@dataclass(frozen=True)
class Task:
    """What is trained on.

    Attributes:
        data: Gives training and held-out pictures, each ``(N, C, H, W)`` uint8.
        codes: K.
        dim: Channels of the quantized map.
        halvings: The quantized map's side is the crop's side divided by ``2 ** halvings``.
        crop: Side of the squares that training draws from the pictures.
        batch: Squares in a batch.
    """

    data: Callable[[], Pictures]
    codes: int
    dim: int
    halvings: int
    crop: int
    batch: int


def photos() -> Pictures:
    """Squares of 128 pixels: the package's own photographs, or the middle of those in the folder that is named."""
    folder = os.environ.get(PHOTOS)
    if folder:
        train, held_out = split_images(list_images(folder), 0.1, root=Path(folder))
    else:
        train, held_out = sample_photos("train"), sample_photos("heldout")
    return _squares(tuple(train)), _squares(tuple(held_out))


@cache
def _squares(paths: tuple[Path, ...], side: int = 128) -> Tensor:
    images = [image_to_uint8(read_image(path)) for path in paths]
    return torch.stack([_middle(image, side) for image in images])


def _middle(image: Tensor, side: int) -> Tensor:
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    return image[:, top : top + side, left : left + side]


@cache
def fashion() -> Pictures:
    """Fashion-MNIST with 2 black pixels on each side: 32 x 32; 6,000 to train on, 1,000 held out."""
    folder = Path(os.environ.get(FASHION, DEBIAN))
    try:
        train, held_out = (read_idx_pair(folder, split)[0] for split in ("train", "t10k"))
    except FileNotFoundError as error:
        raise Missing(f"{error}; Debian: apt-get install dataset-fashion-mnist") from error
    padded = [F.pad(images, (2, 2, 2, 2))[:, None] for images in (train[:6000], held_out[:1000])]
    return padded[0], padded[1]


TASKS = {
    "photos-32": Task(photos, codes=512, dim=32, halvings=2, crop=32, batch=32),
    "photos-64": Task(photos, codes=512, dim=32, halvings=2, crop=64, batch=8),
    # Here most networks are still at the level of local means when training ends, whatever quantizer they have.
    "photos-64-coarse": Task(photos, codes=512, dim=32, halvings=3, crop=64, batch=16),
    "fashion-mnist": Task(fashion, codes=256, dim=32, halvings=2, crop=32, batch=32),
}


def networks(task: Task, channels: int) -> tuple[nn.Module, nn.Module]:
    """An encoder and a decoder with a convolution for each halving."""
    widths = [WIDTH * min(2**level, 2) for level in range(task.halvings)]
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    for before, width in zip([channels, *widths], widths, strict=False):
        down += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.SiLU()]
        up = [nn.SiLU(), nn.ConvTranspose2d(width, before, 4, stride=2, padding=1), *up]
    top = widths[-1]
    down += [nn.Conv2d(top, top, 3, padding=1), nn.SiLU(), nn.Conv2d(top, task.dim, 1)]
    up = [nn.Conv2d(task.dim, top, 1), nn.SiLU(), nn.Conv2d(top, top, 3, padding=1), *up]
    return nn.Sequential(*down), nn.Sequential(*up)


def crops(pictures: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """Squares drawn at random from the pictures, ``(count, C, side, side)`` float32 in [-1, 1]."""
    which = torch.randint(len(pictures), (count,), generator=generator)
    tops, lefts = (torch.randint(size - side + 1, (count,), generator=generator) for size in pictures.shape[2:])
    places = zip(which.tolist(), tops.tolist(), lefts.tolist(), strict=True)
    return _scaled(torch.stack([pictures[i, :, y : y + side, x : x + side] for i, y, x in places]))


def tiles(pictures: Tensor, side: int) -> Tensor:
    """Every square of a grid with half a square between neighbours, in [-1, 1]."""
    parts = pictures.unfold(2, side, side // 2).unfold(3, side, side // 2)
    return _scaled(parts.permute(0, 2, 3, 1, 4, 5).reshape(-1, pictures.shape[1], side, side))


def _scaled(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def train(task: Task, layer: Callable[[int, int], nn.Module], *, steps: int, seed: int) -> dict[str, float]:
    """Train an autoencoder around ``layer(dim, codes)``; the first weights and all batches depend on the seed alone.

    Args:
        task: Data and sizes.
        layer: Builds a quantizer; it returns ``(map, codes, loss)`` for a map ``(B, dim, H, W)``.
        steps: Updates.
        seed: Of the weights, the codebook and the batches.

    Returns:
        ``l1`` and ``squared_error`` on held-out pictures in [-1, 1], ``codes_used`` and ``perplexity`` there.
    """
    pictures, held_out = task.data()
    torch.manual_seed(seed)
    encoder, decoder = networks(task, pictures.shape[1])
    torch.manual_seed(1000 + seed)
    quantizer = layer(task.dim, task.codes)
    parts = nn.ModuleList([encoder, quantizer, decoder])
    optimizer = torch.optim.Adam([p for p in parts.parameters() if p.requires_grad], 1e-3)
    generator = torch.Generator().manual_seed(2000 + seed)
    for _ in range(steps):
        batch = crops(pictures, task.crop, task.batch, generator)
        quantized, _, loss = quantizer(encoder(batch))
        loss = loss + (decoder(quantized) - batch).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return measure(parts.eval(), tiles(held_out, task.crop), task)


@torch.no_grad()
def measure(parts: nn.ModuleList, pictures: Tensor, task: Task) -> dict[str, float]:
    """Distortion and use of the codebook on pictures in [-1, 1]."""
    encoder, quantizer, decoder = parts
    absolute = squared = 0.0
    counts = torch.zeros(task.codes)
    for batch in pictures.split(64):
        quantized, codes, _ = quantizer(encoder(batch))
        error = decoder(quantized) - batch
        absolute, squared = absolute + float(error.abs().sum()), squared + float(error.square().sum())
        counts += torch.bincount(codes.flatten(), minlength=task.codes)
    return {
        "l1": absolute / pictures.numel(),
        "squared_error": squared / pictures.numel(),
        "codes_used": int((counts > 0).sum()),
        "perplexity": perplexity(counts),
    }
