"""Each number that the README has of a benchmark is the stored row's; a row whose peer is faster is there, too."""

import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
VQP = "vector_quantize_pytorch"


@cache
def rows(machine):
    record = json.loads((ROOT / "benchmarks" / "results" / f"{machine}.json").read_text())
    return {row["name"]: row["extra_info"] for row in record["rows"]}


def attention(direction, dropout, sizes=(0, 1)):
    return [f"bench_varlen_attention::bench_varlen_attention[{direction},{dropout},{i}]" for i in sizes]


def long_ones(dropout):
    return [name for way in ("forward", "backward") for name in attention(way, dropout, [2])]


#: Beginning of a line of a table, its rows, and the peers named there.
H100 = [
    ("| `nearest_code`, float32", ["bench_nearest_code::bench_nearest_code[0]"], ["cdist", "compiled_tf32"]),
    ("| the same in bfloat16 and", [f"bench_nearest_code::bench_nearest_code[{i}]" for i in (1, 2)], ["addmm"]),
    ("| the same, float32, 1048576", ["bench_nearest_code::bench_nearest_code[3]"], ["addmm", "compiled_tf32"]),
    ("| `dynamic_lookup`", ["bench_dynamic_lookup::bench_dynamic_lookup[torch.float32]"],
     ["replicated", "replicated_tf32"]),
    ("| training step of the quantizer, 32", ["bench_quantizer::bench_training_step[0.5]"], ["formula", VQP]),
    ("| the same, eagerly", ["bench_quantizer::bench_eager_training_step[]"], [VQP, "formula"]),
    ("| `varlen_attention` forward", attention("forward", "0.0"), ["flash_attention_2", "padded"]),
    ("| its backward | 468", attention("backward", "0.0"), ["flash_attention_2", "padded"]),
    ("| the same with dropout", attention("forward", "0.1"), ["flash_attention_2", "padded"]),
    ("| its backward | 544", attention("backward", "0.1"), ["flash_attention_2", "padded"]),
    ("| 64 sequences", long_ones("0.0"), ["flash_attention_2", "padded"]),
    ("| these with dropout", long_ones("0.1"), ["flash_attention_2", "padded"]),
    ("| 32 sequences in float32",
     [f"bench_varlen_attention::bench_float32[{way},tf32x3]" for way in ("forward", "backward")],
     ["efficient_attention"]),
    ("| `decode_attention`", ["bench_decode_attention::bench_decode_attention[500]"], ["flash_attention_2"]),
    ("| `expand_features`", [f"bench_expand_features::bench_expand_features[{kind}]" for kind in ("planes", "vectors")],
     ["where", "copy"]),
    ("| `patch_entropy`, 32", ["bench_patch_entropy::bench_patch_entropy[]"], ["dense formula"]),
]  # fmt: skip


def line_of(beginning):
    (line,) = [line for line in README.splitlines() if line.startswith(beginning)]
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


def agrees(written, value):
    """Whether a number is the value, rounded to as many digits as are written."""
    digits = len(written.partition(".")[2])
    return abs(float(written) - value) <= 0.5 * 10**-digits + 1e-12


@pytest.mark.parametrize(("beginning", "names", "peers"), H100, ids=[beginning for beginning, *_ in H100])
def test_h100(beginning, names, peers):
    _, time, against = line_of(beginning)
    found = [rows("h100")[name] for name in names]
    factor = 1e3 if time.endswith(" ms") else 1e6
    times = re.findall(r"[\d.]+", time)
    assert len(times) == len(found)
    assert all(agrees(word, factor * row["seconds"]) for word, row in zip(times, found, strict=True))
    ratios = [row["speedup"][peer] for peer in peers for row in found]
    numbers = re.findall(r"\d+\.\d+", against)
    assert len(numbers) == len(ratios)
    assert all(agrees(word, ratio) for word, ratio in zip(numbers, ratios, strict=True)), (numbers, ratios)
    bold = re.findall(r"\d+\.\d+", "".join(re.findall(r"\*\*.*?\*\*", against)))
    assert len(bold) == sum(ratio < 1 for ratio in ratios)


