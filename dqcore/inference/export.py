"""A tokenizer's encoder and decoder as files that run without dqcore: ONNX, or a program of ``torch.export``.

Shapes are fixed. Every file is run beside the model before it is kept.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dqcore.errors import DqcoreError, InputError, whole_given
from dqcore.files import sole_owner, write_atomically

__all__ = ["Exported", "Format", "check_export", "export_tokenizer"]

Format = Literal["onnx", "torch"]
_ENDINGS: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
#: How far images may lie from the model's own, and which share of codes must agree: near ties may turn out otherwise.
TOLERANCE, AGREEMENT = 1e-3, 0.99


@dataclass(frozen=True)
class Exported:
    """What :func:`export_tokenizer` wrote, and how it compares with the model.

    Attributes:
        encoder: File; images ``(B, 3, H, W)`` in [-1, 1] to the code map and the grain map, int64.
        decoder: File; a code map to images, not clamped.
        agreement: Share of codes that are those of the model; None where there was nothing to run the file with.
        difference: The largest difference of a pixel from the model's; None as above.
    """

    encoder: Path
    decoder: Path
    agreement: float | None
    difference: float | None


class _Encoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        encoding = self.model.encode(images)
        return encoding.codes, encoding.grain


class _Decoder(_Encoder):
    def forward(self, codes: Tensor) -> Tensor:  # type: ignore[override]
        return self.model.decode(codes)


@torch.no_grad()
def export_tokenizer(
    model: Any,
    out: Path,
    *,
    height: int,
    width: int,
    batch_size: int = 1,
    format: Format = "onnx",
    plain_ops: bool = True,
) -> Exported:
    """Write ``encoder`` and ``decoder`` into a folder, ``.onnx`` or ``.pt2``.

    Args:
        model: A tokenizer; put into evaluation mode.
        out: Folder, made if it is missing.
        height: Of the images, in pixels; a multiple of the coarsest stride.
        width: As ``height``.
        batch_size: Images of a batch.
        format: ``"onnx"``, or ``"torch"`` for ``torch.export``.
        plain_ops: Look codes up with PyTorch's own ops; ONNX has no others. Without, a program calls dqcore's ops,
            which are faster, and needs dqcore to be loaded.

    Raises:
        InputError: An argument is out of range, a file is there already, a package is missing, or ONNX has no ops for
            the model's router.
        DqcoreError: What was exported does not compute what the model does.
    """
    whole_given(1, height=height, width=width, batch_size=batch_size)
    stride = model.config.strides[0]
    for name, side in (("height", height), ("width", width)):
        if side % stride:
            raise InputError(f"{name}: expected a multiple of {stride}, got {side}")
    check_export(out, format, plain_ops)
    _check_router(getattr(model, "router", None))
    model.eval()
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, height, width, generator=generator).mul(2).sub(1).to(weight)
    with _plain(model, plain_ops):
        codes, _ = _Encoder(model)(images)  # says what is wrong with the model or the size, if anything is
        wanted = model.decode(codes)
        files = [
            _file(part, argument, out, name, format)
            for part, argument, name in ((_Encoder(model), images, "encoder"), (_Decoder(model), codes, "decoder"))
        ]
    (encoder, run_encoder, data), (decoder, run_decoder, more) = files
    agreement = difference = None
    if run_encoder is not None and run_decoder is not None:
        found = run_encoder(images)
        agreement = float((found[0] == codes.cpu()).double().mean())
        difference = float((run_decoder(codes)[0] - wanted.cpu()).abs().max())
        if agreement < AGREEMENT or difference > TOLERANCE:
            raise DqcoreError(f"not exported: {agreement:.1%} of the codes agree, pixels differ by {difference:.2g}")
    with sole_owner(out):
        for path, content in ((encoder, data), (decoder, more)):
            write_atomically(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
    return Exported(encoder, decoder, agreement, difference)


def check_export(out: Path, format: str, plain_ops: bool) -> None:
    """Raise unless there may be such an export, before anything is loaded."""
    if format not in _ENDINGS:
        raise InputError(f"format: expected onnx or torch, got {format!r}")
    if format == "onnx" and not plain_ops:
        raise InputError("plain_ops: ONNX has no other ops")
    if format == "onnx" and importlib.util.find_spec("onnxscript") is None:
        raise InputError("format: onnx needs pip install 'dqcore[export]'; torch needs nothing more")
    for name in ("encoder", "decoder"):
        if (out / f"{name}{_ENDINGS[format]}").exists():
            raise InputError(f"out: {out} holds {name}{_ENDINGS[format]} already; choose another folder")


def _check_router(router: Any) -> None:
    """Refuse a router without thresholds: it ranks the regions of each image, which a fixed program cannot do."""
    thresholds = getattr(router, "thresholds", None)
    if thresholds is not None and bool(thresholds.isnan().any()):
        raise InputError("model: its router has no thresholds yet; train the model, or fit its router, first")


@contextlib.contextmanager
def _plain(model: Any, plain: bool) -> Iterator[None]:
    """While this is open, the quantizer is ``portable``, if ``plain`` says so."""
    before, model.quantizer.portable = model.quantizer.portable, plain
    try:
        yield
    finally:
        model.quantizer.portable = before


Run = Callable[[Tensor], list[Tensor]]


def _file(part: nn.Module, argument: Tensor, out: Path, name: str, format: Format) -> tuple[Path, Run | None, bytes]:
    """A file's path, what runs it, and its content."""
    program = torch.export.export(part.eval(), (argument,))
    path, buffer = out / f"{name}{_ENDINGS[format]}", io.BytesIO()
    if format == "torch":
        torch.export.save(program, buffer)
        return path, lambda x: _listed(program.module()(x)), buffer.getvalue()
    ours = sorted({str(node.target) for node in program.graph.nodes if str(node.target).startswith("dqcore.")})
    if ours:
        raise InputError(f"format: ONNX has no {', '.join(ours)}, which this model's router needs; use torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            onnx: Any = torch.onnx.export(program, dynamo=True, verbose=False)
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"format: this model cannot be written as ONNX ({reason}); use torch") from error
    onnx.save(buffer)
    return path, _session(buffer.getvalue()), buffer.getvalue()


def _session(data: bytes) -> Run | None:
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(array) for array in session.run(None, {given: x.cpu().numpy()})]


def _listed(found: Any) -> list[Tensor]:
    return [part.cpu() for part in (found if isinstance(found, tuple) else (found,))]
