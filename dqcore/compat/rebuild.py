"""Build ours from an instance of another library's quantizer; weights and buffers are moved over afterwards.

Ours are imported when they are needed. Whatever an instance has that ours does not know is an error: it may be an
option of a newer version, and would be lost.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from dqcore.errors import InputError

__all__ = ["path_of", "rebuild_ema", "rebuild_vector_quantize", "rebuilder"]

#: The attributes of vector-quantize-pytorch 1.32's ``VectorQuantize`` and of its codebook.
_OF_LAYER = (
    "dim heads separate_codebook_per_head has_projections eps has_commitment_loss commitment_weight "
    "commitment_use_cross_entropy_loss learnable_codebook has_codebook_orthogonal_loss orthogonal_reg_weight "
    "orthogonal_reg_active_codes_only orthogonal_reg_max_codes has_codebook_diversity_loss "
    "codebook_diversity_temperature codebook_diversity_loss_weight rotation_trick directional_reparam "
    "directional_reparam_variance route_gradients_to_input sync_update_v use_cosine_sim "
    "in_place_codebook_optimizer manual_in_place_optimizer_update codebook_size accept_image_fmap accept_3d_fmap "
    "channel_last return_zeros_for_masked_padding freeze_codebook"
)
_OF_BOOK = (
    "transform_input decay ema_update manual_ema_update codebook_size num_codebooks kmeans_iters eps "
    "threshold_ema_dead_code has_dead_code_replacement reset_cluster_size gumbel_sample sample_codebook_temp "
    "use_ddp sample_fn replace_sample_fn kmeans_all_reduce_fn all_reduce_fn learnable_codebook use_cosine_sim "
    "vq_bridge affine_param sync_affine_param affine_param_batch_decay affine_param_codebook_decay"
)


def rebuilder(ours: str, *arguments: str) -> Callable[[nn.Module], nn.Module]:
    """What builds ``dqcore.compat.<ours>`` from an instance.

    Args:
        ours: Module and class, such as ``"taming.VectorQuantizer2"``.
        arguments: Attributes to build it with, in the constructor's order; the others are set afterwards.
    """

    def build(theirs: nn.Module) -> nn.Module:
        new = _class(ours)(*(getattr(theirs, name) for name in arguments))
        if getattr(theirs, "remap", None) is not None:  # the file need not be there any more
            new.register_buffer("used", theirs.used)
            new.unknown_index = theirs.unknown_index
        _copy_attributes(theirs, new)
        return new

    return build


def rebuild_ema(theirs: nn.Module) -> nn.Module:
    """Ours of taming's ``EMAVectorQuantizer``."""
    book: Any = theirs.embedding
    new = _class("taming.EMAVectorQuantizer")(
        theirs.num_tokens, theirs.codebook_dim, theirs.beta, book.decay, book.eps, theirs.remap
    )
    _copy_attributes(theirs, new)
    return new


def rebuild_vector_quantize(theirs: nn.Module) -> nn.Module:
    """Ours of vector-quantize-pytorch's ``VectorQuantize``; its constructor refuses what it does not do."""
    source: Any = theirs
    _check_vector_quantize(source)
    book = source._codebook
    same = (
        "dim codebook_size heads separate_codebook_per_head freeze_codebook use_cosine_sim channel_last "
        "accept_image_fmap accept_3d_fmap commitment_weight commitment_use_cross_entropy_loss learnable_codebook "
        "orthogonal_reg_weight orthogonal_reg_active_codes_only orthogonal_reg_max_codes "
        "codebook_diversity_loss_weight codebook_diversity_temperature rotation_trick directional_reparam "
        "directional_reparam_variance manual_in_place_optimizer_update sync_update_v "
        "return_zeros_for_masked_padding route_gradients_to_input"
    )
    of_book = "decay eps kmeans_iters threshold_ema_dead_code sample_codebook_temp ema_update manual_ema_update"
    affine = "sync_affine_param affine_param_batch_decay affine_param_codebook_decay" if book.affine_param else ""
    arguments = {name: getattr(source, name) for name in same.split()}
    arguments |= {name: getattr(book, name) for name in (*of_book.split(), *affine.split())}
    drawn, optimizer = book.gumbel_sample.keywords, source.in_place_codebook_optimizer
    arguments |= {
        "codebook_dim": book.embed.shape[-1],
        "layernorm_after_project_in": isinstance(source.project_in, nn.Sequential),
        "kmeans_init": not book.initted.is_meta and not bool(book.initted),
        "sync_kmeans": not book.use_ddp or book.sample_fn.__name__ == "sample_vectors_distributed",
        "stochastic_sample_codes": drawn["stochastic"],
        "straight_through": drawn["straight_through"],
        "sync_codebook": book.use_ddp,
        "vq_bridge": book.vq_bridge,
        # The old optimiser holds the parameters that the new module is given afterwards.
        "in_place_codebook_optimizer": None if optimizer is None else lambda _: optimizer,
        "affine_param": book.affine_param,
        # What a weight was when the layer was built decides its losses and whether codes are a parameter; set below.
        "orthogonal_reg_weight": 1.0 if source.has_codebook_orthogonal_loss else 0.0,
        "codebook_diversity_loss_weight": 1.0 if source.has_codebook_diversity_loss else 0.0,
    }
    new = _class("vector_quantize_pytorch.VectorQuantize")(**arguments)
    for name in ("orthogonal_reg_weight", "codebook_diversity_loss_weight", "has_commitment_loss"):
        setattr(new, name, getattr(source, name))
    for name in ("project_in", "project_out"):
        _check_part(name, getattr(source, name), getattr(new, name))
    return new


