"""``dqcore encode``."""

import json

import numpy as np
import torch
from PIL import Image

import dqcore
from dqcore.data.shards import read_shards


def test_encode(run, checkpoint, pictures, tmp_path):
    (pictures / "1b.png").write_bytes(b"no image")
    out = tmp_path / "codes"
    code, text, err = run("encode", pictures, "--checkpoint", checkpoint, "--out", out, "--shard-size", 3)
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


def test_encode_goes_on_and_refuses(run, fails, checkpoint, pictures, tmp_path):
    out = tmp_path / "codes"
    args = ("encode", pictures, "--checkpoint", checkpoint, "--out", out, "--shard-size", 2)
    assert run(*args)[0] == 0
    whole = [(entry["name"], codes) for entry, codes, _ in read_shards(out)]
    index = json.loads((out / "index.json").read_text())
    index["images"] = index["images"][:2]  # as a kill after the first shard leaves it
    (out / "index.json").write_text(json.dumps(index))
    untouched = (out / "codes-00000.safetensors").stat().st_mtime_ns
    assert run(*args)[0] == 0
    again = [(entry["name"], codes) for entry, codes, _ in read_shards(out)]
    assert [name for name, _ in again] == [name for name, _ in whole]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(again, whole, strict=True))
    assert (out / "codes-00000.safetensors").stat().st_mtime_ns == untouched
    assert "codes of another ratio" in fails(*args, "--ratio", 0.5)
    assert "is not empty" in fails("encode", pictures, "--checkpoint", checkpoint, "--out", pictures)
