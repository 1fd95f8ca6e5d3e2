import pytest

from dqcore.data.photos import sample_folder
from dqcore.inference.evaluate import EvaluationOptions, evaluate_folder


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return folder


def test_the_protocol_tells_what_was_measured(checkpoint):
    options = EvaluationOptions(image_size=32, resize=48, limit=3, seed=2, num_codes=10)
    result, protocol, broken = evaluate_folder(sample_folder("heldout"), checkpoint, options)
    assert (result.num_images, result.codes_per_image, broken) == (3, 10, [])
    again = evaluate_folder(sample_folder("heldout"), checkpoint, options)[1]
    assert protocol == again
    del protocol["data hash"]
    assert protocol == {
        "images": 3,
        "broken images": 0,
        "resize": 48,
        "image size": 32,
        "ratio": None,
        "num codes": 10,
        "seed": 2,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        ({"batch_size": -1}, "batch_size: expected at least 1"),
        ({"image_size": 40}, "image_size: expected a multiple of 16"),
        ({"image_size": 64, "resize": 32}, r"resize: expected at least image_size \(64\), got 32"),
        ({"device": "cuda:77"}, "cuda:77"),
    ],
)
def test_options_out_of_range(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_folder(sample_folder("heldout"), checkpoint, EvaluationOptions(**options))
