"""Swap the quantizers of a model for ours, in place; :func:`register` adds another class.

Classes are recognised by module path and name, so none of the libraries needs to be installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dqcore.compat.rebuild import path_of, rebuild_ema, rebuild_vector_quantize, rebuilder
from dqcore.errors import InputError

__all__ = ["register", "replace_quantizers"]

Convert = Callable[[nn.Module], nn.Module]

#: Path of a class, and what builds ours from an instance of it.
_KNOWN: dict[str, Convert] = {
    "taming.modules.vqvae.quantize.VectorQuantizer": rebuilder("taming.VectorQuantizer", "n_e", "e_dim", "beta"),
    "taming.modules.vqvae.quantize.VectorQuantizer2": rebuilder("taming.VectorQuantizer2", "n_e", "e_dim", "beta"),
    "taming.modules.vqvae.quantize.EMAVectorQuantizer": rebuild_ema,
    "tokenizer.tokenizer_image.vq_model.VectorQuantizer": rebuilder(
        "llamagen.VectorQuantizer", "n_e", "e_dim", "beta", "entropy_loss_ratio", "l2_norm", "show_usage"
    ),
    "modeling.quantizer.quantizer.VectorQuantizer": rebuilder(
        "titok.VectorQuantizer", "codebook_size", "token_size", "commitment_cost", "use_l2_norm", "clustering_vq"
    ),
    "diffusers.models.autoencoders.vae.VectorQuantizer": rebuilder(
        "diffusers.VectorQuantizer", "n_e", "vq_embed_dim", "beta"
    ),
    "vector_quantize_pytorch.vector_quantize_pytorch.VectorQuantize": rebuild_vector_quantize,
}

#: What ``torch.compile`` returns for a module; it keeps the compiled function of the very module it was given.
_COMPILED = "torch._dynamo.eval_frame.OptimizedModule"

#: Containers that look for a quantizer by its class, and would not find a replaced one.
_BY_CLASS = ("vector_quantize_pytorch.utils.Sequential",)

_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def register(path: str, convert: Convert) -> None:
    """Let :func:`replace_quantizers` replace the class at a path too.

    Args:
        path: Module and name of the class, ``type(m).__module__ + "." + type(m).__qualname__``.
        convert: Builds the new module from an instance. It must leave the instance as it is, may give the new module
            any weights, and raises :class:`InputError`, naming the option, for what the new module does not do. The
            new module must have the same state-dict keys and shapes.
    """
    if not isinstance(path, str) or not path.rpartition(".")[0]:
        raise InputError(f"path: expected the module and name of a class, as 'package.module.Class', got {path!r}")
    if not callable(convert):
        raise InputError(f"convert: expected a function, got {type(convert).__name__}")
    _KNOWN[path] = convert


def replace_quantizers(model: nn.Module) -> dict[str, nn.Module]:
    """Replace every known quantizer of a model by ours, in place.

    The new module holds the very parameters and buffers of the old one, so that optimizers keep working; mode, device,
    dtype and ``requires_grad`` stay. A module that is used in several places is replaced once and used in all of them;
    so is a part, such as a codebook that several quantizers share. Instances of subclasses are left as they are. If any
    quantizer cannot be replaced, the model is left as it is.

    Args:
        model: Any module that contains quantizers.

    Returns:
        The new modules by qualified name, one for each place; empty if there are none.

    Raises:
        InputError: If a quantizer has an option that ours does not do, or an attribute that ours does not know, or
            hooks (put them on the new module instead), or was compiled by itself; if ``model`` is itself a quantizer,
            or is no module; or if the module around one would look for its own class.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a module, got {type(model).__name__}")
    #: By id: the old module, kept so that no other gets its id, and ours.
    built: dict[int, tuple[nn.Module, nn.Module]] = {}
    places: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if path_of(module) not in _KNOWN or any(name.startswith(f"{other}.") for other in places):
            continue
        if not name:
            raise InputError(f"model: is itself a {path_of(module)}; put it into a module, such as nn.ModuleList")
        _refuse_by_class(model, name)
        if path_of(model.get_submodule(name.rpartition(".")[0])) == _COMPILED:
            raise InputError(f"{name}: it is compiled, and the old one would still run; compile after replacing")
        if id(module) not in built:
            built[id(module)] = module, _successor(name, module)
        _, places[name] = built[id(module)]
    parts = _share_parts(built.values())
    for name, part in list(model.named_modules(remove_duplicate=False)):
        if id(part) in parts and not any(name.startswith(f"{place}.") for place in places):
            _put(model, name, parts[id(part)])
    for name, new in places.items():
        _put(model, name, new)
    return places


