"""Feature networks: InceptionV3 with random weights in torch-fidelity's own file; EfficientNet-Lite0."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from dqcore.errors import InputError
from dqcore.metrics.networks import LITE0_PACKAGES, efficientnet_lite0, inception

needs_fidelity = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="torch-fidelity is not installed: dqcore[metrics]"
)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """torch-fidelity's network with weights of its own draw, and the file of them."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = module.FeatureExtractorInceptionV3
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        found = network("inception", ["2048", "logits_unbiased"])
    torch.save(found.state_dict(), path)
    return found, path


@needs_fidelity
def test_inception_is_torch_fidelitys(original):
    theirs, path = original
    before = torch.get_rng_state()
    network = inception(path)
    assert torch.equal(before, torch.get_rng_state())
    pixels = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    features, logits = theirs(pixels)
    found = network(pixels / 127.5 - 1)
    assert found.shape == (1, 2048) and torch.equal(found, features)
    assert torch.allclose(network.classify(found), logits, rtol=1e-4, atol=float(logits.abs().max()) * 1e-5)
    assert network.standard and network.description.startswith("InceptionV3 ")


@needs_fidelity
def test_clean_resize_is_clean_fids(original):
    resize = pytest.importorskip("cleanfid.resize")
    theirs, path = original
    network = inception(path, "clean")
    small = torch.randint(0, 256, (1, 3, 40, 30), dtype=torch.uint8)
    array = resize.make_resizer("PIL", False, "bicubic", (299, 299))(small[0].permute(1, 2, 0).numpy())
    rounded = torch.from_numpy(array).permute(2, 0, 1)[None].round().to(torch.uint8)  # their network takes no fractions
    found, wanted = network(small / 127.5 - 1), theirs(rounded)[0]
    assert (found - wanted).norm() < 1e-3 * wanted.norm()
    assert "clean-fid" in network.description


@needs_fidelity
def test_files_that_are_no_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"download https://.*--inception-weights, or use --network"):
        inception(None)
    with pytest.raises(InputError, match="no such file"):
        inception(tmp_path / "gone.pth")
    (tmp_path / "other.pth").write_bytes(b"text")
    with pytest.raises(InputError, match=r"other\.pth: not torch-fidelity's InceptionV3"):
        inception(tmp_path / "other.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: not torch-fidelity's InceptionV3"):
        inception(tmp_path / "other.pth")
    torch.save(_Evil(tmp_path / "ran"), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"other\.pth: not torch-fidelity's InceptionV3"):
        inception(tmp_path / "other.pth")
    assert not (tmp_path / "ran").exists()


class _Evil:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_efficientnet():
    network = efficientnet_lite0()
    if network is None:
        pytest.skip(f"not installed: {' '.join(LITE0_PACKAGES)}")
    images = torch.rand(2, 3, 50, 40) * 2 - 1
    found = network(images)
    assert found.shape == (2, 1280) and found.dtype == torch.float32
    large = F.interpolate(images, (224, 224), mode="bicubic", antialias=True)
    assert F.cosine_similarity(found, network(large)).min() > 0.98
    assert not network.standard and network.classify is None
