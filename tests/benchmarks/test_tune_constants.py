import importlib

import pytest
import torch

pytest.importorskip("triton")

import tune_constants

from dqcore import backends


def test_every_constant_is_found_where_it_is_defined():
    found = tune_constants.constants()
    assert {("dynamic_lookup", "FILL"), ("codes", "MEASURE"), ("code_sums", "TILE")} <= found.keys()
    assert all("num_warps" in values for values in found.values())


def test_neighbours_halve_or_double(monkeypatch):
    given = {"BLOCK": 32, "num_warps": 16, "CHUNK": 3, "enable_fp_fusion": True}
    monkeypatch.setattr(tune_constants, "constants", lambda: {("file", "TILE"): given})
    found = [variant.values for variant in tune_constants.variants()]
    assert found[0] == given and len(found) == 6  # 32 warps are too many
    sizes = {(values["BLOCK"], values["num_warps"]) for values in found}
    assert sizes == {(block, warps) for block in (16, 32, 64) for warps in (8, 16)}
    assert all(values["CHUNK"] == 3 and values["enable_fp_fusion"] is True for values in found)


@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("key", tune_constants.constants(), ids=".".join)
def test_what_is_measured_launches_each_constants_kernel(key, monkeypatch):
    """Launches change with it; else its times would be chance."""
    from triton.runtime.interpreter import InterpretedFunction

    found, launch = [], InterpretedFunction.__getitem__

    def note(kernel, grid):
        def run(*args, **options):
            found.append((kernel.fn.__name__, grid, options))
            launch(kernel, grid)(*args, **options)

        return run

    def launches(values):
        found.clear()
        with tune_constants.applied(tune_constants.Variant(*key, values)):
            step()
        return list(found)

    monkeypatch.setattr(InterpretedFunction, "__getitem__", note)
    with backends.backend("interpreter"):
        step = tune_constants.problem(key[0], "cpu", tiny=True)
        as_it_is = launches({})
        warps = tune_constants.constants()[key]["num_warps"]
        assert launches({}) == as_it_is != launches({"num_warps": warps // 2})


def test_a_constant_is_put_back():
    module = importlib.import_module("dqcore.kernels.codes")
    before = dict(module.MEASURE)
    with tune_constants.applied(tune_constants.Variant("codes", "MEASURE", {"ELEMENTS": 1})):
        assert module.MEASURE["ELEMENTS"] == 1
    assert before == module.MEASURE


def test_another_result_is_seen():
    codes, numbers = torch.tensor([1, 2]), torch.tensor([1.0, 1e-6])
    assert tune_constants.same([codes, numbers], [codes, numbers + 1e-6])
    assert not tune_constants.same([codes, numbers], [codes, numbers + 1e-3])
    assert not tune_constants.same([codes + 1, numbers], [codes, numbers])


@pytest.mark.skipif(not backends.interpreting(), reason="needs Triton's interpreter")
def test_a_sweep_leaves_out_what_is_wrong(monkeypatch, capsys):
    known = [
        tune_constants.Variant("codes", "MEASURE", {"ELEMENTS": 4096}),
        tune_constants.Variant("codes", "MEASURE", {}),
    ]
    outcomes = iter([True, False])
    monkeypatch.setattr(tune_constants, "variants", lambda: known)
    monkeypatch.setattr(tune_constants, "same", lambda *_: next(outcomes))
    rows = tune_constants.sweep("cpu", 60, tiny=True)
    assert rows[0]["us"] > 0 and rows[1]["left_out"] == "another result"
    assert "codes.MEASURE" in capsys.readouterr().out
    outcomes = iter([True, True])
    assert {row["left_out"] for row in tune_constants.sweep("cpu", -1, tiny=True)} == {"no time left"}
