"""``dqcore reconstruct``: encode and decode images, and write what came back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional

from dqcore.cli.broken import end_with_broken, name_broken
from dqcore.cli.stopping import stoppable
from dqcore.data.archives import split_member
from dqcore.data.images import BrokenImageError, image_to_tensor, read_image, tensor_to_image
from dqcore.data.listing import files_for, image_name, name_below
from dqcore.data.reading import allow_pixels
from dqcore.errors import InputError
from dqcore.files import sole_owner
from dqcore.files.pictures import check_targets, write_picture
from dqcore.inference.encode_batch import why_not
from dqcore.inference.load import load_tokenizer
from dqcore.inference.photos import list_photos
from dqcore.inference.protocol import NATIVE
from dqcore.inference.rate import StreamCost
from dqcore.inference.reconstruct import Reconstruction
from dqcore.inference.reconstruct import reconstruct as reconstruct_image
from dqcore.models.weights import TOKENIZER, weights_folder
from dqcore.printing import say
from dqcore.progress import counted
from dqcore.report.pictures import grain_overlay, side_by_side

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["reconstruct"]


def reconstruct(
    images: Annotated[tuple[Path, ...], Positional],
    *,
    checkpoint: Path | None = None,
    out: Path = Path("reconstructions"),
    strip: bool = False,
    ratio: float | None = None,
    num_codes: int | None = None,
    max_pixels: int | None = None,
    device: str = "auto",
) -> None:
    """Encode and decode images of any size, and write what came back as PNG files.

    PSNR is measured at native size on the 8-bit picture that is written; bytes are those of its .dqc stream. Files that
    cannot be read are named and passed over, and the exit code is then 2.

    Args:
        images: Image files, folders that are searched recursively, .txt lists of paths, archives (.tar, .zip, LMDB).
        checkpoint: Folder of a saved tokenizer or of a training run; by default the weights that come with dqcore.
        out: Folder for the pictures; those of a folder keep their place in it. Of a.jpg and a.png
            the second is written to a.png.png.
        strip: Write input, grain map and reconstruction side by side instead.
        ratio: Share of fine regions in every image, in [0, 1]; by default the router decides.
        num_codes: Codes of every image; instead of ratio.
        max_pixels: Most pixels of an image; by default as many as fill a fortieth of the memory, at most 178 million.
        device: auto, cpu, cuda or cuda:N.
    """
    checkpoint = checkpoint or weights_folder(TOKENIZER)
    targets = _targets(images, out)
    for path, target in targets.items():
        if target.resolve() == path.resolve():
            raise InputError(f"out: {target} would overwrite the image itself")
    check_targets(targets.values())
    model = load_tokenizer(checkpoint, device)
    cost = StreamCost.of_checkpoint(checkpoint, model.config)
    done: list[float] = []
    broken: list[str] = []
    with sole_owner(out, "writing pictures"), stoppable("reconstruct", "picture", "the same line does all") as check:
        for number, (path, target) in enumerate(targets.items()):
            check(number, len(targets))
            try:
                with allow_pixels(max_pixels):
                    pixels = image_to_tensor(read_image(path))
                if reason := why_not(model.config, *pixels.shape[1:], num_codes=num_codes):
                    raise BrokenImageError(f"{path}: {reason}")
            except BrokenImageError as error:
                broken.append(str(error))
                name_broken(broken[-1:])
                continue
            result = reconstruct_image(model, pixels, ratio=ratio, num_codes=num_codes, cost=cost)
            write_picture(target, _strip(result, model.config) if strip else tensor_to_image(result.reconstruction))
            say(f"{path}: {_numbers(result)}: {target}")
            done.append(result.psnr)
    if len(done) > 1:
        say(f"{counted(len(done), 'image')}, {sum(done) / len(done):.2f} dB ({NATIVE})")
    end_with_broken("images", broken, len(targets))


def _numbers(result: Reconstruction) -> str:
    rate = f"{result.num_bytes} bytes ({result.bits_per_pixel:.4f} bits/pixel as written"
    rate += f", {result.fixed_bits_per_pixel:.4f} uncoded)"
    return f"{result.psnr:.2f} dB, {counted(result.num_codes, 'code')}, {rate}"


def _strip(result: Reconstruction, config: Any) -> Image:
    """Input, grain map overlay and reconstruction, side by side."""
    overlay = grain_overlay(result.padded, result.grain, config.num_granularities)
    overlay = overlay.crop((0, 0, result.image.shape[2], result.image.shape[1]))
    return side_by_side([tensor_to_image(result.image), overlay, tensor_to_image(result.reconstruction)])


def _targets(sources: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Each image's file, and the PNG file that it goes to: below a folder that was named, at the same place.

    Raises:
        InputError: There is no image, or two have one name.
    """
    named: dict[str, Path] = {}
    made = 0
    for path in list_photos(sources):
        if _below(path, out) and any(source.is_dir() and not _below(source, out) for source in sources):
            made += 1
            continue
        member = split_member(path)
        home = path.parent if member is None else member[0].parent
        base = next((source for source in sources if source.is_dir() and _below(path, source)), home)
        name = name_below(image_name(path, base))
        if name in named:
            raise InputError(f"images: {named[name]} and {path} would both be called {name}")
        named[name] = path
    if made:
        say(f"left out: {counted(made, 'image')} in {out}, where results go", error=True)
    if not named:
        raise InputError(f"images: there is none outside of {out}, where results go")
    return {named[name]: out / file for name, file in _free_files(named).items()}


def _free_files(names: Iterable[str]) -> dict[str, str]:
    """A PNG file for each image, called as ``encode`` and ``decode`` do: ``a.png``, and beside it ``a.jpg.png``."""
    taken = {str(folder) for name in names for folder in PurePosixPath(name).parents}
    files: dict[str, str] = {}
    for name in names:
        files[name] = next(file for file in files_for(name, ".png") if file not in taken)
        taken.add(files[name])
    return files


def _below(path: Path, folder: Path) -> bool:
    return path.absolute().is_relative_to(folder.absolute())
