"""Models on the Hugging Face Hub: down and up, and one clear line where it cannot be reached.

``huggingface_hub.ModelHubMixin`` has the same methods, and ours take its arguments. The class itself is not used: to
inherit from it would import ``huggingface_hub`` with ``import dqcore``, and it knows neither half precision nor what
belongs to a model beside its weights.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from dqcore.errors import DqcoreError

__all__ = ["CARD", "COMPANIONS", "CONFIG", "HUB", "WEIGHTS", "copy_saved", "download", "upload"]

#: What a repository is named by, before its owner and name.
HUB = "hf:"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
#: What may stand beside a saved model and belongs to it: classes and tokenizer of a prior, code tables of a tokenizer.
COMPANIONS = ("classes.json", "code_tables*.safetensors", "tokenizer/*")


def download(
    repository: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Download a model, and what belongs to it, from the Hugging Face Hub; see :meth:`Pretrained.from_pretrained`.

    Args:
        repository: ``hf:owner/name``. Anything else is no name of a repository: a mistyped path asks nobody.
        revision: Branch, tag or commit; None: main.
        cache_dir: Folder to keep downloads in.
        token: For private repositories.
        local_files_only: Take what is in the cache, and do not ask the Hub.
        force_download: Download again what is in the cache.

    Returns:
        The folder with its files.

    Raises:
        FileNotFoundError: There is no such repository or revision, or it cannot be reached and is not in the cache.
    """
    if not repository.startswith(HUB):
        raise FileNotFoundError(
            f"{repository}: no such folder; a model on the Hugging Face Hub is named {HUB}owner/name"
        )
    name = repository.removeprefix(HUB)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{repository}: expected {HUB}owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=[CONFIG, WEIGHTS, CARD, *COMPANIONS],
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
            )
        )
    except Exception as error:
        if (reason := _reason(error, revision)) is None:
            raise
        raise FileNotFoundError(f"{repository}: {reason}") from error


def upload(
    folder: Path,
    repository: str,
    *,
    commit_message: str,
    private: bool | None,
    token: str | None,
    branch: str | None,
    create_pr: bool | None,
    allow_patterns: Sequence[str] | str | None,
    ignore_patterns: Sequence[str] | str | None,
    delete_patterns: Sequence[str] | str | None,
) -> str:
    """Upload a folder in one commit; the repository is made if it is missing. See :meth:`Pretrained.push_to_hub`.

    Returns:
        The address of the commit.

    Raises:
        DqcoreError: The Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(token=token)
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
            allow_patterns=allow_patterns,
            ignore_patterns=ignore_patterns,
            delete_patterns=delete_patterns,
        )
    except Exception as error:
        if (reason := _reason(error, branch)) is None:
            raise
        raise DqcoreError(f"repo_id: {repository} was not pushed, {reason}") from error
    return str(commit)


def copy_saved(source: Path, folder: Path) -> None:
    """Copy a saved model, and what belongs to it."""
    for pattern in (CONFIG, WEIGHTS, CARD, *COMPANIONS):
        for file in filter(Path.is_file, source.glob(pattern)):
            (folder / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file.relative_to(source))


def _reason(error: Exception, revision: str | None) -> str | None:
    """Why the Hub did not do what was asked, in words; None for an error that has nothing to do with it."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    told = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, OfflineModeIsEnabled):
        return "the Hugging Face Hub was not asked, HF_HUB_OFFLINE is set"
    if isinstance(error, LocalEntryNotFoundError) and "traffic has been disabled" in str(error):
        return (
            "it is not in the cache of the Hugging Face Hub, which was not asked (local_files_only or HF_HUB_OFFLINE)"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"the repository on the Hugging Face Hub has no revision {revision!r}"
    if isinstance(error, HFValidationError):
        return f"no such repository on the Hugging Face Hub ({told})"
    if isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError):
        return f"the Hugging Face Hub has no such repository, or wants a token that may use it ({told})"
    transport = any(base.__name__ == "TransportError" for base in type(error).__mro__)  # of httpx, a part of the client
    if isinstance(error, OSError) or transport:
        return f"the Hugging Face Hub cannot be reached ({told})"
    return None
