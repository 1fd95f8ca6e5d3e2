"""Tables of kernels, on a CPU of PyTorch's ops."""

import report_kernels
import torch


def test_a_table_counts_each_kernel():
    x = torch.randn(64, 64)
    found = report_kernels.table(lambda: torch.mm(x, x), 1, "cpu")
    row = next(row for row in found["kernels"] if row["kernel"] == "aten::mm")
    assert row["launches"] == 1 and 0 < row["us"] <= found["us"]
    assert "aten::mm" in report_kernels.show("product", found)
    halved = report_kernels.table(lambda: [torch.mm(x, x) for _ in range(4)], 2, "cpu")
    assert next(row for row in halved["kernels"] if row["kernel"] == "aten::mm")["launches"] == 2


def test_a_named_range_counts_nothing_twice():
    """As an optimizer's step names its own."""
    x = torch.randn(64, 64)

    def call():
        with torch.profiler.record_function("Optimizer.step"):
            torch.mm(x, x)

    names = [row["kernel"] for row in report_kernels.table(call, 1, "cpu")["kernels"]]
    assert "aten::mm" in names and "Optimizer.step" not in names
