import pytest
import torch
from PIL import Image

import dqcore
from dqcore.data.images import image_to_tensor
from dqcore.inference.complete import complete, kept_part
from dqcore.models.priors.dq_transformer import DQTransformer

TINY = {"channels": 8, "dim": 8, "latent_channels": 8, "groups": 4, "router_groups": 4, "codebook_size": 16}


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    prior = DQTransformer.from_preset("dqtransformer-tiny", dim=16, num_heads=2, region_grid=(2, 4), codebook_size=16)
    return prior.eval(), dqcore.DQVAE.from_preset("dqvae-dual-tiny", **TINY).eval()


def white(keep, size):
    """The box of what is kept."""
    return kept_part(keep, size).getbbox()


def test_which_part_is_kept(tmp_path):
    assert white("upper", (60, 40)) == (0, 0, 60, 20)
    assert white("left", (60, 40)) == (0, 0, 30, 40)
    assert white("5,6,7,8", (60, 40)) == (5, 6, 12, 14)
    mask = Image.new("L", (60, 40), 0)
    mask.paste(255, (10, 20, 30, 40))
    mask.save(tmp_path / "mask.png")
    assert white(str(tmp_path / "mask.png"), (60, 40)) == (10, 20, 30, 40)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("lower", "keep: expected upper, left, x,y,w,h in pixels or the file of a mask, got 'lower'"),
        ("1,2,3", "keep: expected upper"),
        ("1,2,3,x", "keep: expected upper"),
        ("--1,2,3,4", "keep: expected upper"),
        ("-,2,3,4", "keep: expected upper"),
        ("1-,2,3,4", "keep: expected upper"),
        (f"0,0,{10**99},4", "keep: expected upper"),
        ("50,0,20,10", "within 60x40 pixels"),
        ("0,0,0,10", "within 60x40 pixels"),
        ("0,-1,9,9", "within 60x40 pixels"),
        ("-1,0,9,9", "within 60x40 pixels"),
        ("0,35,9,9", "within 60x40 pixels"),
    ],
)
def test_parts_that_are_none(keep, message):
    with pytest.raises(ValueError, match=message):
        kept_part(keep, (60, 40))


def test_a_mask_of_another_size(tmp_path):
    Image.new("L", (6, 4)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="a mask of the photo's 60x40 pixels"):
        kept_part(str(tmp_path / "mask.png"), (60, 40))


def test_what_is_kept_stays_and_the_rest_is_drawn(pair):
    prior, tokenizer = pair
    photo = Image.effect_noise((128, 64), 90).convert("RGB")
    found = complete(prior, tokenizer, photo, "left", 3, seed=2)
    assert found.mask.tolist() == [[True, True, False, False]] * 2
    assert found.images.shape == (3, 3, 32, 64) and found.photo.shape == (3, 32, 64)
    assert torch.equal(found.photo, image_to_tensor(photo.resize((64, 32), Image.Resampling.BICUBIC)))
    kept = tokenizer.encode(found.photo[None]).grain[0][:, :2]
    assert found.num_given == int((4**kept).sum())
    assert bool((found.given[:, :, 32:] == torch.tensor(0.8)).all())
    encoding = tokenizer.encode(found.photo[None])
    whole = tokenizer.decode(encoding.codes, encoding.grain)[0].detach().clamp(-1, 1)
    torch.testing.assert_close(found.given[:, :, :32], whole[:, :, :32])  # decoded as the completions are
    assert not torch.equal(found.images[0], found.images[1])
    again = complete(prior, tokenizer, photo, "left", 1, seed=2)
    torch.testing.assert_close(again.images[0], found.images[0], rtol=0, atol=1e-4)


def test_all_or_nothing_kept(pair):
    photo = Image.new("RGB", (64, 32))
    for keep, what in (("0,0,64,32", "every region"), ("0,0,3,3", "no region")):
        with pytest.raises(ValueError, match=f"keep: expected to keep some of the 8 regions, {keep} keeps {what}"):
            complete(*pair, photo, keep, 1)
