"""``cross_entropy`` of a prior's logits against PyTorch's, which makes a float32 copy of them; forward and backward."""

import torch
from rows import compare

from dqcore.ops import cross_entropy
from dqcore.ops.reference.cross_entropy import cross_entropy_reference
from dqcore.testing import assert_close

SHAPES = {"cpu": (512, 1027), "cuda": (16000, 1027)}  # tokens, contents
TINY = (8, 33)


def bench_cross_entropy(benchmark, device):
    """Losses of all tokens and the gradient of their mean."""
    tokens, contents = SHAPES[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    logits = torch.randn(tokens, contents, device=device, dtype=dtype, requires_grad=True)
    targets = torch.randint(contents, (tokens,), device=device)

    def step(losses):
        return lambda: torch.autograd.grad(losses(logits, targets).mean(), logits)

    calls = {
        "torch": step(lambda x, t: torch.nn.functional.cross_entropy(x.float(), t, reduction="none")),
        "reference": step(lambda x, t: cross_entropy_reference(x, t)[0]),
    }
    (found,), (expected,) = step(cross_entropy)(), calls["torch"]()
    assert_close(tokens * found, tokens * expected)
    compare(benchmark, device, step(cross_entropy), calls, shape=[tokens, contents])
