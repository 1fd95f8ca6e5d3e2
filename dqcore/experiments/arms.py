"""Arms: what an experiment trains and compares, with its options and its seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dqcore.experiments.scales import Scale
from dqcore.models.auto import TOKENIZERS, kind_of_preset
from dqcore.models.tokenizers.config import TokenizerConfig

__all__ = ["Arm", "dual", "fixed", "prior", "triple", "with_needs"]


@dataclass(frozen=True)
class Arm:
    """One training run. Arms of one name and seed are one run, whichever experiments they stand in.

    Attributes:
        name: Says how it differs from the other arms.
        seed: Decides weights, crops and noise.
        kind: What is trained.
        preset: Model preset.
        model: Changes of a tokenizer's config.
        options: Options of the training, beside data, folder, seed and device.
        needs: Arms that are trained before: the tokenizer of a prior; the VQGAN beside whose errors grain maps are put.
    """

    name: str
    seed: int
    kind: Literal["tokenizer", "prior"]
    preset: str
    model: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Arm, ...] = ()

    @property
    def key(self) -> str:
        """Name of its files."""
        return f"{self.name}-seed{self.seed}"

    def as_json(self) -> dict[str, Any]:
        """What tells whether a finished run is this arm, as plain values."""
        return {
            "name": self.name,
            "seed": self.seed,
            "kind": self.kind,
            "preset": self.preset,
            "model": _plain(self.model),
            "options": _plain(self.options),
            "codes of": [arm.key for arm in self.needs] if self.kind == "prior" else [],
        }


def dual(
    scale: Scale, seed: int, router: str, ratio: float = 0.5, weight: float | None = None, adversarial: bool = False
) -> Arm:
    """A DQ-VAE with two granularities.

    Args:
        scale: Its network and its training.
        seed: Its seed.
        router: ``"feature"``, ``"gain"``, ``"entropy"`` or ``"random"``.
        ratio: Target share of fine regions.
        weight: Weight of the budget loss, the paper's lambda; by default 10.
        adversarial: Train against a discriminator.
    """
    name = f"{router}-r{ratio:g}" + ("" if weight is None else f"-lambda{weight:g}")
    model = {**dict(scale.model), "router": router, "target_ratio": (ratio,)}
    if weight is not None:
        model["budget_weight"] = float(weight)
    options = dict(scale.tokenizer)
    if adversarial:
        name, options = f"{name}-adversarial", {**options, **scale.adversarial}
    if ratio == 0.5 and weight is None:
        options["keep_every"] = scale.keep_every
    return Arm(name, seed, "tokenizer", scale.preset, model, options)


def triple(scale: Scale, seed: int, ratio: tuple[float, float]) -> Arm:
    """A DQ-VAE with three granularities and the feature router: one more coarse stride, as wide as the one before."""
    config = _config(scale)
    model = {
        **dict(scale.model),
        "router": "feature",
        "target_ratio": ratio,
        "budget_weight": 1.0,
        "strides": (2 * config.strides[0], *config.strides),
        "encoder_multipliers": (*config.encoder_multipliers, config.encoder_multipliers[-1]),
    }
    return Arm(f"triple-{ratio[0]:g}-{ratio[1]:g}", seed, "tokenizer", scale.preset, model, scale.tokenizer)


def fixed(scale: Scale, seed: int, stride: int) -> Arm:
    """The fixed-length twin of a scale's DQ-VAE: a VQGAN of one stride, with the same widths."""
    config = _config(scale)
    number = (stride // config.stem).bit_length()
    down, up = config.encoder_multipliers, config.decoder_multipliers
    changes = {f.name: getattr(config, f.name) for f in dataclasses.fields(TokenizerConfig)}
    changes |= {
        "strides": (stride,),
        "encoder_multipliers": down[:number],
        "decoder_multipliers": (*up, *[up[-1]] * number)[:number],
    }
    preset = f"vqgan-f{stride}-small"
    standard = kind_of_preset(preset, TOKENIZERS, "tokenizer").PRESETS[preset]
    model = {name: value for name, value in changes.items() if value != getattr(standard, name)}
    return Arm(f"vqgan-f{stride}", seed, "tokenizer", preset, model, scale.tokenizer)


def prior(scale: Scale, design: str, tokenizer: Arm, **options: Any) -> Arm:
    """A prior on the codes of a tokenizer, with the tokenizer's seed.

    Args:
        scale: Its training, and the size of its network.
        design: The first part of the name of its preset, such as ``"raster-dynamic"``.
        tokenizer: Makes the codes.
        **options: More options of its training, such as its layers.
    """
    layers = "" if not options else f"-{options['position_layers']}-{options['content_layers']}"
    name, preset = f"{design}{layers}", f"{design}-{scale.size}"
    return Arm(name, tokenizer.seed, "prior", preset, {}, {**scale.prior, **options}, (tokenizer,))


def with_needs(arms: Sequence[Arm]) -> Iterator[Arm]:
    """Each run once, what is needed before what needs it: all tokenizers, then all priors."""
    found: dict[str, Arm] = {}

    def visit(arm: Arm) -> None:
        for other in arm.needs:
            visit(other)
        found.setdefault(arm.key, arm)

    for arm in arms:
        visit(arm)
    yield from sorted(found.values(), key=lambda arm: arm.kind == "prior")


def _config(scale: Scale) -> Any:
    kind = kind_of_preset(scale.preset, TOKENIZERS, "tokenizer")
    return dataclasses.replace(kind.PRESETS[scale.preset], **dict(scale.model))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
