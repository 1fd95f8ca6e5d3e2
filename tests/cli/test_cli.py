import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dqcore
from dqcore import cli
from dqcore.data.photos import sample_folder, sample_photos
from dqcore.data.shards import read_shards


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    model = dqcore.DQVAE.from_preset("dqvae-dual-tiny", channels=8, latent_channels=16, dim=16, resolution=64)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for index, size in enumerate([(64, 48), (64, 48), (50, 30), (64, 48)]):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if index == 3 else ".") / f"{index}.png")
    return folder


def run(capsys, *args):
    """Exit code, stdout, stderr."""
    code = cli.main([str(arg) for arg in args])
    return code, *capsys.readouterr()


def fails(capsys, *args):
    """The one line that a mistake gets."""
    code, _, err = run(capsys, *args)
    assert code == 2
    assert re.fullmatch(r"dqcore: error: [^\n]+\n", err), err
    return err


def test_overview_lists_the_verbs(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert re.findall(r"^  (\w+(?: \w+)?)  ", out, re.MULTILINE) == list(cli.VERBS)
    assert run(capsys, "--version")[:2] == (0, f"dqcore {dqcore.__version__}\n")
    assert "train tokenizer" in run(capsys, "train", "--help")[1]
    assert run(capsys)[0] == 2


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        cli.main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: dqcore {verb}" in capsys.readouterr().out


def test_a_process_of_its_own(tmp_path):
    done = subprocess.run([sys.executable, "-m", "dqcore", "encod"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "dqcore: error: there is no verb 'encod', did you mean 'encode'? dqcore --help lists them all\n"
    )


def test_help_imports_little():
    """Torch, which ``import dqcore`` needs, and tyro; nothing of training, pictures or pages."""
    script = """
import sys
from dqcore import cli
cli.main(["--help"])
heavy = {"PIL", "jinja2", "matplotlib", "rich.progress", "safetensors", "lpips", "dqcore.training"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "tokeniser"], "there is no verb 'train tokeniser', did you mean 'train tokenizer'"),
        (["encode", "x"], "--checkpoint"),
        (["encode", "x", "--checkpoint", "y", "--out", "z", "--colour", "3"], "Unrecognized options: --colour"),
        (["evaluate", "x", "--checkpoint", "y", "--limit", "many"], "--limit"),
        (["evaluate", "missing", "--checkpoint", "y"], "missing: no such folder"),
        (["reconstruct", "--checkpoint", "y"], "images: expected at least one file"),
        (["reconstruct", "missing.png", "--checkpoint", "y"], "missing.png"),
        (["report", "missing"], "expected the folder of a training run"),
        (["convert", "missing.ckpt", "--config", "c", "--out", "o"], "missing.ckpt: no such file"),
        (["train", "tokenizer", "--data", "missing", "--perceptual", "none"], "missing: no such folder"),
        (["train", "tokenizer", "--data", "x", "--batch-size", "0"], "batch_size: expected at least 1"),
        (["demo", "--steps", "0"], "steps: expected at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_get_one_line(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def test_bugs_keep_their_traceback(monkeypatch):
    def bug():
        return np.zeros(3).reshape(2, 2)  # a ValueError, but not one of ours

    monkeypatch.setitem(cli.VERBS, "info", cli.VERBS["info"]._replace(run=lambda _: bug()))
    with pytest.raises(ValueError, match="reshape"):
        cli.main(["info"])


def test_interruption(capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.VERBS, "info", cli.VERBS["info"]._replace(run=interrupt))
    assert run(capsys, "info") == (130, "", "dqcore: interrupted\n")


def test_info(capsys, monkeypatch):
    from dqcore import backends

    code, out, _ = run(capsys, "info")
    assert code == 0
    assert re.search(r"dqvae-dual +48,098,437 parameters", out)
    assert re.search(r"^extension +available$", out, re.MULTILINE)
    monkeypatch.setattr(backends, "extension", lambda: None)
    monkeypatch.setattr(backends, "build_record", lambda: {"extension": "the C++ build failed: why", "cuda": "no nvcc"})
    out = run(capsys, "info")[1]
    assert "extension  missing: the C++ build failed: why" in out
    assert "CUDA       missing: no nvcc" in out


def test_reconstruct(capsys, checkpoint, pictures, tmp_path):
    common = ("--checkpoint", checkpoint, "--out", tmp_path / "o")
    code, out, _ = run(capsys, "reconstruct", pictures / "2.png", pictures / "0.png", *common)
    assert code == 0
    with Image.open(tmp_path / "o" / "2.png") as picture, Image.open(pictures / "2.png") as original:
        assert picture.size == (3 * 50 + 8, 30)
        assert np.array_equal(np.asarray(picture)[:, :50], np.asarray(original))
    assert re.search(r"2\.png: [\d.]+ dB, \d+ codes, [\d.]+ bits/pixel", out)
    assert " 18 codes" in run(capsys, "reconstruct", pictures / "0.png", *common, "--num-codes", 18)[1]


def test_reconstruct_refuses(capsys, checkpoint, pictures, tmp_path):
    common = ("--checkpoint", checkpoint, "--out", tmp_path / "o")
    (pictures / "broken.png").write_bytes(b"no image")
    assert "broken.png" in fails(capsys, "reconstruct", pictures / "broken.png", *common)
    assert "would overwrite" in fails(
        capsys, "reconstruct", pictures / "0.png", "--checkpoint", checkpoint, "--out", pictures
    )
    twice = (pictures / "0.png", pictures / "more" / ".." / "0.png")
    assert "two of them" in fails(capsys, "reconstruct", *twice, *common)
    assert "ratio" in fails(capsys, "reconstruct", pictures / "0.png", *common, "--ratio", 1.5)
    assert "no cuda:77" in fails(capsys, "reconstruct", pictures / "0.png", *common, "--device", "cuda:77")
    assert not (tmp_path / "o").exists()


def test_encode(capsys, checkpoint, pictures, tmp_path):
    (pictures / "1b.png").write_bytes(b"no image")
    out = tmp_path / "codes"
    code, text, err = run(capsys, "encode", pictures, "--checkpoint", checkpoint, "--out", out, "--shard-size", 3)
    assert code == 0
    assert "4 images" in text and "1 broken" in text and "1b.png" in err
    assert sorted(path.name for path in out.iterdir()) == [
        "codes-00000.safetensors",
        "codes-00001.safetensors",
        "index.json",
    ]
    model = dqcore.DQVAE.from_pretrained(checkpoint)
    found = {entry["name"]: (entry, codes, grain) for entry, codes, grain in read_shards(out)}
    assert sorted(found) == ["0.png", "1.png", "2.png", "more/3.png"]
    for name, (entry, codes, grain) in found.items():
        width, height = Image.open(pictures / name).size
        pixels = torch.from_numpy(np.asarray(Image.open(pictures / name)).copy()).permute(2, 0, 1) / 127.5 - 1
        padded = torch.nn.functional.pad(pixels[None], (0, -width % 16, 0, -height % 16), mode="replicate")
        with torch.no_grad():
            expected = model.encode(padded)
        assert entry["size"] == [height, width]
        assert torch.equal(codes, expected.codes[0]) and torch.equal(grain, expected.grain[0])


def test_encode_goes_on_and_refuses(capsys, checkpoint, pictures, tmp_path):
    out = tmp_path / "codes"
    args = ("encode", pictures, "--checkpoint", checkpoint, "--out", out, "--shard-size", 2)
    assert run(capsys, *args)[0] == 0
    whole = [(entry["name"], codes) for entry, codes, _ in read_shards(out)]
    index = json.loads((out / "index.json").read_text())
    index["images"] = index["images"][:2]  # as a kill after the first shard leaves it
    (out / "index.json").write_text(json.dumps(index))
    untouched = (out / "codes-00000.safetensors").stat().st_mtime_ns
    assert run(capsys, *args)[0] == 0
    again = [(entry["name"], codes) for entry, codes, _ in read_shards(out)]
    assert [name for name, _ in again] == [name for name, _ in whole]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(again, whole, strict=True))
    assert (out / "codes-00000.safetensors").stat().st_mtime_ns == untouched
    assert "codes of another ratio" in fails(capsys, *args, "--ratio", 0.5)
    assert "is not empty" in fails(capsys, "encode", pictures, "--checkpoint", checkpoint, "--out", pictures)


def test_evaluate(capsys, checkpoint, tmp_path):
    target = tmp_path / "numbers.json"
    args = ("evaluate", sample_folder("heldout"), "--checkpoint", checkpoint, "--json", target)
    code, out, _ = run(capsys, *args, "--limit", 4, "--seed", 5, "--image-size", 96, "--ratio", 0.25)
    assert code == 0
    numbers = json.loads(target.read_text())
    assert numbers["num_images"] == numbers["protocol"]["images"] == 4
    assert numbers["ratios"] == [0.75, 0.25]
    assert numbers["codes_per_image"] == 36 * 1.75
    assert f"{numbers['psnr']:.2f} dB" in out
    first = numbers["protocol"]["data hash"]
    run(capsys, *args, "--limit", 4, "--seed", 6)
    other = json.loads(target.read_text())["protocol"]
    assert other["data hash"] != first
    assert other["image size"] == 64  # what the model was made for
    run(capsys, *args, "--limit", 4, "--seed", 5)
    assert json.loads(target.read_text())["protocol"]["data hash"] == first


def test_evaluate_passes_over_broken_files(capsys, checkpoint, pictures):
    (pictures / "1b.png").write_bytes(b"no image")
    code, out, err = run(capsys, "evaluate", pictures, "--checkpoint", checkpoint, "--image-size", 32)
    assert code == 0
    assert re.search(r"^images +4$", out, re.MULTILINE)
    assert "1b.png" in err
    assert "multiple of 16" in fails(capsys, "evaluate", pictures, "--checkpoint", checkpoint, "--image-size", 40)


def test_a_damaged_checkpoint(capsys, checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes()[:200])
    args = ("reconstruct", sample_photos("heldout")[0], "--out", tmp_path / "o")
    assert "config.json" in fails(capsys, *args, "--checkpoint", tmp_path)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert "not a safetensors file" in fails(capsys, *args, "--checkpoint", tmp_path)
    (tmp_path / "empty").mkdir()
    assert "expected a folder with config.json" in fails(capsys, *args, "--checkpoint", tmp_path / "empty")


def test_convert_refuses(capsys, tmp_path):
    torch.save({"state_dict": {"encoder.x": torch.zeros(1)}}, tmp_path / "a.ckpt")
    (tmp_path / "c.json").write_text("[1]")
    args = ("convert", tmp_path / "a.ckpt", "--config", tmp_path / "c.json", "--out", tmp_path / "o")
    assert "expected a JSON object" in fails(capsys, *args)
    (tmp_path / "c.json").write_text("{}")
    fails(capsys, *args)
    assert not os.path.exists(tmp_path / "o")


def test_convert(capsys, tmp_path):
    """A model written in the authors' layout comes back the same."""
    torch.manual_seed(0)
    sizes = {"channels": 32, "latent_channels": 32, "dim": 32, "codebook_size": 40, "resolution": 32, "num_blocks": 1}
    widths = {"encoder_multipliers": (1, 1, 1, 1, 1), "decoder_multipliers": (1, 1, 1, 1)}
    model = dqcore.DQVAE(dqcore.DQVAEConfig(**sizes, **widths)).eval()
    torch.save({"state_dict": dqcore.convert.dqvae_to_official(model)}, tmp_path / "theirs.ckpt")
    router = {
        "target": "modules.dynamic_modules.RouterDual.DualGrainFeatureRouter",
        "params": {"num_channels": 32, "normalization_type": "group-32", "gate_type": "2layer-fc-SiLu"},
    }
    config = {"kind": "dual", "router": router, "ch": 32, "ch_mult": [1] * 5, "z_channels": 32, "num_res_blocks": 1}
    config |= {"resolution": 32, "codebook_size": 40, "encoder_attn_resolutions": [2, 4], "decoder_ch_mult": [1] * 4}
    config |= {"decoder_attn_resolutions": [4], "position_type": "fourier+learned"}
    (tmp_path / "theirs.json").write_text(json.dumps(config))
    args = ("convert", tmp_path / "theirs.ckpt", "--config", tmp_path / "theirs.json", "--out", tmp_path / "ours")
    code, out, _ = run(capsys, *args)
    assert code == 0
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in out
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        found, expected = dqcore.DQVAE.from_pretrained(tmp_path / "ours")(image), model(image)
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, rtol=0, atol=1e-5)


def test_train_then_report(capsys, tmp_path):
    out = tmp_path / "run"
    options = "--preset dqvae-dual-tiny --steps 2 --batch-size 2 --image-size 32 --perceptual none --no-discriminator"
    args = ["train", "tokenizer", "--data", sample_folder("heldout"), "--out", out, *options.split(), "--packed"]
    code, text, _ = run(capsys, *args, "--validation-share", 0.3)
    assert code == 0
    assert "dB on held-out images" in text
    assert "holds a run already" in fails(capsys, *args)
    code, text, _ = run(capsys, "report", out, "--photos", 2)
    assert (code, text) == (0, f"{out / 'report.html'}\n")
    assert (out / "report.html").read_text().count("<img ") == 2 * 4


def test_lpips_without_weights_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    args = ("train", "tokenizer", "--data", sample_folder("heldout"), "--out", tmp_path / "run", "--batch-size", 2)
    message = fails(
        capsys, *args, "--preset", "dqvae-dual-tiny", "--image-size", 64, "--steps", 1, "--no-discriminator"
    )
    assert "--perceptual none" in message
