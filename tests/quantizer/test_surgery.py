"""What other people's programs do to a layer and its results: weights from elsewhere, other codes, empty batches."""

import pytest
import torch
from torch import nn

from dqcore import DynamicQuantizer, Quantized
from dqcore.codebook import EMA, Gradient, KMeans
from dqcore.errors import InputError

X = torch.randn(4, 8, 5, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("options", [{}, {"codebook_dim": 3}, {"learning": Gradient()}], ids=str)
def test_a_layer_that_is_built_in_another_default_dtype(dtype, options):
    """As transformers builds a model for ``dtype=``: the codebook stays float32 at least, the rest is of that dtype."""
    torch.set_default_dtype(dtype)
    try:
        quantizer = DynamicQuantizer(8, 20, **options)
        out = quantizer(torch.randn(4, 8, 5, 5))
        assert out.map.dtype is quantizer.embed(out.codes).dtype is dtype
    finally:
        torch.set_default_dtype(torch.float32)
    wanted = torch.promote_types(dtype, torch.float32)
    state = [value for name, value in quantizer.state_dict().items() if name.startswith("codebook.")]
    assert all(value.dtype in (wanted, torch.int64) for value in state) and out.loss.dtype is wanted


def used(codes):
    return torch.bincount(codes.flatten(), minlength=20) > 0


def some_far(codes):
    """The codes, of which those from number 15 on are too far from X for any vector."""
    codes[15:] += 20
    return codes


@pytest.mark.parametrize("keys", [("weight",), ("weight", "cluster_size", "idle")], ids=str)
def test_codes_that_come_without_averages_outlive_the_next_update(keys):
    """As from a layer with ``Gradient()``, or another library, by ``strict=False``."""
    other = DynamicQuantizer(8, 20, learning=Gradient(), restart=None)
    other.codes = some_far(torch.randn(20, 8))
    other(X)
    state = {f"codebook.{key}": other.state_dict()[f"codebook.{key}"] for key in keys}
    quantizer = DynamicQuantizer(8, 20, learning=EMA(decay=0.9), restart=None)
    quantizer(torch.randn(4, 8, 5, 5))
    assert "codebook.embed_sum" in quantizer.load_state_dict(state, strict=False).missing_keys
    assert torch.equal(quantizer.codes, other.codes)
    unused = ~used(quantizer(X).codes)
    assert unused[15:].all()
    torch.testing.assert_close(quantizer.codes[unused], other.codes[unused], atol=1e-4, rtol=1e-4)


def test_a_codebook_from_elsewhere_is_not_started_anew():
    quantizer = DynamicQuantizer(8, 20, initialisation=KMeans(), restart=None)
    rows = some_far(torch.randn(21, 8))
    quantizer.load_state_dict({"codebook.weight": rows}, strict=False)
    assert torch.equal(quantizer.eval()(X).codes, DynamicQuantizer.eval(with_codes(rows[:20]))(X).codes)
    unused = ~used(quantizer.train()(X).codes)
    assert unused[15:].all()
    torch.testing.assert_close(quantizer.codes[unused], rows[:20][unused], atol=1e-4, rtol=1e-4)


def with_codes(codes):
    quantizer = DynamicQuantizer(8, 20)
    quantizer.codes = codes
    return quantizer


@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=str)
@pytest.mark.parametrize("rows", [20, 41])
def test_a_weight_of_other_rows_is_refused(learning, rows):
    quantizer, weight = DynamicQuantizer(8, 20, learning=learning), torch.randn(rows, 8)
    quantizer.codebook.weight = nn.Parameter(weight) if isinstance(learning, Gradient) else weight
    with pytest.raises(InputError, match=f"codebook.weight: expected 21 rows, .* got {rows}; .* make a new layer"):
        quantizer(X)


@pytest.mark.parametrize("shape", [(0, 8, 3, 3), (2, 8, 3, 0)], ids=str)
@pytest.mark.parametrize("mode", [True, False])
def test_an_empty_batch_reaches_the_projections(shape, mode):
    """DDP waits for a gradient of every weight, also where one process has nothing."""
    quantizer, x = DynamicQuantizer(8, 20, codebook_dim=3).train(mode), torch.randn(shape, requires_grad=True)
    out = quantizer(x)
    (out.map.sum() + out.loss).backward()
    assert out.map.shape == shape and x.grad.shape == shape
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in quantizer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer(x).map.dtype is quantizer(torch.randn(2, 8, 3, 3)).map.dtype


def test_results_with_another_field_keep_the_parts_of_the_loss():
    out = DynamicQuantizer(8, 20)(X)
    other = out._replace(map=X)
    assert type(other) is Quantized and other.map is X and other.codes is out.codes
    assert other.commitment_loss is out.commitment_loss and other.codebook_loss is out.codebook_loss
    assert out._replace(loss=2 * out.loss).commitment_loss is None
    assert Quantized._make(out).commitment_loss is None
    with pytest.raises((ValueError, TypeError), match="unexpected field names"):
        out._replace(quantized=X)
