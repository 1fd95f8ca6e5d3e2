"""``dqcore export``: a tokenizer's encoder and decoder as files that run without dqcore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from dqcore.inference.export import Format, check_export, export_tokenizer
from dqcore.models.auto import TOKENIZERS, load_saved
from dqcore.printing import say

__all__ = ["export"]


def export(
    checkpoint: Annotated[Path, Positional],
    *,
    out: Path,
    format: Format = "onnx",
    height: int = 256,
    width: int = 256,
    batch_size: int = 1,
    plain_ops: bool = True,
) -> None:
    """Write a tokenizer's encoder and decoder as ONNX or as programs of torch.export, and compare them with the model.

    The encoder takes images in [-1, 1] and gives the code map and the grain map; the decoder takes a code map. Height,
    width and the number of images are fixed.

    Args:
        checkpoint: Folder of a saved tokenizer or of a training run.
        out: Folder for encoder and decoder, .onnx or .pt2.
        format: onnx, or torch for torch.export.
        height: Of the images, in pixels, a multiple of the tokenizer's coarsest stride.
        width: As height.
        batch_size: Images of a batch.
        plain_ops: Look codes up with PyTorch's own ops. Without, a torch program is faster but needs dqcore.
    """
    check_export(out, format, plain_ops)  # before the model is loaded
    found = export_tokenizer(
        load_saved(checkpoint, TOKENIZERS),
        out,
        height=height,
        width=width,
        batch_size=batch_size,
        format=format,
        plain_ops=plain_ops,
    )
    say(found.encoder)
    say(found.decoder)
    if found.agreement is None or found.difference is None:
        say("not run: pip install onnxruntime to compare them with the model")
    else:
        say(f"beside the model: {found.agreement:.2%} of the codes agree, pixels differ by {found.difference:.1e}")