def _check_vector_quantize(theirs: Any) -> None:
    """Raise for what would be lost: attributes of the instance or its codebook that ours does not know."""
    book = theirs._codebook
    if path_of(book) != f"{type(theirs).__module__}.Codebook":
        raise InputError(f"_codebook: expected a plain Codebook, got {path_of(book)}")
    for prefix, part, known in (("", theirs, _OF_LAYER), ("_codebook.", book, _OF_BOOK)):
        for key, value in _public(part).items():
            if key not in known.split():
                raise InputError(f"{prefix}{key}: an option that dqcore does not know, here {value!r}")
    expected = {
        "reset_cluster_size": book.threshold_ema_dead_code,
        "has_dead_code_replacement": book.threshold_ema_dead_code > 0,
    }
    for key, value in expected.items():
        if getattr(book, key) != value:
            raise InputError(
                f"_codebook.{key}: expected {value!r}, as threshold_ema_dead_code, got {getattr(book, key)!r}"
            )


def _check_part(name: str, theirs: nn.Module, ours: nn.Module) -> None:
    """Raise unless a projection is what ours has, of PyTorch's own classes."""
    mine, parts = dict(ours.named_modules()), dict(theirs.named_modules())
    if parts.keys() != mine.keys() or any(type(part) is not type(mine[key]) for key, part in parts.items()):
        raise InputError(f"{name}: expected {ours}, got {theirs}")
    for key, part in parts.items():
        for extra in _public(part).keys() - _public(mine[key]).keys():
            raise InputError(f"{name}: {extra}: an option that dqcore does not know, here {vars(part)[extra]!r}")


def _class(ours: str) -> Any:
    module, _, name = ours.rpartition(".")
    return getattr(importlib.import_module(f"dqcore.compat.{module}"), name)


def _copy_attributes(theirs: nn.Module, ours: nn.Module) -> None:
    """Set the public attributes of ours, and of its parts, to theirs; raise if there are others."""
    parts = dict(ours.named_modules())
    for name, part in theirs.named_modules():
        prefix = f"{name}." if name else ""
        if name not in parts:
            raise InputError(f"{name}: a part that dqcore does not know, of class {type(part).__qualname__}")
        mine = parts[name]
        if name and (type(part).__qualname__ != type(mine).__qualname__ or not _at_home(part, theirs)):
            raise InputError(f"{name}: expected a plain {type(mine).__qualname__}, got {path_of(part)}")
        for key, value in _public(part).items():
            if key not in vars(mine):
                raise InputError(f"{prefix}{key}: an option that dqcore does not know, here {value!r}")
            if isinstance(mine, nn.Embedding) and vars(mine)[key] != value:
                raise InputError(f"{prefix}{key}: expected {vars(mine)[key]!r}, got {value!r}")
            setattr(mine, key, value)


def _at_home(part: nn.Module, whole: nn.Module) -> bool:
    """Whether the class of a part is PyTorch's or from the file of the whole's class."""
    return type(part).__module__ in ("torch.nn.modules.sparse", type(whole).__module__)


def path_of(module: nn.Module) -> str:
    """Module and name of a module's class, such as ``"torch.nn.modules.linear.Linear"``."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _public(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
