"""The model card of a saved model, ``README.md``: what it is, how to use it, and what its run knows of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqcore.files import write_atomically
from dqcore.models.hub import CARD, HUB
from dqcore.models.summary import line_of

__all__ = ["card_text", "write_card"]

#: The last line of a card: the hash tells whether somebody changed what stands above.
_MARK = "<!-- written by dqcore {}; a card that somebody changed is left alone -->"
_FACTS = {"data": "Data", "training": "Training", "protocol": "Protocol", "license": "Licence"}


def card_text(model: Any, about: Mapping[str, Any]) -> str:
    """A model card in Markdown, with the metadata that the Hugging Face Hub reads.

    Args:
        model: The model.
        about: What is known of it: ``data``, ``training``, ``protocol`` and ``license``, texts of which those that are
            missing are "not stated"; ``numbers``, a mapping of names to values; ``repo_id``, to load it from.
    """
    kind, name = type(model).__name__, f"{HUB}{about['repo_id']}" if about.get("repo_id") else "FOLDER"
    source = "dqcore" if kind in ("DQVAE", "VQGAN", "DQTransformer") else type(model).__module__
    stage = "image-tokenizer" if hasattr(model, "decode") else "image-prior"
    metadata = ["library_name: dqcore", "tags:", "- dqcore", f"- {stage}", "- vector-quantization"]
    if about.get("license"):
        metadata.insert(0, f"license: {about['license']}")
    numbers = about.get("numbers") or {}
    table = [f"| {key} | {_say(value)} |" for key, value in numbers.items()]
    facts = [f"- {title}: {about.get(key) or 'not stated'}" for key, title in _FACTS.items()]
    text = [
        "---", *metadata, "---", "", f"# {kind}", "", f"`{line_of(model)}`", "",
        "```python", f"from {source} import {kind}", "", f'model = {kind}.from_pretrained("{name}")', "```", "",
        *facts, "",
        *(["| number | value |", "|---|---|", *table] if table else ["Numbers: not stated."]), "",
    ]  # fmt: skip
    return "\n".join(text)


def write_card(model: Any, folder: Path, about: Mapping[str, Any], *, renew: bool = True) -> bool:
    """Write the card into the folder of a saved model, unless a person wrote or changed the one that is there.

    Args:
        model: The model.
        folder: Its folder.
        about: See :func:`card_text`.
        renew: False keeps any card that is there.

    Returns:
        Whether it was written.
    """
    path = folder / CARD
    if path.exists() and not (renew and _is_ours(path.read_text(encoding="utf-8", errors="replace"))):
        return False
    text = card_text(model, about)
    data = _bytes(f"{text}\n{_MARK.format(_hash(text))}\n")
    write_atomically(path, lambda file: file.write(data))
    return True


def _is_ours(card: str) -> bool:
    """Whether a card ends with our mark, and the text above it is what was marked."""
    text, _, last = card.rstrip("\n").rpartition("\n")
    found = re.fullmatch(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]+)"), last)
    return found is not None and found[1] == _hash(text)


def _hash(text: str) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()[:12]


def _bytes(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # a folder that it names may be called otherwise than in UTF-8


def _say(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
