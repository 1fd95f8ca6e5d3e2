"""Images from a prior and its tokenizer: pairs, previews, files."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

import dqcore
from dqcore.inference.sample import decode_preview, decode_sequence, load_pair, preview_maps, write_samples
from dqcore.models.priors.dq_transformer import DQTransformer
from dqcore.models.sampling.settings import Sampling


def test_previews_have_holes_where_nothing_is_known():
    torch.manual_seed(3)
    prior = DQTransformer.from_preset("dqtransformer-tiny", dim=16, num_heads=2, region_grid=(2, 3)).eval()
    preview, whole = (prior.generate(3, seed=4, stop_after=stop) for stop in (0, None))
    codes, grain = dqcore.unpack_codes(whole)
    seen = (grain == 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(preview_maps(preview, 256), torch.where(seen, codes, 256))
    assert torch.equal(preview_maps(whole, 256), codes)


def test_open_regions_of_a_preview_are_grey(saved_tokenizer):
    tokenizer = dqcore.DQVAE.from_pretrained(saved_tokenizer)
    sizes = {"dim": 16, "num_heads": 2, "region_grid": (2, 3), "codebook_size": 16}
    preview = DQTransformer.from_preset("dqtransformer-tiny", **sizes).eval().generate(3, seed=4, stop_after=0)
    images = decode_preview(tokenizer, preview)
    covered = (preview_maps(preview, 16) != 16).repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    assert images.shape == (3, 3, 32, 48)
    assert bool((images.masked_select(~covered) == 0.8).all())
    assert not bool((images.masked_select(covered) == 0.8).all())


def small_prior(**changes):
    sizes = {"dim": 16, "num_heads": 2, "region_grid": (2, 3), "codebook_size": 16}
    return DQTransformer.from_preset("dqtransformer-tiny", **(sizes | changes)).eval()


def test_samples_are_written_whatever_the_batches(saved_tokenizer, tmp_path, monkeypatch):
    prior, tokenizer = small_prior(), dqcore.DQVAE.from_pretrained(saved_tokenizer)
    sampling = Sampling(temperature=0.8, position_top_k=3)
    samples = write_samples(prior, tokenizer, tmp_path / "a", 3, sampling=sampling, seed=2)
    images = decode_sequence(tokenizer, prior.sample(3, None, sampling, seed=2))
    assert [path.name for path in samples.paths] == ["00000.png", "00001.png", "00002.png"]
    with Image.open(samples.paths[2]) as image:
        assert image.size == (48, 32)
        value = images[2, 0, 5, 7].clamp(-1, 1).add(1) * 127.5
        assert abs(image.getpixel((7, 5))[0] - float(value)) <= 1
    monkeypatch.setattr("dqcore.inference.sample.CHUNK", 2)
    fields = dataclasses.asdict(sampling)
    again = write_samples(prior, tokenizer, tmp_path / "b", 3, batch_size=1, slots=4, seed=2, **fields)
    for one, other in zip([*samples.paths, samples.grid], [*again.paths, again.grid], strict=True):
        with Image.open(one) as first, Image.open(other) as second:  # a convolution's last bits depend on the batch
            difference = np.asarray(ImageChops.difference(first, second))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_a_prior_brings_its_tokenizer(saved_tokenizer, tmp_path):
    small_prior().save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer was saved with this prior"):
        load_pair(tmp_path)
    prior, tokenizer = load_pair(tmp_path, saved_tokenizer)
    assert not prior.training and not tokenizer.training
    (tmp_path / "tokenizer").symlink_to(saved_tokenizer)
    assert load_pair(tmp_path)[1].config == tokenizer.config


def test_samples_of_an_earlier_call_go_first(saved_tokenizer, tmp_path):
    """So that a killed call mixes no two sets; a picture that somebody gave another name stays."""
    prior, tokenizer = small_prior(), dqcore.DQVAE.from_pretrained(saved_tokenizer)
    write_samples(prior, tokenizer, tmp_path, 4)
    (tmp_path / "00001.png").rename(tmp_path / "my best.png")

    def stop(done):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_samples(prior, tokenizer, tmp_path, 3, batch_size=1, written=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "my best.png"]
    assert write_samples(prior, tokenizer, tmp_path, 2, names=["a/b", "cat"]).removed == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a-b-00000.png",
        "cat-00001.png",
        "grid.png",
        "my best.png",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, "count: expected at least 1 and whole, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1 and whole, got 0"),
        ({"names": ["cat"]}, "names: expected at least 2, got 1"),
    ],
)
def test_numbers_of_samples_that_are_none(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_samples(small_prior(), None, tmp_path, **({"count": 2} | wrong))
    assert list(tmp_path.iterdir()) == []


def test_images_are_decoded_at_least_one_at_a_time():
    with pytest.raises(ValueError, match="batch_size: expected at least 1 and whole, got 0"):
        decode_sequence(None, small_prior().generate(1), batch_size=0)
