"""A fixed-length twin, and the tokenizer itself at the twin's bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dqcore.data.images import pad_to_stride
from dqcore.distributed import ALONE, World
from dqcore.inference.encode_batch import EncodedImages
from dqcore.inference.measure import Measured, evaluate_tokenizer
from dqcore.inference.peers import PeerNumbers, PeerTotals
from dqcore.inference.protocol import decode_to_size
from dqcore.inference.rate import StreamCost
from dqcore.models.tokenizers.base import Encoding

__all__ = ["compare_twin", "within_bytes"]

#: Halvings of the range of detail: the last step is a thousandth of it.
STEPS = 10


def within_bytes(encoded: EncodedImages, cost: StreamCost, limit: int, height: int, width: int) -> tuple[Encoding, int]:
    """The encoding of one image with the most detail that takes at most ``limit`` bytes.

    Args:
        encoded: One image, a batch of 1.
        cost: Counts the bytes.
        limit: Bytes; where even no detail takes more, there is none.
        height: Of the image before padding, in pixels.
        width: As ``height``.

    Returns:
        The encoding and its bytes.
    """

    def at(detail: float) -> tuple[Encoding, int]:
        encoding = encoded.at(detail)
        return encoding, cost.bytes_of(encoding.codes[0].cpu(), encoding.grain[0].cpu(), height, width)

    best, low, high = at(0.0), 0.0, 1.0
    whole = at(1.0)
    if whole[1] <= limit:
        return whole
    for _ in range(STEPS):
        middle = (low + high) / 2
        tried = at(middle)
        if tried[1] <= limit:
            best, low = tried, middle
        else:
            high = middle
    return best


@torch.no_grad()
def compare_twin(
    model: Any, cost: StreamCost, twin: Any, twin_cost: StreamCost, batches: Iterable[Tensor], world: World = ALONE
) -> tuple[PeerNumbers, PeerNumbers]:
    """Measure a twin, and the tokenizer with as many bytes for each photo as the twin takes.

    Args:
        model: The tokenizer.
        cost: Counts its bytes.
        twin: Another tokenizer, usually one of fixed length.
        twin_cost: Counts the twin's bytes.
        batches: Image batches ``(B, 3, H, W)`` in [-1, 1].
        world: The processes that share the images; the numbers are those of all.

    Returns:
        The twin's numbers, and the tokenizer's at the twin's bytes.
    """
    mine = PeerTotals("this tokenizer, at the twin's bytes")

    def match(measured: Measured) -> None:
        for image, limit in zip(measured.images, measured.num_bytes, strict=True):
            height, width = image.shape[1:]
            encoded = EncodedImages(model, pad_to_stride(image[None], model.config.strides[0]))
            encoding, size = within_bytes(encoded, cost, limit, height, width)
            result = decode_to_size(model, encoding.codes, encoding.grain, height, width)
            mine.add(image, result[0], size, size <= limit)

    found = evaluate_tokenizer(twin, batches, cost=twin_cost, each=match, world=world)
    mine.join(world)
    numbers = (found.psnr, found.ssim, found.ms_ssim, found.bytes_per_image, found.bits_per_pixel)
    return PeerNumbers(f"twin ({type(twin).__name__})", *numbers, too_large=0), mine.numbers()
