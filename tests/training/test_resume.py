import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import processes
import pytest
import torch

from dqcore import files
from dqcore.files import sole_owner
from dqcore.files.sealed import read_sealed, write_sealed
from dqcore.training import train_tokenizer
from dqcore.training.record import check_options, check_unused, held_out_before
from dqcore.training.state import read_state
from dqcore.training.tokenizer import run as run_module

SCRIPT = """
import importlib.util, os, signal, sys
from pathlib import Path
import torch
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.training import TokenizerTraining, train_tokenizer

torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
torch.manual_seed(7)
model = DQVAE(shared.CONFIG)
fields = eval(sys.argv[2])
fields |= {"data": Path(fields["data"]), "out": Path(fields["out"])}

def progress(row):
    if row["step"] == 8:
        os.kill(os.getpid(), signal.SIGKILL)

train_tokenizer(TokenizerTraining(**fields), model=model, progress=progress)
"""


def _quiet(row):
    pass


def _numbers(rows):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def _same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


@pytest.fixture
def whole(tiny, options, tmp_path):
    """An uninterrupted run of ten steps, with everything that has a state."""
    long = options(steps=10, average_decay=0.9, schedule="cosine", out=tmp_path / "whole")
    return train_tokenizer(long, model=tiny(), progress=_quiet)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(whole, tiny, options, tmp_path):
    fields = {name: value for name, value in vars(options(steps=10, average_decay=0.9, schedule="cosine")).items()}
    text = repr({name: str(value) if isinstance(value, Path) else value for name, value in fields.items()})
    shared = str(Path(__file__).with_name("conftest.py"))
    code, _, errors = processes.run(SCRIPT, shared, text)
    assert code == -signal.SIGKILL, errors
    folder = options().out
    assert read_state(folder / "checkpoint.pt")["step"] == 6
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 8

    resumed = options(steps=10, average_decay=0.9, schedule="cosine", resume=True)
    run = train_tokenizer(resumed, model=tiny(), progress=_quiet)
    assert _numbers(run.metrics) == _numbers(whole.metrics)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert _numbers(map(json.loads, lines)) == _numbers(whole.metrics)
    assert _same(read_state(folder / "checkpoint.pt"), read_state(whole.path / "checkpoint.pt"))
    assert _same(run.model.state_dict(), whole.model.state_dict())


def test_a_run_without_a_checkpoint_starts_again(tiny, options):
    options().out.mkdir()
    (options().out / "metrics.jsonl").write_text('{"step": 1}\n')
    run = train_tokenizer(options(steps=2, resume=True), model=tiny(), progress=_quiet)
    assert [row["step"] for row in run.metrics if "loss" in row] == [1, 2]


def test_a_resumed_run_may_be_longer(tiny, options):
    train_tokenizer(options(steps=3), model=tiny(), progress=_quiet)
    run = train_tokenizer(options(steps=5, resume=True), model=tiny(), progress=_quiet)
    whole = train_tokenizer(options(steps=5, out=options().out.with_name("long")), model=tiny(), progress=_quiet)
    assert _same(run.model.state_dict(), whole.model.state_dict())


def test_a_resumed_run_is_not_shorter_than_what_is_done(tiny, options):
    train_tokenizer(options(steps=4), model=tiny(), progress=_quiet)
    before = (options().out / "model" / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="steps: 4 are done already"):
        train_tokenizer(options(steps=3, resume=True), model=tiny(), progress=_quiet)
    assert (options().out / "model" / "model.safetensors").read_bytes() == before


def test_a_run_does_not_lie_among_its_images(tiny, options, pictures):
    for out in (pictures, pictures / "run"):
        with pytest.raises(ValueError, match=r"out: .* lies in"):
            train_tokenizer(options(steps=1, out=out), model=tiny(), progress=_quiet)
    validation = pictures.parent / "held out"
    shutil.copytree(pictures, validation)
    with pytest.raises(ValueError, match=r"out: .*held out lies in"):
        train_tokenizer(options(steps=1, validation=validation, out=validation), model=tiny(), progress=_quiet)
    assert not (pictures / "run").exists()


def test_a_checkpoint_written_halfway_is_never_seen(tiny, options, monkeypatch):
    train_tokenizer(options(steps=3), model=tiny(), progress=_quiet)
    before = (options().out / "checkpoint.pt").read_bytes()
    save = torch.save

    def torn(state, file):
        save(state, file)
        file._file.truncate(1000)
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="no space left"):
        train_tokenizer(options(steps=6, resume=True), model=tiny(), progress=_quiet)
    assert (options().out / "checkpoint.pt").read_bytes() == before
    assert not [name for name in os.listdir(options().out) if name.endswith(".tmp")]


def test_a_run_begun_with_the_options_old_names_is_resumed(tiny, options):
    path = train_tokenizer(options(steps=3), model=tiny(), progress=_quiet).path / "config.json"
    config = read_sealed(path)
    for old, new in (("packed", "in_memory"), ("perceptual_weights", "vgg_weights")):
        config["options"][old] = config["options"].pop(new)
    write_sealed(path, config)
    run = train_tokenizer(options(steps=5, resume=True), model=tiny(), progress=_quiet)
    whole = train_tokenizer(options(steps=5, out=options().out.with_name("long")), model=tiny(), progress=_quiet)
    assert _same(run.model.state_dict(), whole.model.state_dict())
    assert json.loads(path.read_text())["options"]["in_memory"] is False


