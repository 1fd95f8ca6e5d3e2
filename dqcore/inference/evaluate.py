"""A saved tokenizer measured on photos, beside its peers; the numbers come with the protocol that names them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from tyro.conf import arg

from dqcore.data.provenance import provenance, say_provenance
from dqcore.distributed import World, join_world
from dqcore.errors import InputError
from dqcore.inference.compare import Comparison, CurvePoint
from dqcore.inference.encode_batch import why_not
from dqcore.inference.load import hash_files, load_named_tokenizer, load_tokenizer
from dqcore.inference.measure import Evaluation, Measured, evaluate_tokenizer
from dqcore.inference.peers import CODECS, PeerNumbers
from dqcore.inference.photos import PhotoBatches, list_photos
from dqcore.inference.protocol import Protocol, say_versions
from dqcore.inference.rate import StreamCost
from dqcore.inference.sets import FeatureSets, SetOptions, load_network
from dqcore.inference.twin import compare_twin
from dqcore.nn.perceptual import PerceptualLoss

__all__ = ["EvaluationOptions", "PhotoEvaluation", "evaluate_photos"]


@dataclass(frozen=True)
class EvaluationOptions(SetOptions):
    """How a tokenizer is measured; also the options of ``dqcore evaluate``. It has those of :class:`SetOptions` too.

    Attributes:
        ratio: Share of fine regions in every image, in [0, 1]; by default the router decides.
        num_codes: Codes of every image; instead of ratio.
        ratios: Also measure at these shares of fine regions, for a curve of rate and distortion.
        peers: Put JPEG and WebP at the same bytes beside it.
        twin: Folder of another tokenizer, usually of fixed length, to put beside it.
        vgg_weights: File of VGG16's weights (torchvision's vgg16-397923af.pth), to measure LPIPS too.
    """

    ratio: float | None = None
    num_codes: int | None = None
    ratios: tuple[float, ...] = ()
    peers: bool = True
    twin: Path | None = None
    vgg_weights: Annotated[Path | None, arg(aliases=["--perceptual-weights"])] = None


@dataclass(frozen=True)
class PhotoEvaluation:
    """What :func:`evaluate_photos` found.

    Attributes:
        numbers: The tokenizer's.
        protocol: What was measured, by name: images, their hash, sizes, seed, whether they were trained on.
        broken: Why each broken file was passed over.
        peers: Codecs at the tokenizer's bytes; then the twin, and the tokenizer at the twin's bytes.
        curve: The tokenizer and the codecs at each of the ratios.
        sets: Reconstructions and photos as two sets: the options' metrics, by their names for people.
    """

    numbers: Evaluation
    protocol: dict[str, Any]
    broken: list[str]
    peers: tuple[PeerNumbers, ...]
    curve: tuple[CurvePoint, ...]
    sets: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values; the tokenizer's own numbers at the top."""
        peers = [dataclasses.asdict(peer) for peer in self.peers]
        curve = [dataclasses.asdict(point) for point in self.curve]
        more = {"measured": self.protocol, "peers": peers, "curve": curve, "sets": self.sets}
        return self.numbers.as_json() | more


def evaluate_photos(
    images: Sequence[Path],
    checkpoint: Path,
    options: EvaluationOptions = EvaluationOptions(),
    *,
    progress: Callable[[int, int], object] | None = None,
) -> PhotoEvaluation:
    """Measure a tokenizer on photos. Under ``torchrun``, the processes share the photos and all get the same numbers.

    Args:
        images: Image files, folders that are searched recursively, ``.txt`` lists of paths, archives.
        checkpoint: Folder of a saved tokenizer or of a training run.
        options: What to measure, and how.
        progress: Called after each image with the number of images read and the number of all.

    Raises:
        ValueError: An option is out of range, or no image can be read.
        FileNotFoundError: A file or a folder does not exist.
    """
    protocol = Protocol(options.size, options.resize)
    options.check()
    _check_sets(options)
    paths = options.choose(list_photos(images))
    world = join_world(options.device, options.timeout)
    tools = _load(checkpoint, options, str(world.device))
    comparison = Comparison(tools.model, tools.cost, details=options.ratios, codecs=CODECS if options.peers else ())
    possible = functools.partial(why_not, tools.model.config, num_codes=options.num_codes)
    how: dict[str, Any] = {"batch_size": options.batch_size, "world": world}
    batches = PhotoBatches(paths, protocol, why_not=possible, progress=progress, **how)
    numbers = _measure(tools, batches, comparison, options, world)
    peers = comparison.peers if options.peers else ()
    if tools.twin is not None:
        again = PhotoBatches(batches.good, protocol, **how)
        peers += compare_twin(tools.model, tools.cost, *tools.twin, again, world)
    described = _described(options, protocol, batches, checkpoint, tools.identity) if world.is_main else None
    sets = tools.sets
    return PhotoEvaluation(
        numbers,
        protocol=world.of_first(described) | (sets.protocol(options) if sets else {}),
        broken=batches.broken,
        peers=peers,
        curve=tuple(comparison.curve if options.ratios else ()),
        sets=sets.numbers(options) if sets else {},
    )


