"""LPIPS with a VGG16 backbone from a file: nothing is downloaded, nothing is printed."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dqcore.errors import InputError
from dqcore.ops.autocast import without_autocast

#: Smallest height and width at which VGG16's fifth scale still has a pixel.
MIN_SIZE = 16
#: What torchvision calls its VGG16 weights in torch's hub cache.
VGG16_FILE = "vgg16-397923af.pth"
VGG16_URL = f"https://download.pytorch.org/models/{VGG16_FILE}"


class PerceptualUnavailableError(InputError):
    """The perceptual loss was asked for and cannot be built; the message says what is missing."""


def missing_for_perceptual(weights: str | Path | None = None) -> str:
    """What :class:`PerceptualLoss` lacks here, in a message that says how to get it; empty if nothing.

    Args:
        weights: See :class:`PerceptualLoss`.
    """
    try:
        _check_installed()
        _find_weights(weights)
    except PerceptualUnavailableError as error:
        return str(error)
    return ""


class PerceptualLoss(nn.Module):
    """Learned perceptual distance of each image (LPIPS v0.1, VGG16): the paper's perceptual loss.

    The network is frozen and stays in evaluation mode, so that the dropout of its heads is off (in VQGAN's code it is
    on).

    Args:
        weights: VGG16's ImageNet weights as torchvision stores them (``.pth`` or ``.safetensors``; the classifier may
            be missing). None looks in torch's hub cache.

    Raises:
        PerceptualUnavailableError: ``lpips`` is not installed, or there is no such file, or it holds something else.
    """

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        _check_installed()
        path = _find_weights(weights)
        self.network = _build(_read_backbone(path), path)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Does nothing: the network stays in evaluation mode."""
        return super().train(False)

    @without_autocast
    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each reconstruction to its image, in float32 also under autocast.

        Args:
            images: ``(B, 3, H, W)`` in [-1, 1]; at least 16 x 16 pixels.
            reconstruction: The same shape.

        Returns:
            ``(B,)`` float32, at least 0.

        Raises:
            InputError: The images are smaller.

        Gradient: to both inputs.
        """
        if min(images.shape[-2:]) < MIN_SIZE:
            raise InputError(f"images: LPIPS needs {MIN_SIZE} x {MIN_SIZE} pixels, got {tuple(images.shape[-2:])}")
        return self.network(images.float(), reconstruction.float()).flatten()


def _check_installed() -> None:
    if importlib.util.find_spec("lpips") is None:
        raise PerceptualUnavailableError(
            "perceptual: LPIPS needs the lpips package: pip install 'dqcore[perceptual]', or use --perceptual none"
        )


def _find_weights(weights: str | Path | None) -> Path:
    path = Path(weights) if weights is not None else Path(torch.hub.get_dir(), "checkpoints", VGG16_FILE)
    if path.is_file():
        return path
    if weights is not None:
        raise PerceptualUnavailableError(f"vgg_weights: no such file: {path}")
    raise PerceptualUnavailableError(
        f"perceptual: LPIPS needs VGG16's weights; give the file {VGG16_FILE} with --vgg-weights, "
        f"or put it at {path} (from {VGG16_URL}), or use --perceptual none"
    )


def _read_backbone(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        return {key.removeprefix("features."): value for key, value in state.items() if "classifier" not in key}
    except Exception as error:
        raise PerceptualUnavailableError(
            f"vgg_weights: {path}: not a file of weights ({type(error).__name__})"
        ) from error


def _build(backbone: dict[str, Tensor], path: Path) -> nn.Module:
    import lpips

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision by a deprecated name
        network = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
    heads_path = Path(lpips.__file__).with_name("weights") / "v0.1" / "vgg.pth"
    state = torch.load(heads_path, map_location="cpu", weights_only=True)
    for name, parameter in network.net.named_parameters():
        key = name.split(".", 1)[1]
        if key not in backbone or backbone[key].shape != parameter.shape:
            raise PerceptualUnavailableError(f"vgg_weights: {path}: not VGG16's: {key} is missing or misshapen")
        state[f"net.{name}"] = backbone[key].float()
    network.load_state_dict(state, strict=False, assign=True)
    missing = [name for name, parameter in network.named_parameters() if parameter.is_meta]
    if missing:
        raise PerceptualUnavailableError(f"perceptual: this version of lpips is not known: no weights for {missing[0]}")
    return network
