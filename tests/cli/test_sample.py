"""``dqcore train prior`` and ``dqcore sample``, from images to PNGs, and what they say about mistakes."""

import json

import pytest
import torch
from PIL import Image

import dqcore
from dqcore.cli import main
from dqcore.models.auto import fingerprint
from dqcore.models.priors.global_local import GlobalLocal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two classes, a tokenizer, and a prior trained by the command line on its codes."""
    root = tmp_path_factory.mktemp("cli")
    for number in range(8):
        path = root / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (30 * number, 100, 50)).save(path)
    torch.manual_seed(0)
    sizes = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}
    dqcore.DQVAE.from_preset("dqvae-dual-tiny", **sizes).save_pretrained(root / "tokenizer")
    assert main(words("encode {0}/images --checkpoint {0}/tokenizer --out {0}/codes", root)) == 0
    train = "train prior --codes {0}/codes --tokenizer {0}/tokenizer --classes --label-dropout 0.1 --out {0}/run"
    assert main(words(train + " --preset dqtransformer-tiny --steps 2 --token-budget 50 --device cpu", root)) == 0
    return root


def words(line, root):
    return line.format(root).split()


def test_samples_are_drawn_and_depend_on_the_seed(folder, tmp_path, capsys):
    base = f"sample {folder}/run --device cpu --count 3 --out "
    assert main([*base.split(), str(tmp_path / "a"), "--label", "b", "--guidance", "2"]) == 0
    assert "3 images in" in capsys.readouterr().out
    assert main([*base.split(), str(tmp_path / "b"), "--label", "1", "--guidance", "2"]) == 0
    assert main([*base.split(), str(tmp_path / "c"), "--label", "b", "--guidance", "2", "--seed", "1"]) == 0
    pictures = [(tmp_path / name / "00002.png").read_bytes() for name in "abc"]
    assert pictures[0] == pictures[1] != pictures[2]
    assert (
        main([*base.split(), str(tmp_path / "d"), "--guidance", "2", "--precision", "bfloat16", "--cache", "int8"]) == 0
    )
    assert len(list((tmp_path / "d").glob("*-0000?.png"))) == 3
    with Image.open(tmp_path / "a" / "grid.png") as grid:
        assert grid.size == (3 * 32 + 4, 32)
    capsys.readouterr()


def test_all_classes_are_named_and_none_is_stale(folder, tmp_path, capsys):
    out = tmp_path / "out"
    line = f"sample {folder}/run --device cpu --label all --out {out} --count "
    out.mkdir()
    Image.new("RGB", (3, 3)).save(out / "mine.png")
    assert main([*line.split(), "3"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "a-00000.png",
        "a-00002.png",
        "b-00001.png",
        "grid.png",
        "mine.png",
    ]
    assert main([*line.split(), "1"]) == 0
    assert "2 older samples" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["a-00000.png", "grid.png", "mine.png"]
    Image.new("RGB", (3, 3)).save(out / "b-00001.png")
    assert main([*line.split(), "2"]) == 2
    assert "b-00001.png is there already and was not made by dqcore" in capsys.readouterr().err


def test_the_tokenizer_lies_beside_the_prior(folder):
    assert fingerprint(folder / "run" / "model" / "tokenizer") == fingerprint(folder / "tokenizer")
    assert fingerprint(folder / "tokenizer") == json.loads((folder / "codes" / "index.json").read_text())["tokenizer"]
    config = json.loads((folder / "run" / "model" / "config.json").read_text())
    assert config["tokenizer"] == fingerprint(folder / "tokenizer")
    assert config["num_classes"] == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sample {0}/nothing", "nothing: no such folder"),
        ("sample {0}/tokenizer", "expected one of DQTransformer"),
        ("sample {0}/run --label c", "there is no class 'c', expected one of a, b"),
        ("sample {0}/run --count 0", "count: expected at least 1, got 0"),
        ("sample {0}/run --slots 0", "slots: expected at least 1, got 0"),
        ("sample {0}/run --temperature 0", "temperature: expected more than 0"),
        ("train prior --out {0}/x", "codes: expected either codes or data"),
        ("train prior --codes {0}/images --out {0}/x", "dqcore encode writes one"),
        ("train prior --data {0}/images --tokenizer {0}/nothing --out {0}/x", "nothing: no such folder"),
        ("train prior --codes {0}/codes --preset dqtransformer-tin --out {0}/x", "nearest is 'dqtransformer-tiny'"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(folder, line, message, capsys):
    assert main(words(line, folder)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dqcore: error: ") and message in error


def test_a_prior_without_positions_refuses_settings_for_them(folder, tmp_path, capsys):
    sizes = {"dim": 16, "num_heads": 2, "region_grid": (2, 2), "codebook_size": 16}
    GlobalLocal.from_preset("global-local-tiny", **sizes).save_pretrained(tmp_path)
    line = f"sample {tmp_path} --tokenizer {folder}/tokenizer --device cpu --count 1 --out {tmp_path}/out"
    assert main(line.split()) == 0
    assert main([*line.split(), "--precision", "bfloat16"]) == 0
    assert main([*line.split(), "--position-top-k", "3"]) == 2
    assert "position_top_k: expected None, a Global-Local prior has no positions" in capsys.readouterr().err


def test_another_tokenizer_is_refused(folder, tmp_path, capsys):
    torch.manual_seed(1)
    sizes = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}
    dqcore.DQVAE.from_preset("dqvae-dual-tiny", **sizes).save_pretrained(tmp_path)
    assert main(["sample", f"{folder}/run", "--tokenizer", str(tmp_path), "--device", "cpu"]) == 2
    assert "trained on the codes of tokenizer" in capsys.readouterr().err


def test_help_lists_the_options(capsys):
    for verb, option in (("train prior", "--token-budget"), ("sample", "--guidance")):
        assert main([*verb.split(), "--help"]) == 0
        assert option in capsys.readouterr().out
