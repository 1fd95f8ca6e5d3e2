"""README's picture: photographs, where their codes went, and what came back, by the weights that come with dqcore.

    pip install scikit-image
    python examples/make_picture.py docs/demo.jpg

The photographs are scikit-image's, in the public domain or CC0; none was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import skimage
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dqcore.data.images import image_to_tensor, pad_to_stride, read_image, tensor_to_image
from dqcore.inference.budget import ByteBudget, Coded
from dqcore.inference.codec import Codec, load_codec
from dqcore.inference.protocol import decode_to_size
from dqcore.metrics.distortion import psnr
from dqcore.models.weights import TOKENIZER, weights_folder
from dqcore.report.pictures import grain_overlay, side_by_side

#: Photographs of scikit-image, and the box that is shown of each, in pixels.
PHOTOS = {"astronaut.png": (64, 0, 448, 288), "coffee.png": (0, 56, 448, 392), "chelsea.png": (16, 0, 416, 300)}
BITS_PER_PIXEL = 0.1
SIDE = 300  # height of a row in the picture
MARGIN = 26  # below each row, for its numbers


@torch.no_grad()
def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    codec = load_codec(weights_folder(TOKENIZER), "cpu")
    rows = [_row(codec, Path(skimage.__file__).parent / "data" / name, box) for name, box in PHOTOS.items()]
    picture = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height
    picture.save(out, quality=88)


def _row(codec: Codec, path: Path, box: tuple[int, int, int, int]) -> Image.Image:
    """A photograph, its codes, its reconstruction, and the numbers below."""
    image = image_to_tensor(read_image(path).crop(box))
    coded, result = _coded(codec, image)
    overlay = grain_overlay(pad_to_stride(image[None], 16)[0], coded.grain, 2, scale=2)
    overlay = overlay.resize((overlay.width // 2, overlay.height // 2), Image.Resampling.LANCZOS)
    overlay = overlay.crop((0, 0, image.shape[2], image.shape[1]))
    pictures = [_sized(part) for part in (tensor_to_image(image), overlay, tensor_to_image(result))]
    strip = side_by_side(pictures, gap=6)
    row = Image.new("RGB", (strip.width, strip.height + MARGIN), "white")
    row.paste(strip, (0, 0))
    decibels = float(psnr(image[None], result[None]))
    raw = image.shape[1] * image.shape[2] * 3
    words = [
        f"{path.stem}, {image.shape[2]} x {image.shape[1]}: {raw:,} bytes of pixels",
        f"{int((4**coded.grain).sum()):,} codes",
        f"{len(coded.data):,} bytes, {decibels:.1f} dB",
    ]
    draw, font = ImageDraw.Draw(row), ImageFont.load_default(14)
    for index, text in enumerate(words):
        draw.text((index * (pictures[0].width + 6) + 2, strip.height + 5), text, fill=(70, 70, 70), font=font)
    return row


def _coded(codec: Codec, image: Tensor) -> tuple[Coded, Tensor]:
    padded = pad_to_stride(image[None], codec.model.config.strides[0])
    size = (image.shape[1], image.shape[2])
    coded = ByteBudget(BITS_PER_PIXEL, per_pixel=True).encode(codec, padded, size)
    return coded, decode_to_size(codec.model, coded.codes[None], coded.grain[None], *size)[0]


def _sized(picture: Image.Image) -> Image.Image:
    return picture.resize((round(picture.width * SIDE / picture.height), SIDE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
