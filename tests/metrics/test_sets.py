"""Metrics of sets against direct formulas in float64, and torch-fidelity's FID."""

import math

import numpy as np
import pytest
import torch

from dqcore.errors import InputError
from dqcore.metrics.networks import FeatureNetwork
from dqcore.metrics.sets import NEIGHBOURS, SET_METRICS, check_metrics, label, set_metrics

fidelity = pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed: dqcore[metrics]")

STANDARD = FeatureNetwork("InceptionV3", "", lambda x: x, classify=lambda x: x[:, :4], standard=True)
OTHER = FeatureNetwork("Tiny", "", lambda x: x)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(24, 6, generator=generator)
    return x, torch.randn(30, 6, generator=generator) * 0.8 + 0.4


def test_fid_is_torch_fidelitys(pair):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(each.double()) for each in pair]
    wanted = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert set_metrics(*pair, ["fid"], STANDARD)["fid"] == pytest.approx(wanted, rel=1e-9)


def test_kid_by_its_formula(pair):
    x, y = (each.double() for each in pair)

    def mmd(a, b):
        kernel = [((p @ q.T) / 6 + 1) ** 3 for p, q in ((a, a), (b, b), (a, b))]
        n = len(a)
        within = [(k.sum() - k.trace()) / (n * (n - 1)) for k in kernel[:2]]
        return float(sum(within) - 2 * kernel[2].mean())

    rng = np.random.RandomState(3)
    draws = [(rng.choice(24, 24, replace=False), rng.choice(30, 24, replace=False)) for _ in range(100)]
    wanted = sum(mmd(x[i], y[j]) for i, j in draws) / 100
    for seed in (3, 3 + 2**32):  # NumPy's generator takes 32 bits
        assert set_metrics(*pair, ["kid"], OTHER, seed=seed)["kid"] == pytest.approx(wanted, rel=1e-9)


def test_inception_score_by_its_formula(pair):
    x = pair[0].double()
    order = np.random.RandomState(5).permutation(24)
    scores = []
    for part in range(10):
        p = x[order][part * 24 // 10 : (part + 1) * 24 // 10, :4].softmax(1)
        scores.append(math.exp(float((p * (p.log() - p.mean(0).log())).sum(1).mean())))
    for seed in (5, 5 - 2**32):
        found = set_metrics(x, pair[1], ["is"], STANDARD, seed=seed)["is"]
        assert found == pytest.approx(sum(scores) / 10, rel=1e-9)


def test_precision_and_recall_by_their_definition(pair):
    made, real = (each.double() for each in pair)

    def inside(points, others):
        radius = [sorted(float((o - p).norm()) for p in others)[NEIGHBOURS] for o in others]
        hit = [any(float((x - o).norm()) <= r for o, r in zip(others, radius, strict=True)) for x in points]
        return sum(hit) / len(hit)

    found = set_metrics(*pair, ["recall", "precision"], OTHER)
    assert list(found) == ["recall", "precision"]
    assert found["precision"] == pytest.approx(inside(made, real), abs=1e-6)
    assert found["recall"] == pytest.approx(inside(real, made), abs=1e-6)


def test_names_say_whose_network_it_was():
    assert [label(metric, STANDARD) for metric in SET_METRICS] == ["FID", "KID", "IS", "precision", "recall"]
    assert [label(metric, STANDARD, True) for metric in SET_METRICS][:2] == ["rFID", "rKID"]
    assert label("fid", OTHER) == label("fid", OTHER, True) == "Frechet distance (Tiny)"
    assert "FID" not in " ".join(label(metric, OTHER) for metric in SET_METRICS)


def test_what_cannot_be_measured(pair):
    with pytest.raises(InputError, match="metrics: is needs InceptionV3, Tiny has no such score"):
        check_metrics(["is"], OTHER)
    with pytest.raises(InputError, match="metrics: expected some of fid, kid, is, precision, recall, got 'lpips'"):
        check_metrics(["lpips"], STANDARD)
    with pytest.raises(InputError, match="at least 4 images in each set, got 3"):
        set_metrics(pair[0][:3], pair[1], ["precision"], OTHER)
    with pytest.raises(InputError, match="at least 2 images in each set, got 1"):
        set_metrics(pair[0], pair[1][:1], ["fid"], OTHER)
    with pytest.raises(InputError, match="metrics: expected some of"):
        set_metrics(*pair, ["lpips"], OTHER)
    assert set_metrics(pair[0][:3], pair[1], ["fid"], OTHER)["fid"] > 0