def test_another_run_is_not_resumed(tiny, options, pictures, tmp_path):
    train_tokenizer(options(steps=1), model=tiny(), progress=_quiet)
    with pytest.raises(ValueError, match="batch_size: the run was started with 4, got 5"):
        train_tokenizer(options(steps=2, batch_size=5, resume=True), model=tiny())
    (tmp_path / "fewer").mkdir()
    for path in sorted(pictures.iterdir())[:12]:
        (tmp_path / "fewer" / path.name).symlink_to(path)
    with pytest.raises(ValueError, match="data: the folder's files are not those"):
        train_tokenizer(options(steps=2, data=tmp_path / "fewer", resume=True), model=tiny())
    (options().out / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"checkpoint.pt: not a checkpoint"):
        train_tokenizer(options(steps=2, resume=True), model=tiny())


def test_two_runs_do_not_share_a_folder(tiny, options, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.0)
    with sole_owner(options().out), ThreadPoolExecutor() as other:
        run = other.submit(train_tokenizer, options(steps=1, resume=True), model=tiny(), progress=_quiet)
        with pytest.raises(ValueError, match="out: another process is training in"):
            run.result()
    assert train_tokenizer(options(steps=1, resume=True), model=tiny(), progress=_quiet).metrics


def test_a_second_run_that_waited_for_the_first_overwrites_nothing(tiny, options, monkeypatch):
    """It found an empty folder; when its turn comes, there is a run in it."""
    check = "dqcore.training.tokenizer.run.check_unused"
    calls = []
    monkeypatch.setattr(check, lambda out, *, resume: calls.append(out) or check_unused(out, resume=resume))
    fit = "dqcore.training.tokenizer.run.new_schedule"
    real = run_module.new_schedule

    def meanwhile(*args):
        if not (options().out / "checkpoint.pt").exists():
            monkeypatch.setattr(fit, real)
            train_tokenizer(options(steps=1), model=tiny(), progress=_quiet)
        return real(*args)

    monkeypatch.setattr(fit, meanwhile)
    with pytest.raises(ValueError, match="holds a run already"):
        train_tokenizer(options(steps=2), model=tiny(), progress=_quiet)
    assert read_state(options().out / "checkpoint.pt")["step"] == 1 and len(calls) >= 3


def test_a_model_without_its_checkpoint_and_foreign_files_are_left_alone(tiny, options):
    out = train_tokenizer(options(steps=1), model=tiny(), progress=_quiet).path
    (out / "checkpoint.pt").unlink()
    for resume in (False, True):
        with pytest.raises(ValueError, match="trained model without a checkpoint"):
            train_tokenizer(options(steps=1, resume=resume), model=tiny(), progress=_quiet)
    (out / "model" / "model.safetensors").unlink()
    (out / "config.json").write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=r"config\.json was not made by dqcore"):
        train_tokenizer(options(steps=1), model=tiny(), progress=_quiet)
    assert (out / "config.json").read_text() == '{"mine": 1}'


def test_a_resumed_run_keeps_its_split(tiny, options, tmp_path, monkeypatch):
    """One that held out a single photo, as before small folders held out more."""
    with monkeypatch.context() as before:
        before.setattr("dqcore.data.splits.least_held_out", lambda count: 1)
        started = train_tokenizer(options(steps=2, validation_share=0.02), model=tiny(), progress=_quiet)
    monkeypatch.setattr("dqcore.data.splits.least_held_out", lambda count: 2)
    resumed = train_tokenizer(options(steps=3, validation_share=0.02, resume=True), model=tiny(), progress=_quiet)
    assert read_sealed(resumed.path / "config.json")["data"] == read_sealed(started.path / "config.json")["data"]
    fresh = train_tokenizer(
        options(steps=1, validation_share=0.02, out=tmp_path / "fresh"), model=tiny(), progress=_quiet
    )
    assert read_sealed(fresh.path / "config.json")["data"]["validation"] == 2


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"options": 3}'])
def test_a_record_that_cannot_be_read(options, tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"resume: \S+config\.json cannot be read"):
        check_options(options(), tmp_path, free=())


@pytest.mark.parametrize(
    ("record", "held"),
    [
        ({"data": {"validation": 3}}, 3),
        ({"codes": {"held_out": 2}}, 2),
        ({"data": {"validation": 0}}, None),
        ({"data": {"validation": True}}, None),
        ({"data": {"validation": "3"}}, None),
        ({}, None),
    ],
    ids=str,
)
def test_a_resumed_run_holds_out_what_it_held_out(tmp_path, record, held):
    write_sealed(tmp_path / "config.json", record)
    assert held_out_before(tmp_path, resume=True) is None  # it has not begun
    (tmp_path / "checkpoint.pt").touch()
    assert held_out_before(tmp_path, resume=True) == held
    assert held_out_before(tmp_path, resume=False) is None
