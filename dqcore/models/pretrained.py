"""Saving and loading of models: a folder with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from dqcore.errors import InputError
from dqcore.files import write_json
from dqcore.files.sealed import seal_of
from dqcore.files.tensors import load_tensors, save_tensors, tensor_shapes
from dqcore.models.card import write_card
from dqcore.models.checks import build, check_finite, check_shapes
from dqcore.models.folder import (
    check_saved,
    config_from_dict,
    fields_of,
    read_config,
    same_as_saved,
    state_to_save,
    unknown,
)
from dqcore.models.hub import CONFIG, WEIGHTS, copy_saved, download, upload
from dqcore.models.summary import html_of, line_of, table_of
from dqcore.models.weights import weights_folder

__all__ = ["Pretrained"]

Model = TypeVar("Model", bound="Pretrained")


class Pretrained(nn.Module):
    """A model that is built from one frozen dataclass, has named presets, and saves and loads itself.

    Subclasses set ``Config`` and ``PRESETS`` and take a config as their only argument.
    """

    Config: ClassVar[type[Any]]
    PRESETS: ClassVar[Mapping[str, Any]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.check_config(config)
        self.config = config
        self._folder: Path | None = None  # where it was loaded from

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Raise TypeError unless ``config`` is of this class's ``Config``."""
        if not isinstance(config, cls.Config):
            raise TypeError(f"config: expected a {cls.Config.__name__}, got {type(config).__name__}")

    def facts(self) -> dict[str, str]:
        """What tells this model from others of its class, a few words by name; :meth:`summary` adds the sizes."""
        return {}

    def summary(self) -> str:
        """A table of the model: its preset, what is special about it, and the parameters of its parts."""
        return table_of(self)

    def extra_repr(self) -> str:
        """The first line of PyTorch's tree of modules: the facts."""
        return ", ".join(self.facts().values())

    def __repr__(self) -> str:
        """One line; ``print(model)`` shows PyTorch's tree of modules, :meth:`summary` a table."""
        return line_of(self)

    def __str__(self) -> str:
        return super().__repr__()

    def _repr_html_(self) -> str:
        return html_of(self)

    @classmethod
    def from_preset(cls: type[Model], name: str, *, pretrained: bool = False, **overrides: Any) -> Model:
        """A new model with random weights, or one with the weights that come with the package.

        Args:
            name: A key of ``PRESETS``.
            pretrained: Load the weights that come with the package for this preset, in evaluation mode.
            **overrides: Fields of the config that replace the preset's; not with ``pretrained``.

        Raises:
            InputError: There is no such preset or field, and the message names the most similar one; or the preset has
                no weights.
        """
        if name not in cls.PRESETS:
            raise InputError(f"name: {unknown('preset', name, cls.PRESETS)}")
        if pretrained:
            if overrides:
                raise InputError(f"{next(iter(overrides))}: expected no change of the config of pretrained weights")
            return cls.from_pretrained(weights_folder(name))
        fields = {**fields_of(cls.PRESETS[name]), **overrides}
        return cls(config_from_dict(cls.Config, fields, f"preset {name}"))

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        dtype: torch.dtype | None = None,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write ``model.safetensors``, ``config.json`` and ``README.md`` into a folder, which is made if it is missing.

        Each file is written under another name, flushed to disk and renamed, so that a killed run never leaves half a
        file. A README.md that a person wrote or changed is left alone.

        Args:
            path: The folder.
            dtype: What floating-point weights are stored in, such as ``torch.float16`` for half the size; None: as they
                are. :meth:`from_pretrained` gives float32 again.
            push_to_hub: Upload it too.
            repo_id: The repository to upload to; by default the folder's name, among the user's own.
            model_card_kwargs: What the model card says of the model, see :func:`dqcore.models.card.card_text`.
            **push_to_hub_kwargs: See :meth:`push_to_hub`.

        Returns:
            The address of the commit if it was uploaded, else None.

        Raises:
            InputError: A weight is not finite, or beyond the range of ``dtype``, which must be a floating-point one; or
                weights were added or renamed, as by adapters, so that :meth:`from_pretrained` could not read them.
            DqcoreError: The Hub cannot be reached, or refuses.
        """
        folder = Path(path)
        state = state_to_save(self, dtype, f"{folder}: not saved")
        config = {"model": type(self).__name__, **fields_of(self.config)}
        save_tensors(folder / WEIGHTS, state, {"config": seal_of(config)})
        write_json(folder / CONFIG, config)
        write_card(self, folder, model_card_kwargs or {})
        if not push_to_hub:
            return None
        self._folder = folder.resolve()
        return self.push_to_hub(repo_id or self._folder.name, dtype=dtype, **push_to_hub_kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        dtype: torch.dtype | None = None,
        commit_message: str = "Upload a model of dqcore",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        allow_patterns: Sequence[str] | str | None = None,
        ignore_patterns: Sequence[str] | str | None = None,
        delete_patterns: Sequence[str] | str | None = None,
        model_card_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Upload the model to the Hugging Face Hub, into a repository that is made if it is missing.

        A model that has not changed since it was loaded is uploaded as the files it came from, with what belongs to it:
        its card, code tables, classes, the tokenizer of a prior.

        Args:
            repo_id: ``"user/name"``, or a name among the user's own.
            dtype: As in :meth:`save_pretrained`, for a model that has changed.
            commit_message: Of the commit.
            private: Whether a new repository is private; None: as the account has it.
            token: Of the account; None: the one that ``hf auth login`` stored.
            branch: To upload to; None: main.
            create_pr: Open a pull request instead.
            allow_patterns: Only such files are uploaded.
            ignore_patterns: Such files are not.
            delete_patterns: Such files are deleted in the repository.
            model_card_kwargs: As in :meth:`save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            DqcoreError: The Hub cannot be reached, or refuses.
        """
        with TemporaryDirectory() as temporary:
            folder, source = Path(temporary) / "model", self._folder
            about = {"repo_id": repo_id, **(model_card_kwargs or {})}
            if source is not None and same_as_saved(self, source / CONFIG, source / WEIGHTS):
                copy_saved(source, folder)
                write_card(self, folder, about, renew=bool(model_card_kwargs))
            else:
                self.save_pretrained(folder, dtype, model_card_kwargs=about)
            return upload(
                folder,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                branch=branch,
                create_pr=create_pr,
                allow_patterns=allow_patterns,
                ignore_patterns=ignore_patterns,
                delete_patterns=delete_patterns,
            )

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Model:
        """Load a model in evaluation mode, on the CPU.

        Args:
            path: A folder that :meth:`save_pretrained` wrote, or ``hf:owner/name`` of such a repository on the Hugging
                Face Hub. The other arguments are for the latter.
            revision: Branch, tag or commit; None: main.
            cache_dir: Folder to keep downloads in; None: the one of ``huggingface_hub``.
            token: For private repositories; None: the one that ``hf auth login`` stored.
            local_files_only: Take what is in the cache, and do not ask the Hub.
            force_download: Download again what is in the cache.

        Raises:
            FileNotFoundError: There is no such folder or repository, or a file is missing in it, or the Hub cannot be
                reached.
            InputError: It holds another model, a config with unknown fields, or weights that are damaged, not finite
                or do not fit the config.
        """
        options: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
        options |= {"local_files_only": local_files_only, "force_download": force_download}
        folder = Path(path) if os.path.exists(path) else download(os.fspath(path), **options)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{path}: expected a folder with {CONFIG} and {WEIGHTS}, {name} is missing")
        weights, config = folder / WEIGHTS, read_config(folder / CONFIG, cls)
        model = build(cls, config, tensor_shapes(weights), str(weights))
        state = load_tensors(weights)
        check_shapes(model, {name: tuple(tensor.shape) for name, tensor in state.items()}, str(weights))
        check_finite(state, str(weights))
        check_saved(folder / CONFIG, weights)
        model.load_state_dict(state)
        model._folder = folder.resolve()
        return model.eval()
