"""Models on the Hugging Face Hub, a stub here: what is uploaded, what is asked for, what is said of failure."""

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file

import dqcore
from dqcore.errors import DqcoreError
from dqcore.models.auto import PRIORS, TOKENIZERS
from dqcore.models.hub import download

TINY = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


class Api:
    """The two methods of ``huggingface_hub.HfApi`` that an upload needs; keeps what was uploaded."""

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, *, private, exist_ok):
        assert exist_ok
        Api.created = (repo_id, private, self.token)
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, *, folder_path, **options):
        files = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        Api.files = {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in files}
        Api.options = options
        return f"https://huggingface.co/{options['repo_id']}/commit/1"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return Api


@pytest.fixture
def saved(tmp_path):
    dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY).save_pretrained(tmp_path / "model", torch.float16)
    (tmp_path / "model" / "code_tables.safetensors").write_bytes(b"tables")
    (tmp_path / "model" / "notes.txt").write_text("private")
    return tmp_path / "model"


def test_a_new_model_is_saved_and_pushed(hub, tmp_path):
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY)
    address = model.save_pretrained(tmp_path / "photos", push_to_hub=True, private=True, token="t", branch="trial")
    assert address == "https://huggingface.co/me/photos/commit/1"
    assert hub.created == ("photos", True, "t")
    assert hub.options["repo_id"] == "me/photos" and hub.options["revision"] == "trial"
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}
    assert hub.files["model.safetensors"] == (tmp_path / "photos" / "model.safetensors").read_bytes()


def test_an_unchanged_model_is_pushed_as_its_files_with_what_belongs_to_it(hub, saved):
    model = dqcore.DQVAE.from_pretrained(saved)
    model.push_to_hub("me/x", commit_message="first", create_pr=True, ignore_patterns="*.txt", delete_patterns=["old"])
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors", "code_tables.safetensors"}
    assert hub.files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert {"commit_message": "first", "create_pr": True, "delete_patterns": ["old"]}.items() <= hub.options.items()


def test_a_changed_model_is_pushed_without_the_old_tables(hub, saved, tmp_path):
    model = dqcore.DQVAE.from_pretrained(saved)
    with torch.no_grad():
        model.quant_conv.bias.fill_(0.5)
    model.push_to_hub("me/x", dtype=torch.float16)
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}
    (tmp_path / "pushed").write_bytes(hub.files["model.safetensors"])
    bias = load_file(tmp_path / "pushed")["quant_conv.bias"]
    assert bias.dtype == torch.float16 and bias.tolist() == [0.5] * 8
    assert b'DQVAE.from_pretrained("hf:me/x")' in hub.files["README.md"]


def test_a_prior_takes_its_tokenizer_along(hub, saved):
    prior = dqcore.DQTransformer.from_preset("dqtransformer-tiny", dim=16, num_heads=2, codebook_size=16)
    prior.save_pretrained(saved.parent / "prior")
    saved.rename(saved.parent / "prior" / "tokenizer")
    dqcore.DQTransformer.from_pretrained(saved.parent / "prior").push_to_hub("me/prior")
    assert {"config.json", "tokenizer/config.json", "tokenizer/model.safetensors"} <= set(hub.files)


@pytest.mark.parametrize("kind", [*TOKENIZERS.values(), *PRIORS.values()], ids=lambda kind: kind.__name__)
def test_every_class_keeps_the_contract(kind):
    """The arguments of ``ModelHubMixin`` are there by the same names."""
    import inspect

    for name in ("save_pretrained", "from_pretrained", "push_to_hub"):
        theirs = inspect.signature(getattr(huggingface_hub.ModelHubMixin, name)).parameters
        own = inspect.signature(getattr(kind, name)).parameters
        free = {"self", "config", "save_directory", "pretrained_model_name_or_path", "model_kwargs"}
        assert set(theirs) - free <= set(own), name


class TransportError(Exception):
    """Stands for httpx's, whose package has had more than one name."""


def refused(kind):
    error = kind.__new__(kind)
    error.args = ("404 Client Error",)
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.OfflineModeIsEnabled("off"), "the Hugging Face Hub was not asked, HF_HUB_OFFLINE is set"),
        (errors.LocalEntryNotFoundError("outgoing traffic has been disabled"), "is not in the cache"),
        (errors.LocalEntryNotFoundError("no route"), r"the Hugging Face Hub cannot be reached \(no route\)"),
        (
            TransportError("name or service not known"),
            r"the Hugging Face Hub cannot be reached \(name or service not known\)",
        ),
        (refused(errors.RepositoryNotFoundError), "no such repository, or wants a token"),
        (refused(errors.RevisionNotFoundError), "has no revision 'v9'"),
        (errors.HFValidationError("bad id"), "no such repository"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_failure_is_one_clear_line(monkeypatch, hub, saved, error, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(Api, "create_repo", fail)
    with pytest.raises(FileNotFoundError, match=f"^hf:me/x: .*{said}") as found:
        download("hf:me/x", revision="v9")
    assert "\n" not in str(found.value)
    with pytest.raises(DqcoreError, match=f"^repo_id: me/x was not pushed, .*{said}"):
        dqcore.DQVAE.from_pretrained(saved).push_to_hub("me/x", branch="v9")


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: {}["key"])
    with pytest.raises(KeyError):
        download("hf:me/x")


def test_a_folder_asks_no_hub(monkeypatch, saved):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert dqcore.DQVAE.from_pretrained(saved, revision="main", local_files_only=True).config.codebook_size == 16
