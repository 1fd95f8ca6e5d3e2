"""Constructor arguments: what the defaults that depend on others become, and what is refused."""

from __future__ import annotations

from typing import Any

from dqcore.errors import InputError, number_given, whole_given

__all__ = ["resolve"]

#: Arguments that are not computed here, and their defaults, which are accepted.
REFUSED = {
    "affine_param": False,
    "sync_affine_param": False,
    "affine_param_batch_decay": 0.99,
    "affine_param_codebook_decay": 0.9,
}
#: Numbers that every layer uses.
WEIGHTS = (
    "commitment_weight",
    "orthogonal_reg_weight",
    "codebook_diversity_loss_weight",
    "threshold_ema_dead_code",
    "sync_update_v",
)
_APART = "cannot be used with separate_codebook_per_head, whose codebooks have active codes each"


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with every None that stands for "decide by the others" replaced.

    Raises:
        InputError: an argument that is not supported, or two that contradict each other.
    """
    for name, default in REFUSED.items():
        if given[name] != default:
            raise InputError(f"{name}: {given[name]!r} is not supported, leave it at {default!r}")
    options = dict(given)
    if options["codebook_dim"] is None:
        options["codebook_dim"] = options["dim"]
    _check_sizes(options)
    learned = options["directional_reparam"] or options["vq_bridge"] is not None
    if options["ema_update"] is None:
        options["ema_update"] = not learned
    if options["learnable_codebook"] is None:
        options["learnable_codebook"] = learned
    if options["rotation_trick"] is None:
        options["rotation_trick"] = not options["directional_reparam"] and options["dim"] > 1
    _check_numbers(options)
    _check_pairs(options)
    return options


def _check_sizes(options: dict[str, Any]) -> None:
    for name in ("dim", "codebook_size", "codebook_dim", "heads"):
        whole_given(1, **{name: options[name]})
    if options["kmeans_init"]:
        whole_given(1, kmeans_iters=options["kmeans_iters"])


def _check_numbers(options: dict[str, Any]) -> None:
    """Raise for what is no number; the other package takes anything for a number that it does not use."""
    number_given(**{name: options[name] for name in WEIGHTS})
    learns = options["ema_update"] or options["threshold_ema_dead_code"] > 0
    for name, used in (
        ("decay", learns),
        ("eps", learns),
        ("codebook_diversity_temperature", options["codebook_diversity_loss_weight"] > 0),
        ("sample_codebook_temp", options["stochastic_sample_codes"] or options["straight_through"]),
        ("directional_reparam_variance", options["directional_reparam"]),
    ):
        if used:
            number_given(**{name: options[name]})
    if options["directional_reparam"] and options["directional_reparam_variance"] < 0:
        variance = options["directional_reparam_variance"]
        raise InputError(f"directional_reparam_variance: expected at least 0, got {variance}")
    most = options["orthogonal_reg_max_codes"]
    if most is not None and options["orthogonal_reg_weight"] > 0:
        number_given(orthogonal_reg_max_codes=most)
        if most < options["codebook_size"]:
            whole_given(1, orthogonal_reg_max_codes=most)
    if not 0 <= options["sync_update_v"] <= 1:
        raise InputError(f"sync_update_v: expected a value in [0, 1], got {options['sync_update_v']}")


def _check_pairs(options: dict[str, Any]) -> None:
    """Raise for arguments that exclude each other."""
    passed = [name for name in ("straight_through", "rotation_trick", "directional_reparam") if options[name]]
    if len(passed) > 1:
        raise InputError(f"{passed[1]}: cannot be used with {passed[0]}; set {passed[1]}=False")
    learned = options["learnable_codebook"]
    bridge = options["vq_bridge"] is not None
    apart = options["separate_codebook_per_head"] and options["heads"] > 1
    refused = [
        ("use_cosine_sim", learned, "cannot be used with learnable_codebook"),
        ("straight_through", learned, "cannot be used with learnable_codebook"),
        ("ema_update", learned, "cannot be used with learnable_codebook; set ema_update=False"),
        ("ema_update", bridge, "cannot be used with vq_bridge"),
        ("directional_reparam", options["threshold_ema_dead_code"] == 0, "needs threshold_ema_dead_code above 0"),
        ("sync_update_v", not learned, "needs learnable_codebook=True"),
        ("accept_image_fmap", options["accept_3d_fmap"], "cannot be used with accept_3d_fmap"),
        ("orthogonal_reg_active_codes_only", apart and options["orthogonal_reg_weight"] > 0, _APART),
    ]
    for name, clash, message in refused:
        if options[name] and clash:
            raise InputError(f"{name}: {message}")
    if bridge and not learned:
        raise InputError("vq_bridge: needs learnable_codebook=True")
