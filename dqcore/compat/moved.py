"""Modules can still be imported by the paths that they had before version 0.1; a warning names the new path."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

__all__ = ["MOVED", "install"]

#: Old path to new paths. With one, the old path gives that module; with several, a module with the public names of all.
MOVED: dict[str, tuple[str, ...]] = {
    "dqcore.codebook.checks": ("dqcore.quantizer.checks",),
    "dqcore.codebook.recompute": ("dqcore.quantizer.recompute",),
    "dqcore.convert_prior": ("dqcore.convert.prior",),
    "dqcore.data.codes_cache": ("dqcore.data.codes", "dqcore.data.token_batches"),
    "dqcore.data.encode": ("dqcore.inference.encode_shards",),
    "dqcore.data.sample": ("dqcore.data.photos",),
    "dqcore.demo": ("dqcore.cli.demo.run",),
    "dqcore.demo_prior": ("dqcore.cli.demo.galleries",),
    "dqcore.evaluation": ("dqcore.metrics", "dqcore.inference.measure"),
    "dqcore.evaluation.coding": ("dqcore.metrics.coding",),
    "dqcore.evaluation.distortion": ("dqcore.metrics.distortion",),
    "dqcore.evaluation.folder": ("dqcore.inference.evaluate",),
    "dqcore.evaluation.load": ("dqcore.inference.load",),
    "dqcore.evaluation.rank": ("dqcore.metrics.rank",),
    "dqcore.evaluation.reconstruct": ("dqcore.inference.reconstruct",),
    "dqcore.evaluation.sample": ("dqcore.inference.sample",),
    "dqcore.evaluation.tokenizer": ("dqcore.inference.measure",),
    "dqcore.inference.encode": ("dqcore.inference.encode_shards",),
    "dqcore.inference.encoded": ("dqcore.inference.encode_batch",),
    "dqcore.inference.pictures": ("dqcore.files.pictures",),
    "dqcore.inference.single": ("dqcore.inference.stream_file",),
    "dqcore.inference.streams": (
        "dqcore.inference.encode_streams",
        "dqcore.inference.stream_file",
        "dqcore.inference.stream_folder",
    ),
    "dqcore.info": ("dqcore.cli.info",),
    "dqcore.models.cached_steps": ("dqcore.models.sampling.steps",),
    "dqcore.models.conditions": ("dqcore.models.priors.inputs",),
    "dqcore.models.dq_transformer": ("dqcore.models.priors.dq_transformer",),
    "dqcore.models.dqvae": ("dqcore.models.tokenizers.dqvae",),
    "dqcore.models.draw": ("dqcore.models.sampling.draw",),
    "dqcore.models.generation": ("dqcore.models.sampling.sampler",),
    "dqcore.models.global_local": ("dqcore.models.priors.global_local",),
    "dqcore.models.prior": ("dqcore.models.priors.base",),
    "dqcore.models.prior_config": ("dqcore.models.priors.config",),
    "dqcore.models.raster": ("dqcore.models.priors.raster",),
    "dqcore.models.replay": ("dqcore.models.sampling.replay",),
    "dqcore.models.saved": ("dqcore.models.auto",),
    "dqcore.models.tokenizer": ("dqcore.models.tokenizers.base",),
    "dqcore.models.vqgan": ("dqcore.models.tokenizers.vqgan",),
    "dqcore.models.walk": ("dqcore.models.sampling.walk",),
    "dqcore.training.build": ("dqcore.training.tokenizer.build",),
    "dqcore.training.distributed": ("dqcore.distributed",),
    "dqcore.training.files": ("dqcore.training.state", "dqcore.files"),
    "dqcore.training.images": ("dqcore.training.tokenizer.images",),
    "dqcore.training.options": ("dqcore.training.tokenizer.options",),
    "dqcore.training.prior_codes": ("dqcore.training.prior.codes",),
    "dqcore.training.prior_options": ("dqcore.training.prior.options",),
    "dqcore.training.prior_step": ("dqcore.training.prior.step",),
    "dqcore.training.recipes": ("dqcore.training.tokenizer.recipes",),
    "dqcore.training.step": ("dqcore.training.tokenizer.step",),
    "dqcore.training.validation": ("dqcore.training.tokenizer.validation",),
}


class _MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the old paths, before any other finder: an old package's folder may still hold compiled files."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=len(MOVED[name]) > 1)

    def exec_module(self, module: ModuleType) -> None:
        name, places = module.__name__, MOVED[module.__name__]
        warnings.warn(f"{name} has moved to {' and '.join(places)}", DeprecationWarning, stacklevel=2)
        found = [importlib.import_module(place) for place in places]
        if len(found) == 1:
            sys.modules[name] = found[0]
        for part in found:
            vars(module).update({key: vars(part)[key] for key in getattr(part, "__all__", ())})


def install() -> None:
    """Make the old paths importable from now on."""
    others = [finder for finder in sys.meta_path if type(finder).__qualname__ != _MovedFinder.__qualname__]
    sys.meta_path[:] = [_MovedFinder(), *others]
