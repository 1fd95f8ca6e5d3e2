"""The attention benchmarks where no GPU is: what they call of PyTorch, on small or empty tensors."""

import bench_decode_attention as decode
import bench_varlen_attention as varlen
import pytest
import report_rows
import torch

SMALL = (3, 5, 20, 2, 16)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("kind", [varlen.Flash, varlen.Efficient], ids=lambda kind: kind.__name__)
def test_packed_peers_fit_their_operators(kind, direction):
    """Schemas, shapes and derivatives, without a value."""
    batch = varlen.Batch(SMALL, "meta", torch.float16)
    peer = kind(batch)
    result = varlen.prepared(peer, direction, 0.1)()
    rows = (sum(batch.lengths), 2, 16)
    shapes = [tuple(peer.rows(result).shape)] if direction == "forward" else [tuple(x.shape) for x in result]
    assert shapes == [rows] * (1 if direction == "forward" else 3)


def test_cudnn_takes_these_arguments():
    """It has nothing for tensors without values, and says so once it has read its arguments."""
    with pytest.raises(NotImplementedError, match="Meta"):
        varlen.CuDNN(varlen.Batch(SMALL, "meta", torch.float16))(0.1)


def test_other_peers_agree_with_ours():
    batch = varlen.Batch(SMALL, "cpu", torch.float32)
    mine = varlen.Packed(batch)
    kinds = {"padded": varlen.Padded, "each_alone": varlen.EachAlone, "flex_attention": varlen.Flex}
    peers, reasons = varlen.peers_of(batch, kinds, 0.0, mine, 1e-5)
    assert set(peers) == set(kinds), reasons
    want = varlen.prepared(mine, "backward", 0.0)()
    for name in ("padded", "each_alone"):
        got = varlen.prepared(peers[name], "backward", 0.0)()
        assert len(got) == len(want) == 3
    varlen.check(mine, 0.1, 1e-5)
    assert varlen.peers_of(batch, kinds, 0.1, mine, 1e-5)[1] == {"flex_attention": "has no dropout"}


def test_a_wrong_peer_is_left_out():
    class Wrong(varlen.Padded):
        def __call__(self, dropout_p=0.0):
            return super().__call__() + 1e-3

    batch = varlen.Batch(SMALL, "cpu", torch.float32)
    peers, reasons = varlen.peers_of(batch, {"wrong": Wrong}, 0.0, varlen.Packed(batch), 1e-5)
    assert not peers and reasons["wrong"].startswith("AssertionError")


def test_decode_peers():
    step = decode.Step((3, 24, 2, 16), "cpu", torch.float32)
    torch.testing.assert_close(step.mine(), step.padded())
    assert step.read == 2 * (int(step.lengths.sum()) + 3) * 2 * 16 * 4
    narrow, _, read = step.in_8_bits()
    torch.testing.assert_close(narrow(), step.mine(), rtol=0, atol=0.05)
    assert read == step.read * (16 + 4) // (16 * 4)
    assert decode.Step((3, 24, 2, 16), "meta", torch.float16, cached=5).flash().shape == (3, 2, 16)


@pytest.mark.parametrize("bound", [1e9, 1e-9])
def test_what_a_row_is_held_against_decides(monkeypatch, bound):
    """On the CPU no row was ever met, whatever it took."""
    monkeypatch.setattr(varlen, "_shape", lambda device, index: SMALL)
    monkeypatch.setattr(varlen, "medians", lambda calls, *_, **__: ({name: 1.0 for name in calls}, {}))
    benchmark = report_rows.Benchmark("cpu")
    varlen.bench_varlen_attention(benchmark, "cpu", 0, 0.0, "forward")
    about = benchmark.extra_info
    assert about["target"] == {"speedup": {"each_alone": 1 / 1.3}} and about["met"] is True
    mine = varlen.Packed(varlen.Batch(SMALL, "cpu", torch.float32))
    varlen.measure(benchmark, mine, {}, "forward", 0.0, 1e-5, {"seconds": bound, "speedup": {"flash_attention_2": 1.0}})
    assert about["met"] is (None if bound > 1 else False)  # a peer that is missing was not beaten
