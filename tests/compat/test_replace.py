"""Quantizers of other libraries are found by path and name, and replaced all or none."""

import copy
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

import dqcore
from dqcore import compat
from dqcore.compat import diffusers, llamagen, taming, titok
from dqcore.errors import InputError

PATHS = {
    "taming.modules.vqvae.quantize": taming,
    "tokenizer.tokenizer_image.vq_model": llamagen,
    "modeling.quantizer.quantizer": titok,
    "diffusers.models.autoencoders.vae": diffusers,
}
BUILT = {
    "first": (taming.VectorQuantizer, (16, 4, 0.25)),
    "second": (taming.VectorQuantizer2, (16, 4, 0.25, None, "random", True, False)),
    "ema": (taming.EMAVectorQuantizer, (16, 4, 0.25, 0.9, 1e-3)),
    "llamagen": (llamagen.VectorQuantizer, (16, 4, 0.25, 0.1, True, True)),
    "titok": (titok.VectorQuantizer, (16, 4, 0.3, True, True)),
    "diffusers": (diffusers.VectorQuantizer, (16, 4, 0.25)),
}


def foreign(ours, *arguments):
    """A stand-in for another library's quantizer: what ours does, under the other's module path and name."""
    path = next(path for path, module in PATHS.items() if module.__name__ == ours.__module__)
    module = ModuleType(path)  # a class of its own, at the path that pickle and repr would name
    their = type(ours.__name__, (ours,), {"__module__": path})
    setattr(module, ours.__name__, their)
    quantizer = their(*arguments)
    if isinstance(quantizer, taming.EMAVectorQuantizer):
        quantizer.embedding.__class__ = type("EmbeddingEMA", (taming.EmbeddingEMA,), {"__module__": path})
    return quantizer


class Model(nn.Module):
    """Encoder, quantizer, decoder, and a list of more quantizers."""

    def __init__(self, quantizer, *more):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)
        self.quantize = quantizer
        self.more = nn.ModuleList(more)


@pytest.mark.parametrize("kind", BUILT)
def test_weights_buffers_mode_and_options_come_along(kind):
    ours, arguments = BUILT[kind]
    old = foreign(ours, *arguments).eval()
    old.beta = old.commitment_cost = 0.125
    if kind != "titok":
        del old.commitment_cost
    else:
        del old.beta
    for parameter in old.parameters():
        parameter.requires_grad_(False)
    model = Model(old)
    z = torch.randn(2, 4, 3, 3)
    before = (copy.deepcopy(old)(z), copy.deepcopy(old).train()(z))
    random = torch.random.get_rng_state()
    replaced = dqcore.replace_quantizers(model)
    assert torch.equal(torch.random.get_rng_state(), random)
    new = model.quantize
    assert replaced == {"quantize": new} and type(new) is ours and not new.training
    assert not any(part.training for part in new.modules())
    assert list(new.state_dict()) == list(old.state_dict())
    for name, value in old.state_dict(keep_vars=True).items():
        mine = new.state_dict(keep_vars=True)[name]
        assert mine.data_ptr() == value.data_ptr() and mine.requires_grad == value.requires_grad
    assert all(new.get_parameter(name) is parameter for name, parameter in old.named_parameters())
    after = (copy.deepcopy(new)(z), copy.deepcopy(new).train()(z))
    assert str(after) == str(before)
    assert dqcore.replace_quantizers(model) == {}


def test_dtype_stays():
    model = Model(foreign(*_second())).double()
    dqcore.replace_quantizers(model)
    assert model.quantize.embedding.weight.dtype == torch.float64
    assert model.quantize(torch.randn(1, 4, 2, 2, dtype=torch.float64))[0].dtype == torch.float64


def test_meta_device_stays():
    model = Model(foreign(*_second())).to("meta")
    dqcore.replace_quantizers(model)
    assert model.quantize.embedding.weight.is_meta


def test_shared_quantizers_stay_shared():
    old = foreign(*_second())
    model = Model(old, nn.Sequential(old), foreign(*_second()))
    replaced = dqcore.replace_quantizers(model)
    assert list(replaced) == ["quantize", "more.0.0", "more.1"]
    assert model.quantize is model.more[0][0] is replaced["more.0.0"]
    assert model.more[1] is not model.quantize


def test_an_optimizer_made_before_trains_ours():
    model = Model(foreign(*_second()))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    dqcore.replace_quantizers(model)
    before = model.quantize.embedding.weight.detach().clone()
    model.quantize(torch.randn(1, 4, 2, 2))[1].backward()
    optimizer.step()
    assert not torch.equal(model.quantize.embedding.weight, before)


def test_renumbered_codes_need_no_file(tmp_path):
    import numpy as np

    np.save(tmp_path / "used.npy", np.arange(0, 16, 2))
    old = foreign(taming.VectorQuantizer2, 16, 4, 0.25, tmp_path / "used.npy", "extra")
    (tmp_path / "used.npy").unlink()
    model, z = Model(old), torch.randn(1, 4, 2, 2)
    dqcore.replace_quantizers(model)
    assert torch.equal(model.quantize(z)[2][2], old(z)[2][2])
    assert (model.quantize.re_embed, model.quantize.unknown_index) == (9, 8)


