"""Repeated launches: the compiled kernel and the arguments that Triton itself would send, and Triton's own way else.

``test_launch`` runs this in a process of its own, because nothing compiles where kernels were interpreted.
"""

import sys

import pytest
import torch

pytest.importorskip("triton")
import triton
import triton.language as tl
from host_time import Standing, Utilities
from triton.runtime.jit import JITFunction

from dqcore.kernels import launch as module
from dqcore.kernels.launch import launch

FACTOR = tl.constexpr(2)


def _plain(x, out, extra, n, m, scale, flag, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    other, stride = extra
    value = tl.load(x + i, mask=i < n, other=0).to(tl.float32) * scale
    if other is not None:
        value += tl.load(other + i * stride, mask=i < m, other=0)
    if flag:
        value *= FACTOR
    tl.store(out + i, value)


class NoModules(Utilities):
    """Loads nothing that would be unloaded after the test, when no driver stands there any more."""

    def load_binary(self, *args):
        return None, *super().load_binary(*args)[1:]


class Sent(Standing):
    """A driver that keeps what reaches it, and whether Triton's own way led there."""

    utils = NoModules()

    def __init__(self, arch):
        super().__init__(arch)
        self.launches = []

    def launcher_cls(self, src, metadata):
        def run(x, y, z, stream, function, packed, about, enter, leave, *values):
            where = [getattr(value, "data_ptr", lambda value=value: value)() for value in flat(values)]
            self.launches.append((metadata.hash, (x, y, z), stream, function, packed, where))
            self.by_triton = enter is not None

        return run


def flat(values):
    for value in values:
        if isinstance(value, tuple):
            yield from flat(value)
        else:
            yield value


@pytest.fixture
def driver(monkeypatch, tmp_path):
    sent = Sent(90)
    monkeypatch.setattr(triton.runtime.driver, "_active", sent)
    monkeypatch.setattr(module, "_known", {})
    return sent


@pytest.fixture
def kernel():
    return JITFunction(_plain, do_not_specialize=["n"])


def given(x=None, other=None, stride=3, n=5, m=7, scale=1.0, flag=True, **options):
    x = torch.zeros(64) if x is None else x
    return (x, torch.zeros(64), (other, stride), n, m, scale, flag), {"SIZE": 16} | options


WHOLE = torch.zeros(65)
SIGNATURES = {
    "first": given(),
    "misaligned": given(x=WHOLE[1:]),
    "half": given(x=torch.zeros(64, dtype=torch.float16)),
    "other": given(other=torch.zeros(64)),
    "other, misaligned": given(other=WHOLE[1:]),
    "unspecialised, 16": given(n=16),
    "unspecialised, 1": given(n=1),
    "unspecialised, wide": given(n=2**31),
    "one": given(m=1),
    "16": given(m=16),
    "17": given(m=17),
    "wide": given(m=2**31),
    "stride 1": given(stride=1),
    "stride 16": given(stride=16),
    "another scale": given(scale=0.5),
    "False": given(flag=False),
    "whole scale": given(scale=3),
    "constant": given(SIZE=32),
    "warps": given(num_warps=8),
    "stages": given(num_stages=1),
    "no fusion": given(enable_fp_fusion=False),
}


def test_the_driver_gets_what_triton_sends(driver, kernel):
    """All kinds in turn, twice: none takes the kernel of another."""
    for args, options in SIGNATURES.values():
        kernel[(2, 3)](*args, **options)
    expected, driver.launches = driver.launches, []
    assert len({launch[0] for launch in expected}) > 12
    for _ in range(2):
        driver.launches = []
        for args, options in SIGNATURES.values():
            launch(kernel, (2, 3))(*args, **options)
        assert driver.launches == expected
    assert not driver.by_triton


def test_a_kind_is_sent_to_triton_once(driver, kernel):
    args, options = SIGNATURES["first"]
    ways = []
    for _ in range(3):
        launch(kernel, (4,))(*args, **options)
        ways.append(driver.by_triton)
    assert ways == [True, False, False]
    assert driver.launches[-1][1] == (4, 1, 1)
    kernel.device_caches.clear()
    launch(kernel, (4,))(*args, **options)
    assert driver.by_triton


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_are_called(driver, kernel, hook):
    (args, options), called = SIGNATURES["first"], []
    for _ in range(2):
        launch(kernel, (1,))(*args, **options)
    chain = getattr(triton.knobs.runtime, hook)
    chain.add(called.append)
    try:
        launch(kernel, (1,))(*args, **options)
        assert driver.by_triton
    finally:
        chain.remove(called.append)
    launch(kernel, (1,))(*args, **options)
    assert not driver.by_triton


def test_triton_does_what_only_it_can(driver, kernel, monkeypatch):
    (args, options), called = SIGNATURES["first"], []

    def by_triton():
        launch(kernel, (1,))(*args, **options)
        return driver.by_triton

    assert by_triton() and not by_triton()
    kernel.add_pre_run_hook(lambda *args, **options: called.append(args))
    assert by_triton() and called
    kernel.pre_run_hooks.clear()
    for name, value in (("debug", True), ("add_stages_inspection_hook", lambda *_: ("", ""))):
        with monkeypatch.context() as patched:
            patched.setattr(triton.knobs.runtime, name, value)
            assert not module.is_free()
    with monkeypatch.context() as patched:
        patched.setattr(triton.knobs.compilation, "instrumentation_mode", "consan")
        assert not module.is_free()
    with monkeypatch.context() as patched:
        patched.setattr(module, "SUPPORTED", False)
        assert by_triton()
    with monkeypatch.context() as patched:
        patched.setattr(JITFunction, "__getitem__", lambda kernel, grid: lambda *args, **options: called.append(grid))
        launch(kernel, (9,))(*args, **options)
        assert called[-1] == (9,)
    assert not by_triton()


def test_a_changed_global_is_an_error_as_ever(driver, kernel, monkeypatch):
    args, options = SIGNATURES["first"]
    for _ in range(2):
        launch(kernel, (1,))(*args, **options)
    assert not driver.by_triton
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", tl.constexpr(3))
    with pytest.raises(RuntimeError, match="FACTOR has changed"):
        launch(kernel, (1,))(*args, **options)


def test_triton_as_somebody_replaced_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(module, "_METHODS", (lambda *args, **options: None, JITFunction.__getitem__))
    assert not module._supported()


def test_versions_that_were_not_read_are_left_alone(monkeypatch):
    assert module._supported() == triton.__version__.startswith(module.READ)
    monkeypatch.setattr(triton, "__version__", "3.99.0")
    assert not module._supported()
