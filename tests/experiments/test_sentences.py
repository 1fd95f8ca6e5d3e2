"""Each experiment's sentences for results as the paper has them, and for their opposite."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from dqcore.errors import InputError
from dqcore.experiments import EXPERIMENTS, headline, read_results, read_summaries, write_summary
from dqcore.experiments.budget import settled
from dqcore.experiments.ratios import at_codes
from dqcore.experiments.results import Results
from dqcore.training import PriorTraining, TokenizerTraining

spec = importlib.util.spec_from_file_location("made_up", Path(__file__).with_name("made_up.py"))
made_up = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made_up)
MADE_UP, rows = made_up.MADE_UP, made_up.rows


def claims_of(name, good, seeds=3):
    kept = [row for row in rows(name, MADE_UP[name](good)) if row["arm"]["seed"] < seeds]
    return EXPERIMENTS[name].summarise(Results(kept))["claims"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_both_outcomes(name):
    good, bad = claims_of(name, True), claims_of(name, False)
    assert len(good) == len(bad) >= 2
    assert {claim["verdict"] for claim in good} == {"holds"}, good
    assert {claim["verdict"] for claim in bad} == {"does not hold"}, bad
    for claim in (*good, *bad):
        assert claim["sentence"] == f"{claim['claim']}: {claim['measured']}; {claim['verdict']}."
        assert "±" in claim["measured"] and "nan" not in claim["measured"]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_seeds_say_nothing(name):
    assert {claim["verdict"] for claim in claims_of(name, True, seeds=2)} == {"cannot be said at this scale"}


def test_fixed_lengths_at_equal_codes_lie_between_the_strides():
    results = Results(rows("ratios", MADE_UP["ratios"](True)))
    assert at_codes(results, 100, "psnr")[1] == pytest.approx(21.5)
    assert at_codes(results, 200, "psnr")[1] == pytest.approx(22.0)  # half of the way from 100 to 400 codes
    assert at_codes(results, 90, "psnr") == {} == at_codes(results, 500, "psnr")


def test_a_share_has_settled_after_it_was_far_off_for_the_last_time():
    curve = [[step, 0.9 if step in (1, 2, 6) else 0.5] for step in range(1, 11)]
    assert settled(curve, window=1) == 0.6
    assert settled([[1, 0.5], [2, 0.52]]) == 0 and settled([[1, 0.5], [2, 0.9]], 1) == 1


def test_summaries_are_made_from_the_stored_files(tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        read_summaries(EXPERIMENTS, tmp_path)
    for row in rows("router", MADE_UP["router"](True)):
        path = tmp_path / "router" / f"{row['arm']['name']}-seed{row['arm']['seed']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(row))
    found = read_summaries(EXPERIMENTS, tmp_path)
    assert [summary["name"] for summary in found] == ["router", "headline"]
    protocol = json.loads((tmp_path / "router" / "summary.json").read_text())["protocol"]
    assert protocol["seeds"] == [0, 1, 2] and protocol["photos"] == ["discs"] and protocol["commit"] == ["abc"]
    assert protocol["steps"] == ["2 steps"] and protocol["minutes of training"] == 18.0
    assert "interrupted" not in " ".join(protocol)
    path.write_text(json.dumps(row | {"resumed": True}))
    again = read_results(tmp_path / "router").protocol()
    assert again["interrupted runs, of which only the last part counts"] == 1
    assert write_summary(EXPERIMENTS["maps"], tmp_path) is None
    (tmp_path / "router" / "broken-seed0.json").write_text("{}")
    with pytest.raises(InputError, match=r"broken-seed0\.json is no result"):
        read_results(tmp_path / "router")


def refused(folder, text):
    """Whether the result with this text is refused by its name."""
    path = folder / "router" / "gain-r0.5-seed0.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(InputError, match=r"out: .*gain-r0\.5-seed0\.json is no result of an arm"):
        read_summaries(EXPERIMENTS, folder)


@pytest.mark.parametrize("text", ["", '{"arm": ', "null", "[]", '"arm"'])
def test_a_damaged_result_is_named(tmp_path, text):
    refused(tmp_path, text)


@pytest.mark.parametrize("place", ["arm", "arm.scale", "arm.seed", "photos", "made_by", "measured", "seconds.training"])
def test_a_result_that_lacks_something_is_named(tmp_path, place):
    row = rows("router", MADE_UP["router"](True))[0]
    *way, last = place.split(".")
    (row[way[0]] if way else row)[last] = None
    refused(tmp_path, json.dumps(row))


NO_NUMBERS = ['"text"', '"3.5"', "[]", "[1]", "{}", "true", "NaN", "Infinity", "1e999", "-1e999", "1" + "0" * 400]
NO_CURVES = [
    '"text"',
    "3",
    "{}",
    "[1]",
    "[[1]]",
    '[[1, "a"]]',
    '[["a", 1]]',
    "[[1, null]]",
    "[[NaN, 1]]",
    "[[1, 1e999]]",
]


@pytest.mark.parametrize(
    ("name", "place", "texts"),
    [
        ("router", ("measured", "0.5", "psnr"), NO_NUMBERS),
        ("ratios", ("measured", "equal", "codes_per_image"), [*NO_NUMBERS, "0", "-1"]),
        ("ratios", ("measured", "equal"), ['"text"', "3", "[1]"]),
        ("layers", ("measured", "rise"), NO_NUMBERS),
        ("budget", ("measured", "training", "fine_ratio"), NO_CURVES),
        ("router", ("seconds", "training"), [*NO_NUMBERS, "null", "-1"]),
        ("router", ("arm", "seed"), ["1.5", '"0"', "true", "null", "NaN"]),
        ("router", ("arm", "options", "minutes"), ['"5"', "null", "NaN"]),
        ("router", ("made_by", "threads"), ["NaN"]),
        ("layers", ("arm", "name"), ['"text"', '"layers-x-y"', "3"]),
    ],
)
def test_what_is_no_number_is_named_with_its_file(tmp_path, name, place, texts):
    made = rows(name, MADE_UP[name](True))
    folder = tmp_path / name
    folder.mkdir()
    for row in made:
        (folder / f"{row['arm']['name']}-seed{row['arm']['seed']}.json").write_text(json.dumps(row))
    row = json.loads(json.dumps(made[0]))  # rows share their parts
    key, value = f"{row['arm']['name']}-seed{row['arm']['seed']}", row
    *way, last = place
    for part in way:
        value = value[part]
    value[last] = "HERE"
    for text in texts:
        (folder / f"{key}.json").write_text(json.dumps(row).replace('"HERE"', text))
        with pytest.raises(InputError) as error:
            read_summaries({name: EXPERIMENTS[name]}, tmp_path)
        message = str(error.value)
        assert message.startswith(f"out: {folder}/{key}.json is no result of an arm ({'.'.join(place)}"), (
            text,
            message,
        )
        assert "\n" not in message and len(message) < 400


def test_a_copied_result_is_not_counted_twice(tmp_path):
    row = rows("router", MADE_UP["router"](True))[0]
    (tmp_path / "router").mkdir()
    for name in (f"{row['arm']['name']}-seed0", "copy-seed0"):
        (tmp_path / "router" / f"{name}.json").write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"copy-seed0\.json is no result of an arm \(arm\.name and arm\.seed: "):
        read_results(tmp_path / "router")


def test_a_number_that_is_not_there_is_left_out():
    made = rows("router", MADE_UP["router"](True))
    made[0]["measured"] = {"0.5": {"psnr": None}}
    name = made[0]["arm"]["name"]
    assert sorted(Results(made).values(name, "0.5", "psnr")) == [1, 2]
    assert sorted(Results(made).values(name, "0.5", "ssim")) == [1, 2]
    assert Results(made).curve(name, "fine_ratio") == []


def test_hours_are_images_over_rates():
    ffhq = next(row for row in headline.ROWS if row.data == "FFHQ")
    assert ffhq.tokenizer_hours == pytest.approx(60_000 * 150 / 76 / 3600)
    assert ffhq.prior_hours == pytest.approx(60_000 * 100 / 218 / 3600)
    large, base = (next(r for r in headline.ROWS if r.data == f"ImageNet, {size}") for size in ("large", "base"))
    assert large.prior_hours == pytest.approx(base.prior_hours * 611.2 / 308.9)
    assert {row.fid for row in headline.ROWS} >= {4.91, 6.54, 6.21}


def test_crops_of_a_headline_result_are_those_of_its_data():
    for row in headline.ROWS:
        tokenizer, prior, *_ = (shlex.split(command) for command in headline.commands(row))
        name, views, epochs = (prior[prior.index(f"--{word}") + 1] for word in ("preprocessing", "views", "epochs"))
        assert tokenizer[tokenizer.index("--preprocessing") + 1] == name and int(views) * int(epochs) == 100
        options = TokenizerTraining(recipe=row.recipe, data=Path(row.folder), preprocessing=name).resolved()
        assert options.crop == {"FFHQ": "random-resized", "CelebA-HQ": "center", "LSUN church": "center"}.get(
            row.data, "random"
        )
        prior_options = PriorTraining(
            data=Path(row.folder), tokenizer=Path("t"), preprocessing=name, views=int(views)
        ).resolved()
        assert prior_options.views == int(views)


@pytest.mark.parametrize(
    ("name", "papers"),
    [
        ("budget", {"1": "3.6288", "10": "3.5311", "100": "3.7932"}),
        ("layers", {"2": "4.91", "4": "5.32", "6": "6.08"}),
        ("priors", {"coarse to fine": "4.91", "raster-dynamic": "about 18", "global-local": "about 24"}),
    ],
)
def test_what_the_paper_found_stands_beside_it(name, papers):
    (table,) = EXPERIMENTS[name].summarise(Results(rows(name, MADE_UP[name](True))))["tables"]
    assert "the paper's" in table["columns"][-1]
    found = {row[0]: row[-1] for row in table["rows"]}
    assert papers.items() <= found.items() and set(found.values()) <= {*papers.values(), "-"}
