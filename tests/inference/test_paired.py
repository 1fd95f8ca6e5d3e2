"""Two results on the same photos: differences photo by photo, and refusals of results that were not measured alike."""

import dataclasses
import json
import math
import statistics

import pytest

from dqcore.data.photos import sample_folder
from dqcore.errors import InputError
from dqcore.inference.evaluate import EvaluationOptions, evaluate_photos
from dqcore.inference.paired import compare_results, paired_notes, read_result
from dqcore.models.tokenizers.dqvae import DQVAE


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    """The same six photos by two tokenizers, as they are stored."""
    found = []
    for index in range(2):
        folder = tmp_path_factory.mktemp("model")
        (model if not index else DQVAE(model.config).eval()).save_pretrained(folder)
        options = EvaluationOptions(size=64, limit=6, ratio=(0.2, 0.9)[index], peers=False)
        evaluation = evaluate_photos([sample_folder("heldout")], folder, options)
        found.append(json.loads(json.dumps(evaluation.as_json())))
    return found


def test_differences_are_those_of_each_photo(results):
    a, b = results
    found = compare_results(a, b)
    assert list(found) == ["psnr", "ssim", "bits_per_pixel"]  # photos of 64 pixels have no MS-SSIM, LPIPS was not asked
    pairs = [x - y for x, y in zip(a["each"]["psnr"], b["each"]["psnr"], strict=True)]
    psnr = found["psnr"]
    assert (psnr.a, psnr.b) == (pytest.approx(a["psnr"]), pytest.approx(b["psnr"]))
    assert psnr.difference.mean == pytest.approx(a["psnr"] - b["psnr"])
    assert psnr.difference.half == pytest.approx(2.571 * statistics.stdev(pairs) / math.sqrt(6))
    assert found["bits_per_pixel"].a == pytest.approx(a["bits_per_pixel"])
    assert found["bits_per_pixel"].difference.mean < 0
    stored = psnr.as_json()
    assert stored == {"a": psnr.a, "b": psnr.b, "difference": psnr.difference.mean, "half": psnr.difference.half}
    one = dataclasses.replace(psnr, difference=dataclasses.replace(psnr.difference, half=math.inf))
    assert one.as_json()["half"] is None  # JSON has no infinity
    assert psnr.text.split()[:2] == [f"{psnr.a:.3f}", f"{psnr.b:.3f}"] and psnr.text.endswith("dB")
    columns = {(line.index(line.split()[1]), line.index(line.split()[2])) for line in (x.text for x in found.values())}
    assert len(columns) == 1, "numbers of 3 and of 5 digits stand below each other"


def test_a_result_beside_itself_differs_by_nothing(results):
    found = compare_results(results[0], results[0])
    assert {"psnr", "bits_per_pixel"} <= found.keys()
    for each in found.values():
        assert (each.difference.mean, each.difference.half) == (0, 0)


@pytest.mark.parametrize("part", ["protocol", "images", "data hash"])
def test_results_that_were_not_measured_alike_are_refused(results, part):
    other = {**results[1], "measured": results[1]["measured"] | {part: "other"}}
    with pytest.raises(InputError, match=f"compare: these results were not measured alike: {part} .* and 'other'"):
        compare_results(results[0], other)


def test_lpips_of_other_networks_is_left_out(results):
    a, b = ({**each, "each": each["each"] | {"lpips": [0.5] * 6}} for each in results)
    same, other = ({**b, "measured": b["measured"] | {"lpips network": f"VGG16 {n}"}} for n in (1, 2))
    named = {**a, "measured": a["measured"] | {"lpips network": "VGG16 1"}}
    assert "lpips" in compare_results(named, same) and "lpips" not in compare_results(named, other)
    assert paired_notes(named, other)[0] == "lpips network 'VGG16 1' and 'VGG16 2'"
    assert paired_notes(named, same) == ["ratio 0.2 and 0.9"]


def test_stored_results(results, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(results[0]))
    assert read_result(path) == results[0]
    for damaged in ("[]", "{", '{"psnr": 1}', json.dumps({**results[0], "each": {}})):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"a\.json is no result of dqcore evaluate --json"):
            read_result(path)
    path.write_text(json.dumps({**results[0], "each": results[0]["each"] | {"psnr": [1.0]}}))
    with pytest.raises(InputError, match="damaged"):
        read_result(path)