class _Tools(NamedTuple):
    """What is loaded before the first photo is read.

    Attributes:
        model: The tokenizer.
        identity: Its fingerprint.
        cost: Counts the bytes of its streams.
        twin: The other tokenizer and what counts its bytes, or None.
        perceptual: LPIPS, or None.
        sets: Takes in the features of photos and reconstructions; None without metrics of sets.
    """

    model: Any
    identity: str
    cost: StreamCost
    twin: tuple[Any, StreamCost] | None
    perceptual: PerceptualLoss | None
    sets: FeatureSets | None


def _load(checkpoint: Path, options: EvaluationOptions, device: str) -> _Tools:
    model, identity = load_named_tokenizer(checkpoint, device)
    twin = None
    if options.twin is not None:
        other = load_tokenizer(options.twin, device)
        twin = other, StreamCost.of_checkpoint(options.twin, other.config)
    perceptual = None
    if options.vgg_weights is not None:
        perceptual = PerceptualLoss(options.vgg_weights).to(next(model.parameters()).device)
    sets = FeatureSets(load_network(options)) if options.metrics else None
    return _Tools(model, identity, StreamCost.of_checkpoint(checkpoint, model.config), twin, perceptual, sets)


def _measure(
    tools: _Tools, batches: PhotoBatches, comparison: Comparison, options: EvaluationOptions, world: World
) -> Evaluation:
    """The tokenizer's numbers, of the photos of all processes; peers and sets look at each batch by the way."""
    numbers = evaluate_tokenizer(
        tools.model,
        batches,
        ratio=options.ratio,
        num_codes=options.num_codes,
        perceptual=tools.perceptual,
        cost=tools.cost,
        protocol=str(batches.protocol),
        each=_all_of(comparison if options.peers or options.ratios else None, tools.sets),
        world=world,
    )
    comparison.join(world)
    if tools.sets is not None:
        tools.sets.join(world, batches.order)
    return numbers.in_order(batches.order)


def _check_sets(options: EvaluationOptions) -> None:
    """Refuse options of metrics of sets where none is to be measured."""
    for name in ("network", "inception_weights", "resize_by") if not options.metrics else ():
        if getattr(options, name) != getattr(EvaluationOptions(), name):
            raise InputError(f"{name}: it is for metrics, and none is asked for; expected metrics, such as fid, too")


def _all_of(*hooks: Callable[[Measured], object] | None) -> Callable[[Measured], None]:
    """One call for all that is there."""
    wanted = [hook for hook in hooks if hook is not None]

    def call(measured: Measured) -> None:
        for hook in wanted:
            hook(measured)

    return call


def _described(
    options: EvaluationOptions, protocol: Protocol, batches: PhotoBatches, checkpoint: Path, identity: str
) -> dict[str, Any]:
    """The protocol of a result: all that its numbers stand on."""
    packages = ("torch-fidelity", "clean-fid") if options.metrics else ()
    lpips = {} if options.vgg_weights is None else {"lpips network": f"VGG16 {hash_files([options.vgg_weights])}"}
    return {
        "protocol": str(protocol),
        "images": len(batches.good),
        "training": say_provenance(provenance(checkpoint, batches.good)),
        "broken images": len(batches.broken),
        "data hash": hash_files(batches.good),
        "tokenizer": identity[:16],
        "ratio": options.ratio,
        "num codes": options.num_codes,
        "seed": options.seed,
        **lpips,
        "versions": say_versions("torchmetrics", "pillow", *packages),
    }
