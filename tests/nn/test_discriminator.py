import pytest
import torch
from torch import nn

from dqcore.nn.discriminator import (
    PatchDiscriminator,
    adversarial_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)


def test_size_of_the_paper():
    with torch.device("meta"):
        network = PatchDiscriminator()
        logits = network(torch.empty(1, 3, 256, 256))
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_765_633
    assert logits.shape == (1, 1, 30, 30)
    assert [i for i, layer in enumerate(network.main) if isinstance(layer, nn.BatchNorm2d)] == [3, 6, 9]


def test_initialisation():
    network = PatchDiscriminator()
    weights = torch.cat([layer.weight.flatten() for layer in network.main if isinstance(layer, nn.Conv2d)])
    assert abs(weights.std() - 0.02) < 1e-3 and abs(weights.mean()) < 1e-3
    scales = torch.cat([layer.weight for layer in network.main if isinstance(layer, nn.BatchNorm2d)])
    assert abs(scales.mean() - 1) < 0.01 and abs(scales.std() - 0.02) < 0.005
    assert all((layer.bias == 0).all() for layer in network.main if isinstance(layer, nn.BatchNorm2d))


@pytest.mark.parametrize("size", [(24, 24), (32, 56), (64, 64)])
def test_any_size_from_24_on(size):
    assert PatchDiscriminator(4)(torch.zeros(2, 3, *size)).shape == (2, 1, size[0] // 8 - 2, size[1] // 8 - 2)
    with pytest.raises(ValueError, match="images: expected at least 24 x 24"):
        PatchDiscriminator(4)(torch.zeros(2, 3, 16, size[1]))


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert hinge_discriminator_loss(real, fake) == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3))
    assert hinge_generator_loss(torch.tensor([1.0, 2.0, 6.0])) == -3


def test_adversarial_weight():
    g = torch.tensor([3.0, 4.0])
    assert adversarial_weight(g, torch.tensor([6.0, 8.0])) == pytest.approx(5 / (10 + 1e-4))
    assert adversarial_weight(g, torch.tensor([0.6, 0.8])) == 0.75
    assert adversarial_weight(g, torch.zeros(2), maximum=1e9) == pytest.approx(5e4)
    assert adversarial_weight(torch.zeros(2), g) == 0