def _second():
    ours, arguments = BUILT["second"]
    return ours, *arguments


def _hooked():
    old = foreign(*_second())
    old.register_forward_hook(lambda *_: None)
    return old


def _hooked_inside():
    old = foreign(*_second())
    old.embedding.register_forward_pre_hook(lambda *_: None)
    return old


def _newer():
    old = foreign(*_second())
    old.temperature = 0.5
    return old


def _padded():
    old = foreign(*_second())
    old.embedding.padding_idx = 3
    return old


def _wrapped():
    old = foreign(*_second())
    old.embedding = nn.Sequential(old.embedding)
    return old


def _patched():
    old = foreign(*_second())
    old.forward = lambda z: z
    return old


def _resized():
    old = foreign(*_second())
    old.embedding.weight = nn.Parameter(torch.randn(20, 4))
    return old


def _remapped():
    old = foreign(*_second()[:1], 16, 4, 0.25)
    ema = foreign(taming.EMAVectorQuantizer, 16, 4, 0.25)
    ema.remap = "used.npy"
    return nn.ModuleList([old, ema])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_hooked, "more.0: .*hooks"),
        (_hooked_inside, "more.0: .*embedding: .*hooks"),
        (_newer, "more.0: .*temperature"),
        (_padded, "more.0: .*embedding.padding_idx"),
        (_wrapped, "more.0: .*embedding"),
        (_patched, "more.0: .*forward"),
        (_resized, "more.0: .*embedding.weight.*shape"),
        (_remapped, "more.0.1: .*remap"),
    ],
)
def test_what_ours_does_not_do_is_refused_and_nothing_is_changed(make, says):
    model = Model(foreign(*_second()), make())
    before = dict(model.named_modules())
    with pytest.raises(InputError, match=says):
        dqcore.replace_quantizers(model)
    assert dict(model.named_modules()) == before


def test_subclasses_and_strangers_stay():
    class Special(type(foreign(*_second()))):
        pass

    model = Model(Special(16, 4, 0.25), taming.VectorQuantizer2(16, 4, 0.25), nn.Embedding(3, 4))
    assert dqcore.replace_quantizers(model) == {}
    assert type(model.quantize) is Special


def test_a_quantizer_by_itself_cannot_be_replaced_in_place():
    with pytest.raises(InputError, match="itself"):
        dqcore.replace_quantizers(foreign(*_second()))


def test_register_adds_a_class(monkeypatch):
    monkeypatch.setattr("dqcore.compat.replace._KNOWN", dict(sys.modules["dqcore.compat.replace"]._KNOWN))

    class Stranger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(8, 4)

    compat.register(
        f"{Stranger.__module__}.{Stranger.__qualname__}", lambda old: taming.VectorQuantizer(8, 4, beta=0.25)
    )
    model = Model(Stranger())
    weight = model.quantize.embedding.weight
    assert list(dqcore.replace_quantizers(model)) == ["quantize"]
    assert model.quantize.embedding.weight is weight
    for path, convert in (("Stranger", print), ("a.B", None)):
        with pytest.raises(InputError):
            compat.register(path, convert)


def test_vector_quantize_pytorch():
    pytest.importorskip("dqcore.compat.vector_quantize_pytorch")
    theirs = pytest.importorskip("vector_quantize_pytorch").VectorQuantize
    cases = (
        dict(dim=8, codebook_size=16),
        dict(dim=8, codebook_size=16, codebook_dim=4, heads=2, separate_codebook_per_head=True, decay=0.9),
        dict(dim=8, codebook_size=16, use_cosine_sim=True, threshold_ema_dead_code=2, kmeans_init=True),
        dict(dim=8, codebook_size=16, learnable_codebook=True, ema_update=False, rotation_trick=False),
        dict(
            dim=8,
            codebook_size=16,
            learnable_codebook=True,
            ema_update=False,
            in_place_codebook_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        ),
    )
    x = torch.randn(2, 12, 8)
    for arguments in cases:
        model = nn.Sequential(theirs(**arguments))
        expected = copy.deepcopy(model).eval()(x) if "kmeans_init" not in arguments else None
        assert list(dqcore.replace_quantizers(model)) == ["0"], arguments
        model.eval()
        if expected is not None:
            assert torch.equal(model(x)[1], expected[1])
            torch.testing.assert_close(model(x)[0], expected[0])
    with pytest.raises(InputError, match=r"0: .*affine_param"):
        dqcore.replace_quantizers(nn.Sequential(theirs(8, 16, affine_param=True)))


def test_a_compiled_quantizer_is_refused_and_a_compiled_model_is_not():
    old = foreign(diffusers.VectorQuantizer, 16, 4, 0.25)
    for model in (Model(torch.compile(old, backend="eager")), torch.compile(old, backend="eager")):
        with pytest.raises(InputError, match="_orig_mod: it is compiled, and the old one would still run"):
            dqcore.replace_quantizers(model)
    model = torch.compile(Model(old), backend="eager")
    assert list(dqcore.replace_quantizers(model)) == ["_orig_mod.quantize"]
    assert type(model.quantize) is diffusers.VectorQuantizer
