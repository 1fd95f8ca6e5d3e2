"""A saved tokenizer measured on photos, beside its peers; the numbers come with the protocol that names them."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from dqcore.data.provenance import provenance, say_provenance
from dqcore.distributed import TIMEOUT, join_world
from dqcore.errors import InputError
from dqcore.inference.compare import Comparison, CurvePoint
from dqcore.inference.load import hash_files, load_tokenizer
from dqcore.inference.measure import Evaluation, evaluate_tokenizer
from dqcore.inference.peers import CODECS, PeerNumbers
from dqcore.inference.photos import PhotoBatches, list_photos
from dqcore.inference.protocol import Protocol
from dqcore.inference.rate import StreamCost
from dqcore.inference.twin import compare_twin
from dqcore.nn.perceptual import PerceptualLoss

__all__ = ["EvaluationOptions", "PhotoEvaluation", "evaluate_photos"]


@dataclass(frozen=True)
class EvaluationOptions:
    """How a tokenizer is measured; also the options of ``dqcore evaluate``.

    Attributes:
        size: Measure the central square of this many pixels; by default whole photos at their native size.
        resize: With size: pixels of the shorter side before the square is cut; by default size.
        limit: Measure a random choice of this many images.
        seed: Decides that choice.
        ratio: Share of fine regions in every image, in [0, 1]; by default the router decides.
        num_codes: Codes of every image; instead of ratio.
        ratios: Also measure at these shares of fine regions, for a curve of rate and distortion.
        peers: Put JPEG and WebP at the same bytes beside it.
        twin: Folder of another tokenizer, usually of fixed length, to put beside it.
        vgg_weights: File of VGG16's weights (torchvision's vgg16-397923af.pth), to measure LPIPS too.
        batch_size: Small images of one size that go through the model together.
        device: auto, cpu, cuda or cuda:N.
        timeout: Under torchrun, seconds to wait for a process that does not answer before the job ends.
    """

    size: Annotated[int | None, arg(aliases=["--image-size"])] = None
    resize: int | None = None
    limit: int | None = None
    seed: int = 0
    ratio: float | None = None
    num_codes: int | None = None
    ratios: tuple[float, ...] = ()
    peers: bool = True
    twin: Path | None = None
    vgg_weights: Annotated[Path | None, arg(aliases=["--perceptual-weights"])] = None
    batch_size: int = 8
    device: str = "auto"
    timeout: float = TIMEOUT


@dataclass(frozen=True)
class PhotoEvaluation:
    """What :func:`evaluate_photos` found.

    Attributes:
        numbers: The tokenizer's.
        protocol: What was measured, by name: images, their hash, sizes, seed, whether they were trained on.
        broken: Why each broken file was passed over.
        peers: Codecs at the tokenizer's bytes; then the twin, and the tokenizer at the twin's bytes.
        curve: The tokenizer and the codecs at each of the ratios.
    """

    numbers: Evaluation
    protocol: dict[str, Any]
    broken: list[str]
    peers: tuple[PeerNumbers, ...]
    curve: tuple[CurvePoint, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values; the tokenizer's own numbers at the top."""
        peers = [dataclasses.asdict(peer) for peer in self.peers]
        curve = [dataclasses.asdict(point) for point in self.curve]
        return self.numbers.as_json() | {"measured": self.protocol, "peers": peers, "curve": curve}


def evaluate_photos(
    images: Sequence[Path],
    checkpoint: Path,
    options: EvaluationOptions = EvaluationOptions(),
    *,
    progress: Callable[[int, int], object] | None = None,
) -> PhotoEvaluation:
    """Measure a tokenizer on photos. Under ``torchrun``, the processes share the photos and all get the same numbers.

    Args:
        images: Image files, folders that are searched recursively, ``.txt`` lists of paths.
        checkpoint: Folder of a saved tokenizer or of a training run.
        options: What to measure, and how.
        progress: Called after each image with the number of images read and the number of all.

    Raises:
        ValueError: An option is out of range, or no image can be read.
        FileNotFoundError: A file or a folder does not exist.
    """
    protocol = Protocol(options.size, options.resize)
    _check_positive(options)
    paths = _choose(list_photos(images), options)
    world = join_world(options.device, options.timeout)
    model = load_tokenizer(checkpoint, str(world.device))
    twin = None if options.twin is None else load_tokenizer(options.twin, str(world.device))
    perceptual = None
    if options.vgg_weights is not None:
        perceptual = PerceptualLoss(options.vgg_weights).to(next(model.parameters()).device)
    cost = StreamCost.of_checkpoint(checkpoint, model.config)
    comparison = Comparison(model, cost, details=options.ratios, codecs=CODECS if options.peers else ())
    batches = PhotoBatches(paths, protocol, batch_size=options.batch_size, progress=progress, world=world)
    numbers = evaluate_tokenizer(
        model,
        batches,
        ratio=options.ratio,
        num_codes=options.num_codes,
        perceptual=perceptual,
        cost=cost,
        protocol=str(protocol),
        each=comparison if options.peers or options.ratios else None,
        world=world,
    )
    comparison.join(world)
    peers = comparison.peers if options.peers else ()
    if twin is not None and options.twin is not None:
        again = PhotoBatches(batches.good, protocol, batch_size=options.batch_size, world=world)
        peers += compare_twin(model, cost, twin, StreamCost.of_checkpoint(options.twin, twin.config), again, world)
    described = world.of_first(_described(options, protocol, batches, checkpoint) if world.is_main else None)
    return PhotoEvaluation(numbers, described, batches.broken, peers, tuple(comparison.curve if options.ratios else ()))


def _described(
    options: EvaluationOptions, protocol: Protocol, batches: PhotoBatches, checkpoint: Path
) -> dict[str, Any]:
    return {
        "protocol": str(protocol),
        "images": len(batches.good),
        "training": say_provenance(provenance(checkpoint, batches.good)),
        "broken images": len(batches.broken),
        "data hash": hash_files(batches.good),
        "ratio": options.ratio,
        "num codes": options.num_codes,
        "seed": options.seed,
    }


def _check_positive(options: EvaluationOptions) -> None:
    for name in ("limit", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")


def _choose(paths: list[Path], options: EvaluationOptions) -> list[Path]:
    """The images to measure, in their order."""
    if options.limit is None or options.limit >= len(paths):
        return paths
    chosen = set(random.Random(options.seed).sample(range(len(paths)), options.limit))
    return [path for index, path in enumerate(paths) if index in chosen]
