"""``dqcore train tokenizer``; test_sample.py trains a prior."""

from dqcore.data.photos import sample_folder


def test_lpips_without_weights_is_one_line(fails, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    args = ("train", "tokenizer", "--data", sample_folder("heldout"), "--out", tmp_path / "run", "--batch-size", 2)
    message = fails(
        *args,
        "--preset",
        "dqvae-dual-tiny",
        "--image-size",
        64,
        "--steps",
        1,
        "--no-discriminator",
        "--perceptual",
        "lpips",
    )
    assert "--perceptual none" in message
