"""Codes back to photos, from streams or from shards; and previews of streams whose coarse part alone is read."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.data.listing import name_below
from dqcore.data.shards import INDEX, read_index, read_shards
from dqcore.errors import InputError
from dqcore.inference.codec import Codec, check_regions
from dqcore.inference.stream_file import SUFFIX
from dqcore.models.auto import check_identity
from dqcore.stream import Decoded

__all__ = ["Item", "decode_item", "decode_maps", "decode_open", "list_codes", "list_names"]


class Item(NamedTuple):
    """Something to decode.

    Attributes:
        name: Relative path of the stream, or of the image that a shard's codes were made of.
        source: The stream's file, or the maps of a shard.
    """

    name: str
    source: Path | Decoded


def list_codes(source: Path, codec: Codec) -> Iterator[Item]:
    """What a ``.dqc`` file, a folder of them, or a folder of shards holds.

    Raises:
        FileNotFoundError: There is nothing of that name.
        InputError: It is none of these, or the shards belong to another tokenizer.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if source.is_file():
        yield Item(source.name, source)
        return
    if index := _shard_index(source):
        check_identity(f"{source} holds codes of the", index.get("tokenizer", ""), codec.identity)
        for entry, codes, grain in read_shards(source, index):
            yield Item(name_below(entry["name"]), Decoded(codes, grain, tuple(entry["size"])))
        return
    files = _streams_in(source)
    if not files:
        raise InputError(f"{source}: expected {SUFFIX} files, or the shards that dqcore encode writes")
    for path in files:
        yield Item(path.relative_to(source).as_posix(), path)


def list_names(source: Path) -> list[str]:
    """The name of each item that :func:`list_codes` finds, at little cost."""
    if source.is_file():
        return [source.name]
    if index := _shard_index(source):
        return [name_below(entry["name"]) for entry in index["images"]]
    return [path.relative_to(source).as_posix() for path in _streams_in(source)]


def _streams_in(folder: Path) -> list[Path]:
    """What is called like a stream, at any depth; a folder may have such a name too."""
    return sorted(path for path in folder.rglob(f"*{SUFFIX}") if not path.is_dir())


def _shard_index(folder: Path) -> dict[str, Any]:
    """The index of a folder of shards; nothing for a folder of streams."""
    index = read_index(folder) if (folder / INDEX).is_file() else {}
    return {} if index.get("format") == "dqc" else index


def decode_item(codec: Codec, item: Item, *, preview: bool = False) -> Tensor:
    """A photo of its own size, ``(3, H, W)`` in [-1, 1], on the CPU.

    Raises:
        InputError: The stream cannot be read, is damaged, or another model's.
    """
    decoded = item.source
    if isinstance(decoded, Path):
        try:
            if not stat.S_ISREG(decoded.stat().st_mode):  # a pipe would block
                raise InputError(f"{decoded}: cannot be read (it is no regular file)")
            data = decoded.read_bytes()
        except OSError as error:
            raise InputError(f"{decoded}: cannot be read ({error.strerror})") from error
        decoded = codec.read(data, str(decoded), preview=preview)
    elif preview:
        scale = decoded.codes.shape[0] // decoded.grain.shape[0]
        fine = decoded.grain.repeat_interleave(scale, 0).repeat_interleave(scale, 1) > 0
        decoded = decoded._replace(codes=decoded.codes.masked_fill(fine, codec.model.config.codebook_size))
    name = str(item.source) if isinstance(item.source, Path) else item.name
    if preview and bool((decoded.codes == codec.model.config.codebook_size).all()):
        raise InputError(f"preview: {name} has no coarse codes, every region is finer; decode it whole")
    return decode_maps(codec.model, decoded, name)


@torch.no_grad()
def decode_maps(model: Any, decoded: Decoded, name: str = "codes") -> Tensor:
    """A photo of its own size, ``(3, H, W)`` in [-1, 1], on the CPU; holes take after what surrounds them.

    Raises:
        InputError: The grid is not one that this tokenizer gives to a photo of that size.
    """
    height, width = decoded.size
    check_regions(decoded.size, tuple(decoded.grain.shape), model.config.strides[0], name)
    codes = decoded.codes[None].to(model.quantizer.codebook.weight.device)
    return decode_open(model, codes)[0, :, :height, :width].float().clamp(-1, 1).cpu()


@torch.no_grad()
def decode_open(model: Any, codes: Tensor) -> Tensor:
    """Images of code maps with holes, which take after what surrounds them and so leave the rest in its colours.

    Args:
        model: A tokenizer.
        codes: ``(B, H, W)`` int64; the number of codes stands for a hole.

    Returns:
        ``(B, 3, H * stride, W * stride)``, not clamped.
    """
    hole = codes == model.config.codebook_size
    if not bool(hole.any()):
        return model.decode(codes)
    quantized = _fill(model.quantizer.embed(codes).float().masked_fill(hole[:, None], 0), ~hole[:, None])
    return model.decode_quantized(quantized.to(model.post_quant_conv.weight.dtype))


def _fill(values: Tensor, known: Tensor) -> Tensor:
    """Give cells that are not known the mean of those that are, in the smallest square around them that has any.

    Args:
        values: ``(B, D, H, W)``, 0 where not known.
        known: ``(B, 1, H, W)`` bool.
    """
    if bool(known.all()) or min(values.shape[2:]) == 1 == max(values.shape[2:]):
        return values
    pad = (0, values.shape[3] % 2, 0, values.shape[2] % 2)
    weight = F.avg_pool2d(F.pad(known.float(), pad), 2)
    coarser = F.avg_pool2d(F.pad(values, pad), 2) / weight.clamp_min(0.25)
    smooth = F.interpolate(_fill(coarser, weight > 0), scale_factor=2.0, mode="bilinear")
    return values.where(known, smooth[..., : values.shape[2], : values.shape[3]])
