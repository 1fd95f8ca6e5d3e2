import copy

import pytest
import torch
from torch import nn

from dqcore.distributed import World
from dqcore.models.tokenizers.vqgan import VQGAN
from dqcore.nn.discriminator import PatchDiscriminator, hinge_generator_loss
from dqcore.training.loop import NonFiniteLossError
from dqcore.training.tokenizer.build import compile_networks
from dqcore.training.tokenizer.step import LossWeights, TokenizerStep

WORLD = World(0, 1, torch.device("cpu"))


class _Distance(nn.Module):
    """Stands for LPIPS where only the wiring is tested."""

    def forward(self, images, reconstruction):
        return (images - reconstruction).square().mean((1, 2, 3))


@pytest.fixture
def images():
    return torch.nn.functional.interpolate(torch.rand(4, 3, 8, 8) * 2 - 1, 32, mode="bilinear")


def _step(model, *, discriminator=True, **weights):
    torch.manual_seed(3)
    network = PatchDiscriminator(4) if discriminator else None
    return TokenizerStep(
        model, WORLD, LossWeights(perceptual=0.5, **weights), discriminator=network, perceptual=_Distance()
    )


def _gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_gradient_is_that_of_the_whole_loss(tiny, images):
    model = tiny()
    reference = copy.deepcopy(model)
    trainer = _step(model, adversarial_maximum=1e6)
    adversary = copy.deepcopy(trainer.discriminator)
    torch.manual_seed(5)
    numbers = trainer(images, 0, 0.0)

    torch.manual_seed(5)
    out = reference.train()(images)
    pixel = (images - out.reconstruction).abs().mean() + 0.5 * (images - out.reconstruction).square().mean()
    adversarial = hinge_generator_loss(adversary(out.reconstruction))
    last = reference.decoder.conv_out.weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (pixel, adversarial)]
    weight = norms[0] / (norms[1] + 1e-4)
    loss = pixel + weight * adversarial + out.commitment_loss + out.budget_loss
    loss.backward()

    assert numbers["adversarial_weight"] == pytest.approx(weight.item(), rel=1e-4)
    assert numbers["loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = _gradients(reference)
    assert any("router" in name for name in expected)
    for name, gradient in _gradients(model).items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_adversarial_weight_is_capped(tiny, images):
    assert _step(tiny(), adversarial_maximum=1e-3)(images, 0, 0.0)["adversarial_weight"] == pytest.approx(1e-3)


def test_discriminator_learns_from_detached_images(tiny, images):
    trainer = _step(tiny())
    before = copy.deepcopy(trainer.model.state_dict())
    numbers = trainer(images, 0, 1e-3)
    assert numbers["discriminator_loss"] > 0
    assert all(
        parameter.grad is not None and parameter.requires_grad for parameter in trainer.discriminator.parameters()
    )
    moved = [name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])]
    assert set(_gradients(trainer.model)) <= set(moved)
    assert {group["lr"] for adam in (trainer.optimizer, trainer.adversary) for group in adam.param_groups} == {1e-3}
    for step in range(1, 15):
        later = trainer(images, step, 1e-3)
    assert later["discriminator_loss"] < numbers["discriminator_loss"] and later["logits_real"] > later["logits_fake"]
    with torch.no_grad():
        fake = trainer.model(images).reconstruction
        assert trainer.discriminator(images).mean() > trainer.discriminator(fake).mean() + 0.5


def test_discriminator_waits_for_its_step(tiny, images):
    trainer = _step(tiny(), discriminator_start=1)
    first, second = trainer(images, 0, 0.0), trainer(images, 1, 0.0)
    assert "adversarial_loss" not in first and second["adversarial_weight"] > 0


def test_ratios_are_shares_of_regions(tiny, images):
    trainer = _step(tiny())
    numbers = trainer(images, 0, 0.0)
    assert len(numbers["ratios"]) == 2 and sum(numbers["ratios"]) == pytest.approx(1)
    assert numbers["fine_ratio"] == numbers["ratios"][1] and 0 < numbers["fine_ratio"] < 1


def test_clip(tiny, images):
    trainer = _step(tiny(), discriminator=False, gradient_clip=1e-2)
    norm = trainer(images, 0, 0.0)["gradient_norm"]
    clipped = torch.stack([gradient.norm() for gradient in _gradients(trainer.model).values()]).norm()
    assert norm > 1e-2 and clipped == pytest.approx(1e-2, rel=1e-3)


