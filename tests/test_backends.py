import sys
import threading
from types import SimpleNamespace

import pytest
import torch

import dqcore
from dqcore import backends
from dqcore.backends import choose_autocast, choose_device, route
from dqcore.inference.load import pick_device

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.__version__ < (2, 14), reason="a graph of an older PyTorch keeps the choice")
def test_a_graph_follows_the_choice():
    compiled = torch.compile(lambda x: x + (backends.route(x.device) == "reference"), fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())) == 0
    with dqcore.backend("reference"):
        assert compiled(torch.zeros(())) == 1
    assert compiled(torch.zeros(())) == 0


def test_a_backend_holds_until_the_end_of_its_context():
    before = route(CPU)
    with dqcore.backend("reference"):
        assert route(CPU) == "reference"
    assert route(CPU) == before
    with pytest.raises(ValueError, match="backend: expected 'auto', 'reference' or 'interpreter', got 'cuda'"):
        dqcore.backend("cuda")


def test_auto_is_the_gpu_if_there_is_one(monkeypatch):
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", index=3) == CPU


def test_a_process_takes_the_gpu_of_its_index(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("auto", index=3) == choose_device("cuda", index=3) == torch.device("cuda:3")
    assert choose_device("cuda:1", index=3) == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("device", "reason"),
    [("tpu", "expected auto, cpu, cuda or cuda:N"), ("cuda:77", "there is no cuda:77"), ("hip", "")],
)
def test_a_device_that_is_not_there_is_named(device, reason):
    with pytest.raises(ValueError, match=rf"device: '{device}' cannot be used here \({reason}"):
        choose_device(device)


def test_the_old_name_stays():
    assert pick_device is choose_device


@pytest.fixture
def two_gpus(monkeypatch):
    """A Turing and an Ampere."""
    old, new = torch.device("cuda:0"), torch.device("cuda:1")
    about = {old: (7, 5), new: (8, 6)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", about.get)
    backends.is_ampere.cache_clear()
    yield old, new
    backends.is_ampere.cache_clear()


def test_bfloat16_is_chosen_where_a_gpu_has_it(two_gpus):
    old, new = two_gpus
    assert choose_autocast("auto", new) and not choose_autocast("auto", old)  # where PyTorch emulates it
    assert choose_autocast("bfloat16", CPU) and not choose_autocast("float32", torch.device("cuda"))


def test_bfloat16_is_chosen_on_a_cpu_that_multiplies_in_it(monkeypatch):
    for has_it in (True, False):
        monkeypatch.setattr("dqcore.backends.has_amx", lambda has_it=has_it: has_it)
        assert choose_autocast("auto", CPU) == has_it
        assert choose_autocast("bfloat16", CPU) and not choose_autocast("float32", CPU)
    assert not choose_autocast("auto", torch.device("meta"))


def test_a_choice_is_one_of_its_thread():
    """Two threads that choose and end in turn used to leave the process on the reference."""
    chosen, ended = threading.Event(), threading.Event()
    seen = []

    def other():
        seen.append(backends.route(torch.device("cpu")))
        with dqcore.backend("reference"):
            chosen.set()
            ended.wait()
            seen.append(backends.route(torch.device("cpu")))

    with dqcore.backend("reference"):
        thread = threading.Thread(target=other)
        thread.start()
        chosen.wait()
    assert backends.route(torch.device("cpu")) == "cpu"
    ended.set()
    thread.join()
    assert seen == ["cpu", "reference"] and backends.route(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("capability,hip,known", [((8, 0), None, True), ((7, 5), None, False), ((9, 4), "6.4", False)])
def test_kernels_are_for_gpus_that_they_are_compiled_for(monkeypatch, capability, hip, known):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(backends, "extension", lambda: SimpleNamespace(has_cuda=True))
    backends.is_ampere.cache_clear()
    try:
        gpu = torch.device("cuda", 0)
        assert backends.available("torch", gpu) and backends.available("extension", CPU)
        assert backends.available("triton", gpu) == (known and backends.has_triton())
        assert backends.available("extension", gpu) == known
    finally:
        backends.is_ampere.cache_clear()


@pytest.mark.parametrize(
    ("interface", "taken"), [(backends._INTERFACE, True), (backends._INTERFACE - 1, False), (None, False)]
)
def test_an_extension_of_other_sources_is_left_alone(monkeypatch, interface, taken):
    """As after sources were updated and not built again; the first ones said nothing of theirs."""
    module = SimpleNamespace() if interface is None else SimpleNamespace(interface=interface)
    monkeypatch.setitem(sys.modules, "dqcore._C", module)
    backends.extension.cache_clear()
    try:
        assert (backends.extension() is module) == taken
    finally:
        monkeypatch.undo()
        backends.extension.cache_clear()
