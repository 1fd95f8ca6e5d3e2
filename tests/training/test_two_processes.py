import json
from pathlib import Path

import pytest
import torch
from processes import launch

from dqcore.training import train_tokenizer

SCRIPT = """
import dataclasses, importlib.util, os, sys
from pathlib import Path
import torch
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.training import TokenizerTraining, train_tokenizer

torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
runs = (("plain", False, "entropy"), ("adversarial", True, "feature"), ("gain", False, "gain"))
for name, discriminator, router in runs:
    torch.manual_seed(7)
    model = DQVAE(dataclasses.replace(shared.CONFIG, router=router, initialisation="uniform", restart=False))
    options = TokenizerTraining(
        data=Path(sys.argv[2]), out=Path(sys.argv[3]) / name, recipe="imagenet", steps=3, batch_size=4, image_size=32,
        learning_rate=1e-3, perceptual="none", precision="float32", discriminator=discriminator, discriminator_dim=4,
        validation_share=0.2, workers=0, log_every=1, checkpoint_every=2, threshold_images=8,
    )
    run = train_tokenizer(options, model=model, progress=lambda row: None)
    torch.save(run.model.state_dict(), f"{sys.argv[3]}/{name}-{os.environ['RANK']}.pt")
"""


STOPPED = """
import dataclasses, importlib.util, os, signal, sys
from pathlib import Path
import torch
from dqcore.models.tokenizers.dqvae import DQVAE
from dqcore.training import StoppedError, TokenizerTraining, train_tokenizer
from dqcore.training.tokenizer.stage import TokenizerStage

torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("shared", sys.argv[1])
shared = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shared)
train = TokenizerStage.train

def noisy(self, batch, completed, rate):
    if os.environ["RANK"] == "1" and completed == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return train(self, batch, completed, rate)

TokenizerStage.train = noisy
options = TokenizerTraining.small(
    sys.argv[2], Path(sys.argv[3]) / "stopped", steps=20, batch_size=4, image_size=32, validation_share=0, workers=0
)
model = DQVAE(dataclasses.replace(shared.CONFIG, router="random", initialisation="uniform", restart=False))
try:
    train_tokenizer(options, model=model, progress=lambda row: None)
except StoppedError as stop:
    Path(sys.argv[3], f"stopped-{os.environ['RANK']}").write_text(f"{stop.step} {stop.exit_code}")
"""


def _launch(script, pictures, folder):
    for code, _, errors in launch(script, Path(__file__).with_name("conftest.py"), pictures, folder, size=2):
        assert code == 0, errors


@pytest.fixture(scope="module")
def two_processes(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    _launch(SCRIPT, pictures, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "adversarial", "gain"])
def test_processes_hold_the_same_weights(two_processes, name):
    first, second = (torch.load(two_processes / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_two_processes_equal_one_with_the_joined_batch(two_processes, options, tiny):
    whole = options(
        steps=3,
        batch_size=8,
        warmup_steps=None,
        precision="float32",
        discriminator=False,
        validation_share=0.2,
        threshold_images=8,
        validate_every=2000,
    )
    model = tiny(router="entropy", initialisation="uniform", restart=False)
    expected = train_tokenizer(whole, model=model, progress=lambda row: None).metrics
    rows = [json.loads(line) for line in (two_processes / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for name in row.keys() - {"ratios", "val_ratios", "images_per_second"}:
            assert row[name] == pytest.approx(other[name], rel=2e-3, abs=1e-6), name


def test_both_processes_are_in_the_checkpoint(two_processes):
    state = torch.load(two_processes / "adversarial" / "checkpoint.pt", weights_only=True)
    assert len(state["random"]) == 2 and not torch.equal(state["random"][0][0], state["random"][1][0])
    assert json.loads((two_processes / "adversarial" / "config.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(pictures, tmp_path):
    _launch(STOPPED, pictures, tmp_path)
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)] == ["2 143", "2 143"]
    assert torch.load(tmp_path / "stopped" / "checkpoint.pt", weights_only=True)["step"] == 2