def _share_parts(pairs: Iterable[tuple[nn.Module, nn.Module]]) -> dict[int, nn.Module]:
    """Give new modules one part where the old ones have one; returns the new parts by the ``id`` of the old ones."""
    parts: dict[int, nn.Module] = {}
    for old, new in pairs:
        mine = dict(new.named_modules())
        for name, part in old.named_modules():
            if name and name in mine:
                if id(part) in parts:
                    _put(new, name, parts[id(part)])
                parts.setdefault(id(part), mine[name])
    return parts


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    root.get_submodule(parent).register_module(leaf, module)


def _successor(name: str, old: nn.Module) -> nn.Module:
    """Ours, complete; the old module is left as it is."""
    try:
        _refuse_hooks(old)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            new = _KNOWN[path_of(old)](old)
        _take_over(old, new)
    except (InputError, AttributeError, ImportError) as error:
        raise InputError(f"{name}: cannot replace {path_of(old)}: {error}") from error
    return new


def _refuse_by_class(model: nn.Module, name: str) -> None:
    """Raise if any module around the one of this name looks for its class."""
    parent = name.rpartition(".")[0]
    while True:
        around = path_of(model.get_submodule(parent))
        if around in _BY_CLASS:
            raise InputError(f"{name}: cannot be replaced within {around}, which looks for its class")
        if not parent:
            return
        parent = parent.rpartition(".")[0]


def _refuse_hooks(old: nn.Module) -> None:
    for name, part in old.named_modules():
        owner = f"{name}: " if name else ""
        hooks = [kind for kind in _HOOKS if getattr(part, kind, None)]
        if hooks:
            raise InputError(f"{owner}it has hooks ({', '.join(hooks)}); remove them, then put them on the new module")
        if "forward" in vars(part):
            raise InputError(f"{owner}its forward has been replaced by another function")


def _take_over(old: nn.Module, new: nn.Module) -> None:
    """Give the new module the old one's tensors, by name, and its mode."""
    theirs, ours = old.state_dict(keep_vars=True), new.state_dict(keep_vars=True)
    if theirs.keys() != ours.keys():
        differing = ", ".join(sorted(theirs.keys() ^ ours.keys()))
        raise InputError(f"state dict: expected {sorted(ours)}, differing in {differing}")
    for key, tensor in theirs.items():
        if tensor.shape != ours[key].shape:
            raise InputError(f"{key}: expected shape {tuple(ours[key].shape)}, got {tuple(tensor.shape)}")
    _take_over_unsaved(old, new, next((tensor.device for tensor in theirs.values()), None))
    for key, tensor in theirs.items():
        owner, _, leaf = key.rpartition(".")
        part = new.get_submodule(owner)
        if leaf in part._parameters:
            part._parameters[leaf] = _parameter(key, tensor)
        else:
            part._buffers[leaf] = tensor.detach() if tensor.requires_grad else tensor  # some keep sums in its ``grad``
    parts = dict(old.named_modules())
    for name, part in new.named_modules():
        part.training = parts.get(name, old).training


def _take_over_unsaved(old: nn.Module, new: nn.Module, device: torch.device | None) -> None:
    """The same for buffers that are in no state dict."""
    theirs, ours = (
        {name: value for name, value in module.named_buffers() if name not in module.state_dict()}
        for module in (old, new)
    )
    lost = sorted(theirs.keys() - ours.keys())
    if lost:
        raise InputError(f"{lost[0]}: a buffer that dqcore does not know")
    if device is not None:
        new.to(device)
    for name, value in theirs.items():
        owner, _, leaf = name.rpartition(".")
        new.get_submodule(owner)._buffers[leaf] = value


def _parameter(key: str, tensor: Tensor) -> nn.Parameter:
    if not isinstance(tensor, nn.Parameter):
        raise InputError(f"{key}: expected a parameter, got a buffer")
    return tensor
