from dataclasses import fields, replace
from pathlib import Path

import pytest
import tyro

from dqcore.training import TokenizerTraining
from dqcore.training.tokenizer.build import new_model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate: expected more than 0"),
        ({"learning_rate": float("inf")}, "learning_rate: expected more than 0, got inf"),
        ({"base_learning_rate": float("nan")}, "base_learning_rate: expected more than 0, got nan"),
        ({"resize": -1}, "resize: expected at least 1, got -1"),
        ({"workers": -1}, "workers: expected at least 0"),
        ({"validation_share": 1.0}, r"validation_share: expected a share in \[0, 1\)"),
        ({"average_decay": 1.0}, "average_decay: expected"),
        ({"image_size": 256, "resize": 100}, r"resize: expected at least image_size \(256\), got 100"),
        ({"steps": 5, "epochs": 1}, "give either steps or epochs"),
        ({"recipe": "celeba"}, "recipe: expected one of small, small-adversarial, photos, ffhq, imagenet, released"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenizerTraining(data=Path("x"), **changes)


def test_command_line(capsys):
    arguments = ["--data", "photos", "--steps", "5", "--target-ratio", "0.3", "0.2", "--perceptual", "none", "--resume"]
    options = tyro.cli(TokenizerTraining, args=arguments)
    assert options.data == Path("photos") and options.steps == 5 and options.target_ratio == (0.3, 0.2)
    assert options.resume and options.perceptual == "none"
    with pytest.raises(SystemExit):
        tyro.cli(TokenizerTraining, args=["--help"])
    text = capsys.readouterr().out
    assert all("--" + field.name.replace("_", "-") in text for field in fields(TokenizerTraining))
    assert "torchvision's" in text


def test_old_names_still_work():
    assert not TokenizerTraining(data=Path("x")).in_memory
    with pytest.warns(DeprecationWarning, match="TokenizerTraining: packed is called in_memory now"):
        options = TokenizerTraining(data=Path("x"), packed=True)
    assert options.in_memory
    with pytest.warns(DeprecationWarning, match="perceptual_weights is called vgg_weights now"):
        options = replace(options, perceptual_weights=Path("vgg.pth"))
    assert options.vgg_weights == Path("vgg.pth") and options.in_memory
    old = ["--data", "x", "--packed", "--perceptual-weights", "vgg.pth", "--perceptual-weight", "0.5"]
    new = ["--data", "x", "--in-memory", "--vgg-weights", "vgg.pth", "--perceptual-weight", "0.5"]
    assert tyro.cli(TokenizerTraining, args=old) == tyro.cli(TokenizerTraining, args=new)
    assert not tyro.cli(TokenizerTraining, args=["--data", "x", "--no-packed"]).in_memory
    with pytest.raises(TypeError, match="unexpected keyword argument 'pakced'"):
        TokenizerTraining(data=Path("x"), pakced=True)


def test_plain_values():
    values = TokenizerTraining(data=Path("a") / "b", target_ratio=(0.5, 0.25)).as_json()
    assert values["data"] == str(Path("a") / "b") and values["target_ratio"] == [0.5, 0.25]
    assert list(values) == [field.name for field in fields(TokenizerTraining)]


def test_options_that_a_model_does_not_have():
    options = TokenizerTraining(data=Path("x"), preset="vqgan-f16", target_ratio=(0.5,))
    with pytest.raises(ValueError, match="target_ratio: preset vqgan-f16 has no such thing"):
        options.model_overrides({"resolution", "codebook_size"})
    options = TokenizerTraining(data=Path("x"), preset="vqgan-f16", budget_weight=3.0)
    with pytest.raises(ValueError, match="budget_weight: preset vqgan-f16 has no such thing"):
        options.model_overrides({"resolution", "codebook_size"})
    options = TokenizerTraining(data=Path("x"), preset="dqvae-dual-entropy-tiny", budget_weight=3.0)
    with pytest.raises(ValueError, match=r"budget_weight: preset .* has a router without a budget loss \(entropy\)"):
        new_model(options)
