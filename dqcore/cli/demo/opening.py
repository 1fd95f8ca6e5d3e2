"""How the demo opens: what the weights of the package make of the held-out photographs, before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from dqcore.data.images import image_to_tensor, read_image
from dqcore.data.listing import spread
from dqcore.data.photos import sample_photos
from dqcore.inference.load import load_tokenizer
from dqcore.inference.rate import StreamCost
from dqcore.inference.reconstruct import reconstruct
from dqcore.models.weights import TOKENIZER, weights_folder
from dqcore.report.page import Gallery

__all__ = ["opening"]

_SHOWN = 4


@torch.no_grad()
def opening() -> tuple[str, Gallery]:
    """A line for the terminal, and a section of the report: photographs and what came back, with dB and bytes."""
    folder = weights_folder(TOKENIZER)
    model = load_tokenizer(folder, "cpu")
    cost = StreamCost.of_checkpoint(folder, model.config)
    results = [reconstruct(model, image_to_tensor(read_image(path)), cost=cost) for path in sample_photos("heldout")]
    psnr = sum(result.psnr for result in results) / len(results)
    size = sum(result.num_bytes for result in results) / len(results)
    pictures: list[tuple[Tensor, str]] = []
    for result in spread(results, _SHOWN):
        pictures += [
            (result.image, "photograph"),
            (result.reconstruction, f"{result.psnr:.1f} dB, {result.num_bytes} bytes"),
        ]
    numbers = f"{psnr:.2f} dB, {size:.0f} bytes each, on the {len(results)} held-out photographs"
    remark = f"{TOKENIZER}, used as it is: {numbers}. What follows was trained just now, for comparison."
    return f"the weights that come with dqcore: {numbers}", Gallery("The weights in the package", remark, pictures)
