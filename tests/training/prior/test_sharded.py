"""A prior whose weights lie in parts on all processes: the numbers of DDP, and checkpoints that any number reads."""

import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from PIL import Image

import dqcore
from dqcore.distributed import World
from dqcore.errors import InputError
from dqcore.training.prior.run import PriorTraining, train_prior
from dqcore.training.prior.stage import PriorStage
from dqcore.training.state import read_state, write_state

sys.path.insert(0, str(Path(__file__).parents[2]))  # where the tests' helpers lie

from processes import launch

pytestmark = pytest.mark.slow

TINY = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from dqcore.training.prior.run import PriorTraining, train_prior

torch.set_num_threads(1)
root, fields = Path(sys.argv[1]), json.loads(sys.argv[2])
paths = {"data": root / "images", "tokenizer": root / "tokenizer"}
for name, changes in json.loads(sys.argv[3]).items():
    run = train_prior(PriorTraining(**paths, out=root / name, **(fields | changes)), progress=lambda row: None)
    assert not any(hasattr(value, "full_tensor") for value in run.model.state_dict().values())
"""

#: Blocks are traced under FSDP2, and then run as they are: compiling them takes minutes.
TRACED = """
import functools, torch
torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="eager")
"""

#: Every process dies when the tensors of its second checkpoint are written, and ``checkpoint.pt`` is not.
KILLED = """
import os
from dqcore.training.shards import ShardedCheckpoints
complete = ShardedCheckpoints._complete
def die(self, written, folder, state):
    if state["step"] < 4:
        return complete(self, written, folder, state)
    written.result()
    os._exit(9)
ShardedCheckpoints._complete = die
"""

FIELDS = {
    "recipe": "paper",
    "preset": "dqtransformer-tiny",
    "image_size": 32,
    "steps": 4,
    "token_budget": 60,
    "log_every": 1,
    "checkpoint_every": 2,
    "device": "cpu",
    "precision": "float32",
    "schedule": "constant",
    "average_decay": 0.9,
    "gradient_clip": 1.0,
    "dropout": 0.0,
    "validation_share": 0.2,
}


def _launch(root, runs, size, script=SCRIPT, expected=0):
    for code, _, errors in launch(script, root, json.dumps(FIELDS), json.dumps(runs), size=size):
        assert code == expected, errors


def _weights(root, name):
    return dqcore.DQTransformer.from_pretrained(root / name / "model").state_dict()


def _rows(root, name):
    return [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]


def _same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerance)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Photos, a tokenizer, and runs of two processes: ``ddp``, ``sharded``, of parts of batches, and half a run."""
    root = tmp_path_factory.mktemp("sharded")
    gen = torch.Generator().manual_seed(0)
    (root / "images").mkdir()
    for number in range(16):
        pixels = torch.randint(0, 256, (40, 40, 3), generator=gen, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / "images" / f"{number:02d}.png")
    torch.manual_seed(0)
    dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY).save_pretrained(root / "tokenizer")
    parts = {"accumulate": 2, "steps": 2}  # in the second step 2 parts of 6 images, and 1 part of 1 image
    runs = {"ddp": {}, "sharded": {"shard": True}, "half": {"shard": True, "steps": 2}}
    runs |= {"ddp-parts": parts, "sharded-parts": parts | {"shard": True}}
    half = {"precision": "bfloat16", "steps": 2}
    runs |= {"ddp-half": half, "sharded-half": half | {"shard": True}}
    _launch(root, runs, size=2)
    return root


@pytest.mark.parametrize("end", ["", "-parts"])
def test_numbers_are_those_of_ddp(root, end):
    for row, other in zip(_rows(root, f"sharded{end}"), _rows(root, f"ddp{end}"), strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"images_per_second"}:
            assert row[name] == pytest.approx(other[name], rel=1e-5), name
    _same(_weights(root, f"sharded{end}"), _weights(root, f"ddp{end}"), rtol=1e-4, atol=1e-5)


def test_compiled_blocks_are_sharded_too(root):
    _launch(root, {"compiled": {"shard": True, "compile": True, "steps": 2}}, size=2, script=TRACED + SCRIPT)
    _same(_weights(root, "compiled"), _weights(root, "half"), rtol=1e-4, atol=1e-5)


def test_in_bfloat16_they_are_nearly_those_of_ddp(root):
    for row, other in zip(_rows(root, "sharded-half"), _rows(root, "ddp-half"), strict=True):
        for name in row.keys() - {"images_per_second"}:
            assert row[name] == pytest.approx(other[name], rel=2e-2), name
    assert _weights(root, "sharded-half")["content_embedding.weight"].dtype == torch.float32


