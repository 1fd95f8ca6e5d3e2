"""How alike two sets of images are, by the features of a network: Frechet distance, KID, IS, precision and recall.

KID, IS, precision and recall are torch-fidelity's functions. Their names are those of the papers only with the papers'
network; with any other, :func:`label` puts the network's name beside them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from dqcore.errors import InputError
from dqcore.metrics.frechet import frechet_distance
from dqcore.metrics.networks import FeatureNetwork

__all__ = ["KID_SUBSETS", "KID_SUBSET_SIZE", "SET_METRICS", "SetMetric", "check_metrics", "label", "set_metrics"]

SetMetric = Literal["fid", "kid", "is", "precision", "recall"]
SET_METRICS: tuple[SetMetric, ...] = get_args(SetMetric)
#: Random subsets whose mean is KID, the most images of each, neighbours for precision and recall, and parts whose mean
#: is IS. All are torch-fidelity's own.
KID_SUBSETS, KID_SUBSET_SIZE, NEIGHBOURS, IS_PARTS = 100, 1000, 3, 10

_NAMES: dict[SetMetric, tuple[str, str]] = {
    "fid": ("FID", "Frechet distance"),
    "kid": ("KID", "kernel distance"),
    "is": ("IS", "classifier score"),
    "precision": ("precision", "precision"),
    "recall": ("recall", "recall"),
}


def label(metric: SetMetric, network: FeatureNetwork, reconstructions: bool = False) -> str:
    """A metric's name for people: ``"FID"``, of reconstructions ``"rFID"``, else ``"Frechet distance (<network>)"``."""
    short, plain = _NAMES[metric]
    if not network.standard:
        return f"{plain} ({network.name})"
    return f"r{short}" if reconstructions and short.isupper() else short


def check_metrics(metrics: Sequence[SetMetric], network: FeatureNetwork) -> None:
    """Raise unless these can be measured here with this network."""
    for metric in metrics:
        if metric not in SET_METRICS:
            raise InputError(f"metrics: expected some of {', '.join(SET_METRICS)}, got {metric!r}")
    if set(metrics) - {"fid"} and importlib.util.find_spec("torch_fidelity") is None:
        raise InputError("metrics: all but fid need torch-fidelity: pip install 'dqcore[metrics]'")
    if "is" in metrics and network.classify is None:
        raise InputError(f"metrics: is needs InceptionV3, {network.name} has no such score")


def set_metrics(
    images: Tensor, reference: Tensor, metrics: Sequence[SetMetric], network: FeatureNetwork, *, seed: int = 0
) -> dict[SetMetric, float]:
    """Measure a set of images against another.

    Args:
        images: Features of the images that were made, ``(N, D)``.
        reference: Features of real images, ``(M, D)``.
        metrics: What to measure.
        network: Where the features come from.
        seed: Decides KID's subsets and IS's parts.

    Returns:
        The numbers, in the order of ``metrics``. KID is not multiplied by anything. IS looks at ``images`` alone.

    Raises:
        InputError: There are too few images, or a package is missing.
    """
    check_metrics(metrics, network)
    least = min(len(images), len(reference))
    wanted = NEIGHBOURS + 1 if {"precision", "recall"} & set(metrics) else 2
    if least < wanted:
        raise InputError(f"metrics: expected at least {wanted} images in each set, got {least}")
    found: dict[str, float] = {}
    if "fid" in metrics:
        found["fid"] = frechet_distance(images, reference)
    if "kid" in metrics:
        found["kid"] = _kid(images, reference, seed)
    if "is" in metrics and network.classify is not None:
        found["is"] = _inception_score(network.classify(images), seed)
    if {"precision", "recall"} & set(metrics):
        found |= _precision_and_recall(images, reference)
    return {metric: found[metric] for metric in metrics}


def _kid(images: Tensor, reference: Tensor, seed: int) -> float:
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

    size = min(len(images), len(reference), KID_SUBSET_SIZE)
    subsets = {"kid_subsets": KID_SUBSETS, "kid_subset_size": size, "rng_seed": seed % 2**32}
    found = kid_features_to_metric(images.double(), reference.double(), **subsets, verbose=False)
    return float(found[KEY_METRIC_KID_MEAN])


def _inception_score(logits: Tensor, seed: int) -> float:
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

    found = isc_features_to_metric(logits, min(IS_PARTS, len(logits)), shuffle=True, rng_seed=seed % 2**32)
    return float(found[KEY_METRIC_ISC_MEAN])


def _precision_and_recall(images: Tensor, reference: Tensor) -> dict[str, float]:
    from torch_fidelity.metric_prc import prc_features_to_metric

    options = {"prc_neighborhood": NEIGHBOURS, "save_cpu_ram": True, "verbose": False}
    found = prc_features_to_metric(images.double(), reference.double(), **options)
    return {name: float(found[name]) for name in ("precision", "recall")}