@pytest.mark.parametrize("term", ["commitment_loss", "budget_loss", "reconstruction"])
def test_stops_before_a_non_finite_loss_reaches_the_weights(tiny, images, term):
    model = tiny()
    forward = model.forward
    model.forward = lambda x: forward(x)._replace(**{term: getattr(forward(x), term) * torch.nan})
    trainer = _step(model)
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    with pytest.raises(NonFiniteLossError) as error:
        trainer(images, 4, 1e-3)
    assert error.value.term == ("reconstruction_loss" if term == "reconstruction" else term) and error.value.step == 5
    assert all(torch.equal(value, dict(model.named_parameters())[name]) for name, value in before.items())


def test_bfloat16_keeps_losses_in_float32(tiny, images):
    full, half = (_step(tiny(), autocast=autocast)(images, 0, 0.0) for autocast in (False, True))
    assert half["reconstruction_loss"] == pytest.approx(full["reconstruction_loss"], rel=0.05)
    assert half["reconstruction_loss"] != full["reconstruction_loss"]
    trainer = _step(tiny(), autocast=True)
    trainer(images, 0, 1e-3)
    assert all(gradient.dtype == torch.float32 for gradient in _gradients(trainer.model).values())


@pytest.mark.slow
def test_compiled_step_equals_the_plain_one(tiny, images):
    plain, compiled = _step(tiny()), _step(tiny())
    compile_networks(compiled.model, backend="aot_eager")
    for step in range(2):
        results = []
        for trainer in (plain, compiled):
            torch.manual_seed(step)
            results.append(trainer(images, step, 1e-4))
        assert results[1].pop("ratios") == pytest.approx(results[0].pop("ratios"))
        assert results[1] == pytest.approx(results[0], rel=1e-3, abs=1e-5)


def test_compiling_keeps_parameters_names_and_random_state(tiny):
    model = tiny()
    before, state = dict(model.named_parameters()), torch.get_rng_state()
    compile_networks(model, backend="eager")
    assert torch.equal(torch.get_rng_state(), state)
    after = dict(model.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)


def test_state_of_another_run_is_refused(tiny):
    state = _step(tiny(), discriminator=False).state_dict()
    with pytest.raises(ValueError, match="checkpoint: its discriminator does not fit"):
        _step(tiny()).load_state_dict(state)
    with pytest.raises(ValueError, match="checkpoint: its model does not fit"):
        _step(tiny(codebook_size=16), discriminator=False).load_state_dict(state)


def test_the_adaptive_weight_of_a_batch_in_parts_is_that_of_its_reconstruction(tiny, images):
    """A gain router decodes once more in each part, with other granularities."""
    model = tiny(router="gain")
    network = PatchDiscriminator(4)
    trainer = TokenizerStep(model, WORLD, LossWeights(adversarial_maximum=1e6), discriminator=network, accumulate=2)
    adversary, seen = copy.deepcopy(network), {}
    handle = model.decoder.conv_out.register_forward_pre_hook(lambda _, args: seen.setdefault(len(seen), args[0]))
    numbers = trainer(images, 0, 0.0)
    handle.remove()
    before = [seen[0].detach(), seen[2].detach()]  # of each part the first time
    layer = model.decoder.conv_out
    reconstruction = torch.cat([layer(x) for x in before])
    losses = ((images - reconstruction).abs().mean(), hinge_generator_loss(adversary(reconstruction)))
    norms = [torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm() for loss in losses]
    assert numbers["adversarial_weight"] == pytest.approx(float(norms[0] / (norms[1] + 1e-4)), rel=1e-3)


def test_a_fixed_length_codebook_starts_from_all_parts_of_a_batch():
    sizes = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "codebook_size": 16, "resolution": 32}
    grey = torch.linspace(-0.8, 0.8, 8)[[0, 7, 1, 6, 2, 5, 3, 4]]  # no part is all above 0, which asks for [-1, 1]
    images = grey[:, None, None, None] + 0.1 * torch.rand(8, 3, 32, 32)
    codes = []
    for parts in (1, 4):
        torch.manual_seed(0)
        model = VQGAN.from_preset("vqgan-f8-tiny", initialisation="kmeans", restart=False, **sizes)
        TokenizerStep(model, WORLD, LossWeights(), accumulate=parts)(images, 0, 0.0)
        codes.append(model.quantizer.codes)
    torch.testing.assert_close(codes[1], codes[0], rtol=1e-4, atol=1e-5)
