"""What only a GPU shows of decoding: steps in a CUDA graph."""

import pytest
import torch

from dqcore.ops import decode_attention, varlen_attention
from dqcore.testing import captured

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICE = "cuda"


def test_a_graph_of_decoding_steps():
    """Keys come one by one, lengths grow inside the graph, one slot rests."""
    slots, steps, heads, dim = 3, 40, 4, 64
    q, k, v = torch.randn(3, steps, slots, heads, dim, device=DEVICE, dtype=torch.bfloat16)
    cache = torch.zeros(2, slots, 64, heads, dim, device=DEVICE, dtype=torch.bfloat16)
    lengths, active = torch.zeros(slots, dtype=torch.int32, device=DEVICE), torch.tensor([True, True, False]).to(DEVICE)
    now = [x[0].clone() for x in (q, k, v)]

    def step():
        out = decode_attention(*now, *cache, lengths, active=active)
        lengths.add_(active)
        return out

    graph, out = captured(step)
    lengths.zero_()
    cache.zero_()
    outs = []
    for i in range(steps):
        for mine, new in zip(now, (q, k, v), strict=True):
            mine.copy_(new[i])
        graph.replay()
        outs.append(out.clone())
    for slot in (0, 1):
        want = varlen_attention(
            q[:, slot], k[:, slot], v[:, slot], torch.tensor([0, steps], dtype=torch.int32, device=DEVICE)
        )
        torch.testing.assert_close(torch.stack(outs)[:, slot], want, rtol=1.6e-2, atol=1.6e-2)
    assert lengths.tolist() == [steps, steps, 0] and (torch.stack(outs)[:, 2] == 0).all() and (cache[:, 2] == 0).all()
