"""Exported encoders and decoders beside the model."""

import pytest
import torch

from dqcore.errors import DqcoreError, InputError
from dqcore.inference import export
from dqcore.inference.export import export_tokenizer
from dqcore.models.tokenizers.dqvae import DQVAE, DQVAEConfig
from dqcore.models.tokenizers.vqgan import VQGAN, VQGANConfig

SMALL = {"channels": 4, "latent_channels": 4, "dim": 4, "codebook_size": 12, "num_blocks": 1, "groups": 2}
SMALL |= {"decoder_multipliers": (1, 1), "decoder_attention": (), "middle_attention": False, "encoder_attention": ()}


@pytest.fixture(scope="module")
def dual():
    """Strides 4 and 2: an image of 8 x 8 pixels has 4 regions."""
    torch.manual_seed(0)
    config = DQVAEConfig(strides=(4, 2), encoder_multipliers=(1, 1, 1), resolution=16, router_groups=2, **SMALL)
    return DQVAE(config).eval()


@pytest.fixture(scope="module")
def fixed():
    torch.manual_seed(0)
    return VQGAN(VQGANConfig(strides=(2,), encoder_multipliers=(1, 1), resolution=16, **SMALL)).eval()


@pytest.mark.parametrize("plain", [True, False])
@torch.no_grad()
def test_torch_programs_compute_what_the_model_does(dual, tmp_path, plain):
    found = export_tokenizer(dual, tmp_path, height=8, width=12, batch_size=2, format="torch", plain_ops=plain)
    assert (found.agreement, found.encoder.name, found.decoder.name) == (1, "encoder.pt2", "decoder.pt2")
    assert found.difference < 1e-5 and dual.quantizer.portable is False
    programs = [torch.export.load(path) for path in (found.encoder, found.decoder)]
    ours = [str(node.target) for node in programs[0].graph.nodes if str(node.target).startswith("dqcore.")]
    assert bool(ours) != plain
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    codes, grain = programs[0].module()(images)
    encoding = dual.encode(images)
    assert torch.equal(codes, encoding.codes) and torch.equal(grain, encoding.grain)
    torch.testing.assert_close(programs[1].module()(codes), dual.decode(codes))


@pytest.mark.slow
@torch.no_grad()
def test_onnx(dual, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: dqcore[export]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: dqcore[export]")
    found = export_tokenizer(dual, tmp_path, height=8, width=8)
    assert found.agreement == 1 and found.difference < 1e-4
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    session = onnxruntime.InferenceSession(found.encoder)
    codes, grain = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    encoding = dual.encode(images)
    assert torch.equal(torch.from_numpy(codes), encoding.codes)
    assert torch.equal(torch.from_numpy(grain), encoding.grain)


def test_what_does_not_compute_the_same_is_not_kept(fixed, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_listed", lambda found: [part + 1 for part in (*found,)])
    with pytest.raises(DqcoreError, match=r"not exported: 0\.0% of the codes agree"):
        export_tokenizer(fixed, tmp_path, height=4, width=4, format="torch")
    assert not list(tmp_path.glob("*.pt2"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"width": -1}, "width: expected at least 1 and whole, got -1"),
        ({"format": "jit"}, "format: expected onnx or torch, got 'jit'"),
        ({"plain_ops": False, "format": "onnx"}, "plain_ops: ONNX has no other ops"),
        ({"height": 5, "format": "torch"}, "height: expected a multiple of 2, got 5"),
    ],
)
def test_arguments_out_of_range(fixed, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        export_tokenizer(fixed, tmp_path / "out", **{"height": 4, "width": 4, **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("router", ["gain", "entropy"])
def test_a_router_without_thresholds(router, tmp_path):
    model = DQVAE(DQVAEConfig(strides=(4, 2), encoder_multipliers=(1, 1, 1), resolution=16, router=router, **SMALL))
    with pytest.raises(InputError, match="its router has no thresholds yet"):
        export_tokenizer(model, tmp_path, height=8, width=8, format="torch")
    model.router.thresholds.fill_(0.1)
    export._check_router(model.router)


def test_files_of_others_stay(fixed, tmp_path):
    (tmp_path / "decoder.pt2").write_text("mine")
    with pytest.raises(InputError, match=r"holds decoder\.pt2 already"):
        export_tokenizer(fixed, tmp_path, height=4, width=4, format="torch")
    assert (tmp_path / "decoder.pt2").read_text() == "mine"