def test_processes_validate_equally_often_and_count_each_image_once():
    """A process with a batch less would leave the others waiting in the network."""
    for count, size in ((13, 2), (1, 3), (7, 3)):
        found = []
        for rank in range(size):
            stage = object.__new__(PriorStage)
            about = {"held_out": torch.arange(count), "world": World(rank, size, torch.device("cpu"))}
            about |= {"options": SimpleNamespace(token_budget=6), "step": SimpleNamespace(sharded=True)}
            for name, value in (about | {"codes": SimpleNamespace(lengths=torch.ones(count))}).items():
                object.__setattr__(stage, name, value)
            with mock.patch.object(PriorStage, "_codes_of", lambda self, images: (images, None)):
                found.append([images for _, _, images in stage._validation_batches()])
        assert len({len(batches) for batches in found}) == 1
        assert sum(map(sum, found)) == count


def test_a_table_of_contents_runs_no_code(root):
    shutil.copytree(root / "half", root / "forged")
    table = root / "forged" / "checkpoint-0000002" / ".metadata"
    table.write_bytes(pickle.dumps(print))
    state = read_state(root / "forged" / "checkpoint.pt")
    state["files"][".metadata"] = hashlib.sha256(table.read_bytes()).hexdigest()
    write_state(root / "forged" / "checkpoint.pt", state)
    with pytest.raises(InputError, match="its table of contents names"):
        _alone(root, "forged", resume=True)


def test_a_run_has_one_checkpoint_and_says_what_it_is(root):
    folders = [path.name for path in (root / "sharded").iterdir() if path.is_dir() and path.name != "model"]
    assert folders == ["checkpoint-0000004"]
    state = read_state(root / "sharded" / "checkpoint.pt")
    assert (state["step"], state["shards"]) == (4, "checkpoint-0000004")
    assert state["files"].keys() == {path.name for path in (root / "sharded" / "checkpoint-0000004").iterdir()}
    config = json.loads((root / "sharded" / "config.json").read_text())
    assert config["model"]["kind"] == "DQTransformer"
    assert config["parameters"] == json.loads((root / "ddp" / "config.json").read_text())["parameters"]


def _alone(root, name, **changes):
    paths = {"data": root / "images", "tokenizer": root / "tokenizer", "out": root / name}
    return train_prior(PriorTraining(**paths, **(FIELDS | changes)), progress=lambda row: None)


def test_any_number_of_processes_goes_on(root):
    for name in ("again", "three", "alone"):
        shutil.copytree(root / "half", root / name)
    _alone(root, "whole", steps=2)
    shutil.copytree(root / "whole", root / "split")
    resumed = {"resume": True, "shard": True}
    _launch(root, {"again": resumed, "split": resumed | {"steps": 2}}, size=2)
    _same(_weights(root, "again"), _weights(root, "sharded"), rtol=0, atol=0)
    _same(_weights(root, "split"), _weights(root, "whole"), rtol=0, atol=0)
    _launch(root, {"three": resumed | {"steps": 2}}, size=3)
    _same(_weights(root, "three"), _weights(root, "half"), rtol=0, atol=0)
    _alone(root, "alone", steps=2, resume=True)
    _same(_weights(root, "alone"), _weights(root, "half"), rtol=0, atol=0)
    run = _alone(root, "alone", steps=3, resume=True)
    assert run.metrics[-1]["step"] == 3
    assert "model" in read_state(root / "alone" / "checkpoint.pt")


def test_a_kill_while_a_checkpoint_is_written_loses_what_came_after_the_one_before(root):
    _launch(root, {"killed": {"shard": True}}, size=2, script=KILLED + SCRIPT, expected=9)
    assert read_state(root / "killed" / "checkpoint.pt")["step"] == 2
    assert (root / "killed" / "checkpoint-0000004").is_dir()
    _launch(root, {"killed": {"resume": True, "shard": True}}, size=2)
    _same(_weights(root, "killed"), _weights(root, "sharded"), rtol=0, atol=0)
    assert [path.name for path in (root / "killed").glob("checkpoint-*")] == ["checkpoint-0000004"]


def test_damage_is_noticed(root, tmp_path):
    shutil.copytree(root / "half", root / "damaged")
    path = next((root / "damaged" / "checkpoint-0000002").glob("__0_*"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"{path.name}: missing or damaged"):
        _alone(root, "damaged", resume=True)
    shutil.rmtree(path.parent)
    with pytest.raises(InputError, match="missing or damaged"):
        _alone(root, "damaged", resume=True)
