import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dqcore.data.images import image_to_tensor, read_image
from dqcore.data.photos import sample_folder, sample_photos
from dqcore.errors import InputError
from dqcore.inference.evaluate import EvaluationOptions, evaluate_photos
from dqcore.inference.rate import StreamCost
from dqcore.inference.reconstruct import reconstruct
from dqcore.stream import CodeTables, save_code_tables


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def test_the_protocol_tells_what_was_measured(checkpoint):
    options = EvaluationOptions(size=32, resize=48, limit=3, seed=2, num_codes=10, peers=False)
    found = evaluate_photos([sample_folder("heldout")], checkpoint, options)
    assert (found.numbers.num_images, found.numbers.codes_per_image, found.broken) == (3, 10, [])
    assert (found.peers, found.curve) == ((), ())
    again = evaluate_photos([sample_folder("heldout")], checkpoint, options).protocol
    assert found.protocol == again
    del found.protocol["data hash"], found.protocol["tokenizer"]
    assert found.protocol.pop("versions").startswith("dqcore 0")
    assert found.protocol == {
        "protocol": "central 32x32 pixels, shorter side resized to 48, 8-bit",
        "images": 3,
        "training": "3 unknown, the run kept no record of its files",
        "broken images": 0,
        "ratio": None,
        "num codes": 10,
        "seed": 2,
    }


@pytest.mark.parametrize(
    "given", [{"network": "efficientnet-lite0"}, {"inception_weights": Path("w.pth")}, {"resize_by": "clean"}], ids=list
)
def test_options_of_metrics_need_metrics(checkpoint, given):
    with pytest.raises(InputError, match=f"{next(iter(given))}: it is for metrics"):
        evaluate_photos([sample_folder("heldout")], checkpoint, EvaluationOptions(**given))


def test_single_files_at_their_native_size(model, checkpoint, tmp_path):
    Image.open(sample_photos("heldout")[0]).crop((0, 0, 45, 70)).save(tmp_path / "a.png")
    Image.open(sample_photos("heldout")[1]).crop((0, 0, 64, 33)).save(tmp_path / "b.png")
    found = evaluate_photos([tmp_path / "b.png", tmp_path / "a.png", tmp_path], checkpoint)
    results = [reconstruct(model, image_to_tensor(read_image(tmp_path / name))) for name in ("a.png", "b.png")]
    assert found.numbers.num_images == 2 and found.numbers.protocol == "native size, 8-bit"
    assert found.numbers.psnr == pytest.approx(sum(result.psnr for result in results) / 2, abs=1e-6)
    assert found.numbers.bytes_per_image == sum(result.num_bytes for result in results) / 2


def test_bytes_are_those_of_the_saved_tables(model, checkpoint, tmp_path):
    photo = sample_photos("heldout")[0]
    model.save_pretrained(tmp_path)
    counts = torch.zeros(2, model.config.codebook_size, dtype=torch.int64)
    result = reconstruct(model, image_to_tensor(read_image(photo)))
    counts[:, result.codes.flatten()[:3]] = 10_000
    save_code_tables(CodeTables.fit(counts, torch.tensor([500, 3])), tmp_path)
    sizes = [evaluate_photos([photo], path).numbers.bytes_per_image for path in (checkpoint, tmp_path)]
    cost = StreamCost.of_checkpoint(tmp_path, model.config)
    assert sizes[0] == result.num_bytes != sizes[1]
    assert sizes[1] == cost.bytes_of(result.codes, result.grain, 128, 128)


def test_peers_twin_and_curve_in_one_run(checkpoint):
    options = EvaluationOptions(size=48, limit=2, ratios=(0.0, 0.5), twin=checkpoint)
    found = evaluate_photos([sample_folder("heldout")], checkpoint, options)
    names = [peer.name for peer in found.peers]
    assert names == ["JPEG", "WebP", "twin (DQVAE)", "this tokenizer, at the twin's bytes"]
    assert found.peers[2].psnr == pytest.approx(found.numbers.psnr)
    assert found.peers[3].bytes_per_image <= found.peers[2].bytes_per_image
    assert [point.detail for point in found.curve] == [0.0, 0.5]
    assert found.curve[0].bytes_per_image < found.curve[1].bytes_per_image
    half = evaluate_photos(
        [sample_folder("heldout")], checkpoint, EvaluationOptions(size=48, limit=2, ratio=0.5, peers=False)
    )
    assert found.curve[1].psnr == pytest.approx(half.numbers.psnr, abs=1e-3)  # a batch of two, one by one
    assert found.curve[1].bytes_per_image == half.numbers.bytes_per_image
    assert json.loads(json.dumps(found.as_json()))["peers"][0]["name"] == "JPEG"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        ({"batch_size": -1}, "batch_size: expected at least 1"),
        ({"size": 8}, "size: expected at least 16 pixels, got 8"),
        ({"resize": 64}, "resize: expected none without size"),
        ({"size": 64, "resize": 32}, r"resize: expected at least size \(64\), got 32"),
        ({"ratios": (0.5, 1.5)}, r"ratios: expected numbers in \[0, 1\]"),
        ({"device": "cuda:77"}, "cuda:77"),
    ],
)
def test_options_out_of_range(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_photos([sample_folder("heldout")], checkpoint, EvaluationOptions(**options))


def test_nothing_to_measure(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="images: expected at least one"):
        evaluate_photos([], checkpoint)
    with pytest.raises(FileNotFoundError, match="gone"):
        evaluate_photos([tmp_path / "gone.png"], checkpoint)
    Image.new("RGB", (8, 30)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="8x30 pixels are too few to measure"):
        evaluate_photos([tmp_path], checkpoint)
