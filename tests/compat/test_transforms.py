"""Under transforms of functorch, exported, and traced, ours does what the original classes do, without ops of ours."""

import io

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from dqcore.compat import diffusers, llamagen, taming, titok
from dqcore.compat.vector_quantize_pytorch import VectorQuantize

OURS = {
    "first": lambda: taming.VectorQuantizer(32, 8, 0.25),
    "second": lambda: taming.VectorQuantizer2(32, 8, 0.25),
    "ema": lambda: taming.EMAVectorQuantizer(32, 8, 0.25).eval(),
    "llamagen": lambda: llamagen.VectorQuantizer(32, 8, 0.25, 0.1, True, False),
    "titok": lambda: titok.VectorQuantizer(32, 8, use_l2_norm=True),
    "diffusers": lambda: diffusers.VectorQuantizer(32, 8, 0.25),
    "vq": lambda: VectorQuantize(8, 32, accept_image_fmap=True, freeze_codebook=True),
    "straight": lambda: VectorQuantize(
        8, 32, heads=2, accept_image_fmap=True, freeze_codebook=True, use_cosine_sim=True, rotation_trick=False
    ),
}


class Loss(nn.Module):
    """A number of everything that a quantizer returns."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.quantizer = OURS[kind]()

    def forward(self, z):
        return sum((i + 2) * part.square().mean() for i, part in enumerate(floats(self.quantizer(z))))


def floats(results):
    if isinstance(results, (tuple, dict)):
        parts = results.values() if isinstance(results, dict) else results
        return [each for part in parts for each in floats(part)]
    return [results] if isinstance(results, torch.Tensor) and results.is_floating_point() else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", OURS)
def test_the_gradients_of_each_sample(kind, dtype):
    model, z = Loss(kind).to(dtype), 0.1 * torch.randn(3, 8, 4, 4, dtype=dtype)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    each = vmap(grad(lambda w, x: functional_call(model, w, (x[None],)), argnums=(0, 1)), in_dims=(None, 0))
    try:
        of_weights, of_inputs = each({name: weight.detach() for name, weight in weights.items()}, z)
    except RuntimeError as error:
        if "Batching rule not implemented for aten::view.dtype" in str(error):  # as in 2.8
            pytest.skip("this PyTorch cannot batch a view of other bits, which the reference in float64 takes")
        raise
    for number in range(3):
        x = z[number : number + 1].clone().requires_grad_()
        one, *rest = torch.autograd.grad(model(x), [x, *weights.values()])
        torch.testing.assert_close(of_inputs[number], one[0], rtol=1e-4, atol=1e-6)
        for name, expected in zip(weights, rest, strict=True):
            torch.testing.assert_close(of_weights[name][number], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in OURS if kind not in ("vq", "straight")])  # as theirs, no graph
def test_exported_programs_take_other_sizes_and_need_no_dqcore(kind):
    model, z = Loss(kind).eval().quantizer, torch.randn(3, 8, 5, 7)
    sizes = {0: torch.export.Dim("B", min=2, max=64), 2: torch.export.Dim("H", min=2), 3: torch.export.Dim("W", min=2)}
    program = torch.export.export(model, (z,), dynamic_shapes={"z": sizes})
    assert not [node for node in program.graph.nodes if "dqcore" in str(node.target)]
    other = torch.randn(2, 8, 6, 4)
    for found, expected in zip(floats(program.module()(other)), floats(model(other)), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:Converting a tensor", "ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace")
@pytest.mark.parametrize("kind", OURS)
def test_traced_programs_need_no_dqcore(kind):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Loss(kind).eval()

        def forward(self, z):
            return floats(self.model.quantizer(z))[0]

    model, z = First(), torch.randn(2, 8, 4, 4)
    traced = torch.jit.trace(model, torch.randn(1, 8, 3, 3), check_trace=False)
    assert "dqcore::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(z), model(z))


@pytest.mark.skipif(torch.__version__ < "2.9", reason="the exporter of PyTorch 2.8 takes no None among the results")
def test_onnx():
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, z, file = Loss("second").eval().quantizer, torch.randn(2, 8, 5, 4), io.BytesIO()
    torch.onnx.export(model, (z,), dynamo=True, verbose=False).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    found = session.run(None, {session.get_inputs()[0].name: z.numpy()})
    torch.testing.assert_close(torch.from_numpy(found[0]), model(z)[0].detach())
