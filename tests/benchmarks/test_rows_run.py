"""Every row of an op runs at tiny sizes with all its peers: one that is called wrongly would cost a GPU's run."""

import pytest
import report_rows
import torch

#: Of the others :mod:`test_gpu_report` runs some in a dry run, and whole models have small ones of their own.
STEMS = ["add_layer_norm", "bias_gelu", "code_sums", "codebook_update", "cross_entropy", "draw_vectors",
         "dynamic_lookup", "expand_features", "linear_gelu", "lookup_loss", "nearest_code", "pack_codes",
         "pack_features", "patch_entropy", "quantizer", "unpack_codes"]  # fmt: skip


@pytest.mark.parametrize("stem", STEMS)
def test_a_row_and_its_peers_run(stem, monkeypatch):
    ran = 0
    for name, module, call in report_rows.rows([stem]):
        if hasattr(module, "TINY"):
            monkeypatch.setattr(module, "SHAPES", {"cpu": module.TINY})
        row = report_rows.measure(name, call["function"], call["arguments"], "cpu")
        assert "failed" not in row and not row["extra_info"].get("left_out"), row
        ran += "skipped" not in row
        torch.compiler.reset()
    assert ran
