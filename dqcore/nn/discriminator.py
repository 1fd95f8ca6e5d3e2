"""The patch discriminator of VQGAN and DQ-VAE, its hinge losses, and the weight that balances it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dqcore.errors import InputError
from dqcore.nn.batch_norm import JoinedBatchNorm2d

#: Smallest height and width that leave one logit.
MIN_SIZE = 24


class PatchDiscriminator(nn.Module):
    """PatchGAN: for each 70 x 70 patch a logit that says whether it is from a photograph or from the decoder.

    It has three strided and two plain 4 x 4 convolutions, and 2,765,633 parameters at the paper's width. Its batch
    statistics are those of all processes together.

    Args:
        dim: Channels after the first convolution; they double up to 8 times as many.
    """

    def __init__(self, dim: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, dim, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for width, stride in ((2, 2), (4, 2), (8, 1)):
            convolution = nn.Conv2d(dim * width // 2, dim * width, 4, stride=stride, padding=1, bias=False)
            layers += [convolution, JoinedBatchNorm2d(dim * width), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*layers, nn.Conv2d(dim * 8, 1, 4, padding=1))
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of patches.

        Args:
            images: ``(B, 3, H, W)`` in [-1, 1]; at least 24 x 24 pixels.

        Returns:
            ``(B, 1, H // 8 - 2, W // 8 - 2)``; a high logit says that the patch looks real.

        Raises:
            ValueError: the images are smaller.
        """
        if min(images.shape[-2:]) < MIN_SIZE:
            raise InputError(
                f"images: expected at least {MIN_SIZE} x {MIN_SIZE} pixels, got {tuple(images.shape[-2:])}"
            )
        return self.main(images)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """``(mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2`` over logits of any shape; float32 scalar."""
    return 0.5 * (F.relu(1.0 - real.float()).mean() + F.relu(1.0 + fake.float()).mean())


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """``-mean fake`` over logits of any shape; float32 scalar."""
    return -fake.float().mean()


def adversarial_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor, maximum: float = 0.75) -> Tensor:
    """``min(||g_rec|| / (||g_adv|| + 1e-4), maximum)``, the adaptive weight of the adversarial loss.

    Args:
        reconstruction_gradient: Gradient of the reconstruction loss by the decoder's last weight, any shape.
        adversarial_gradient: Gradient of the generator's hinge loss by the same weight.
        maximum: The paper's "weight for adversarial loss" (supplement, section 1).

    Returns:
        float32 scalar in [0, ``maximum``].

    Gradient: none.
    """
    ratio = reconstruction_gradient.detach().float().norm() / (adversarial_gradient.detach().float().norm() + 1e-4)
    return ratio.clamp(0.0, maximum)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