def test_sampling_and_training_on_an_h100():
    base = rows("h100")["bench_generate::bench_base_model[]"]
    assert "66 images/s | recomputation 18.7 |" in README
    assert agrees("66", base["images_per_second"]) and agrees("18.7", base["speedup_over_recomputation"])
    steps = [rows("h100")[f"bench_prior_training::bench_base_training_step[{way}]"] for way in (False, True)]
    assert "; compiled | 147, 136 ms | the peak of its products: **0.34**, **0.37** |" in README
    assert all(agrees(ms, 32e3 / row["images_per_second"]) for ms, row in zip(("147", "136"), steps, strict=True))
    assert all(agrees(part, row["share_of_matrix_peak"]) for part, row in zip(("0.34", "0.37"), steps, strict=True))
    packed = rows("h100")["bench_prior_training::bench_packed_training_step[]"]
    assert "| training step of a tiny prior, packed | 19 ms | padded **0.99** |" in README
    assert agrees("19", 16e3 / packed["images_per_second"]) and agrees("0.99", packed["speedup_over_padded"])


EPYC = [
    ("| training step of the quantizer, half", "bench_quantizer::bench_training_step[cpu-0.5]", VQP),
    ("| the same, every region fine", "bench_quantizer::bench_training_step[cpu-1.0]", VQP),
    ("| `nearest_code`, exact", "bench_nearest_code::bench_nearest_code[cpu-1]", "cdist"),
    ("| `unpack_codes`", "bench_unpack_codes::bench_unpack_codes[cpu]", "speedup_over_python_loop"),
    ("| attention over packed", "bench_varlen_attention::bench_varlen_attention[cpu-0-0.1-forward]", "each_alone"),
    ("| `patch_entropy` |", "bench_patch_entropy::bench_patch_entropy[cpu]", "dense formula"),
    ("| sampling from a prior", "bench_generate::bench_cached_sampling[cpu]", "speedup_over_recomputation"),
]


@pytest.mark.parametrize(("beginning", "name", "peer"), EPYC)
def test_epyc(beginning, name, peer):
    about = rows("amd-epyc")[name]
    assert agrees(line_of(beginning)[-1], about.get(peer) or about["speedup"][peer])


def test_where_a_cpu_is_behind():
    told = README[README.index("Behind PyTorch there:") :].split("\n\n")[0]
    attention = [f"bench_varlen_attention::bench_varlen_attention[cpu-0-{which}]"
                 for which in ("0.0-forward", "0.0-backward", "0.1-backward")]  # fmt: skip
    others = [f"bench_{op}::bench_{op}[cpu]" for op in ("linear_gelu", "add_layer_norm", "bias_gelu")]
    found = [rows("amd-epyc")[name]["speedup"]["each_alone"] for name in attention]
    found.append(rows("amd-epyc")["bench_decode_attention::bench_decode_attention[cpu-even]"]["speedup"]["padded"])
    found += [rows("amd-epyc")[name]["speedup"]["torch"] for name in others]
    words = re.findall(r"0\.\d\d", told)
    assert len(words) == len(found) and all(agrees(word, ratio) for word, ratio in zip(words, found, strict=True))


XEON = {
    "| vector-quantize-pytorch 1.32 |": ["2threads-defaults"],
    "| taming-transformers | `": ["taming_first", "taming", "taming_ema"],
    "| LlamaGen | `": ["llamagen"],
    "| TiTok": ["titok"],
    "| diffusers |": ["diffusers"],
}


@pytest.mark.parametrize("beginning", XEON)
def test_compatible_layers(beginning):
    """Of training, and of inference."""
    stem, peer = ("bench_compat", "theirs")
    if "vector" in beginning:
        stem, peer = "bench_compat_vector_quantize_pytorch", VQP
    for cell, kind in zip(line_of(beginning)[-2:], ("training_step", "inference"), strict=True):
        found = [rows("intel-r-xeon-r-processor")[f"{stem}::bench_{kind}[cpu-{case}]"] for case in XEON[beginning]]
        words = cell.split(", ")
        assert all(agrees(word, row["speedup"][peer]) for word, row in zip(words, found, strict=True))


def test_defaults():
    means = json.loads((ROOT / "benchmarks" / "results" / "defaults.json").read_text())["means"]
    peers = {
        "dqcore": "dqcore",
        "vector-quantize-pytorch": VQP,
        "LlamaGen": "llamagen",
        "taming-transformers": "taming",
    }
    for name, layer in peers.items():
        (line,) = re.findall(rf"^\| {name} \| (0\.\d+) \| (\d+)(?: of 448)? \|$", README, re.MULTILINE)
        assert agrees(line[0], means["all"][layer]["l1"]) and agrees(line[1], means["all"][layer]["codes_used"])
    for task, layers in means.items():
        assert min(layers, key=lambda layer: layers[layer]["l1"]) == "dqcore", task
