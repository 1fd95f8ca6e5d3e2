"""The benchmark of defaults, a few steps of it, and what it makes of its rows."""

import json
import sys
from pathlib import Path

import autoencoders
import bench_defaults as bench
import pytest
import torch


def row(layer, seed, task="photos-32", **changes):
    values = {"l1": 0.1, "squared_error": 0.02, "codes_used": 300, "perplexity": 200.0}
    return {"task": task, "layer": layer, "seed": seed, **values, **changes}


@pytest.mark.parametrize("layer", bench.LAYERS)
@pytest.mark.parametrize("task", bench.TASKS)
def test_three_steps(task, layer):
    if not bench.installed(layer):
        pytest.skip(f"{layer} is not installed")
    try:
        (found,) = bench.rows_of(task, [layer], seeds=(0,), steps=3)
    except autoencoders.Missing as error:
        pytest.skip(str(error))
    assert 0 < found["l1"] < 2 and 0 < found["squared_error"] < 4
    assert 1 <= found["perplexity"] <= found["codes_used"] + 1e-6 <= bench.TASKS[task].codes + 1e-6


def test_everyone_starts_from_the_same_weights_and_sees_the_same_batches():
    seen = []

    class Watch(torch.nn.Module):
        def __init__(self, numbers):
            super().__init__()
            torch.rand(numbers)  # a layer may draw as many random numbers as it likes

        def forward(self, features):
            seen.append(features.detach())
            return features, torch.zeros_like(features[:, 0]).long(), features.new_zeros(())

    for numbers in (1, 1000):
        autoencoders.train(bench.TASKS["photos-32"], lambda dim, size, n=numbers: Watch(n), steps=2, seed=0)
    half = len(seen) // 2
    assert all(torch.equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


def test_a_missing_data_set_gives_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv(autoencoders.FASHION, str(tmp_path))
    autoencoders.fashion.cache_clear()
    with pytest.raises(autoencoders.Missing, match="dataset-fashion-mnist"):
        autoencoders.fashion()
    autoencoders.fashion.cache_clear()


def test_photographs_of_a_named_folder(monkeypatch):
    monkeypatch.setenv(autoencoders.PHOTOS, str(Path(autoencoders.sample_photos("train")[0]).parent))
    train, held_out = autoencoders.photos()
    assert len(held_out) == round(0.1 * (len(train) + len(held_out)))


def test_behind_names_each_measure_in_which_a_peer_is_better():
    rows = [row("dqcore", 0), row("dqcore", 1, l1=0.2), row("taming", 0), row("taming", 1, l1=0.1, codes_used=400)]
    table = bench.means(rows)
    assert table["photos-32"]["dqcore"]["l1"] == pytest.approx(0.15)
    found = bench.behind(table)
    assert len([text for text in found if text.startswith("photos-32")]) == 2
    assert bench.behind(bench.means([row("dqcore", 0), row("taming", 0, l1=0.3)])) == []


def test_a_record_keeps_the_rows_that_were_not_measured_again(tmp_path):
    path = tmp_path / "defaults.json"
    bench.record([row("dqcore", 0), row("taming", 0)], {}, path)
    bench.record([row("dqcore", 0, l1=0.05)], {}, path)
    rows = json.loads(path.read_text())["rows"]
    assert [(r["layer"], r["l1"]) for r in rows] == [("dqcore", 0.05), ("taming", 0.1)]


def test_the_committed_record_is_nowhere_behind():
    record = json.loads(bench.RESULTS.read_text())
    assert record["behind"] == bench.behind(bench.means(record["rows"])) == []
    seeds = {(r["task"], r["layer"]): set() for r in record["rows"]}
    for r in record["rows"]:
        seeds[r["task"], r["layer"]].add(r["seed"])
    assert seeds == {(task, layer): set(bench.SEEDS) for task in bench.TASKS for layer in bench.LAYERS}


def test_data_that_is_missing_is_named(tmp_path, monkeypatch, capsys):
    """Once the script ended in set.intersection() where there was nothing else to measure."""
    monkeypatch.setenv("DQCORE_FASHION_MNIST", str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "argv", ["x", "--tasks", "fashion-mnist", "--out", str(tmp_path / "out.json")])
    autoencoders.fashion.cache_clear()
    threads = torch.get_num_threads()
    bench.main()
    torch.set_num_threads(threads)
    assert "fashion-mnist is left out: " in capsys.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == []
