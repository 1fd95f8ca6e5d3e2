"""``dqcore info``."""

import re
from types import SimpleNamespace

import torch


def test_info(run, monkeypatch):
    from dqcore import backends

    code, out, _ = run("info")
    assert code == 0
    assert re.search(r"dqvae-dual +48,098,437 parameters", out)
    assert re.search(r"^extension +available$", out, re.MULTILINE)
    monkeypatch.setattr(backends, "extension", lambda: None)
    monkeypatch.setattr(backends, "build_record", lambda: {"extension": "the C++ build failed: why", "cuda": "no nvcc"})
    out = run("info")[1]
    assert "extension  missing: the C++ build failed: why" in out
    assert "CUDA       missing: no nvcc" in out
    monkeypatch.setattr(backends, "build_record", lambda: {"extension": "built", "cuda": "built with nvcc"})
    assert "extension  missing: built, from other sources than these; install again\n" in run("info")[1]
    monkeypatch.setattr(backends, "extension", lambda: SimpleNamespace(has_cuda=False))
    assert "CUDA       missing: built with nvcc, which is newer than the driver\n" in run("info")[1]


def test_kernels_are_not_promised_for_an_old_gpu(monkeypatch):
    from dqcore import backends
    from dqcore.cli.info import _triton

    monkeypatch.setattr(backends, "has_triton", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(backends, "is_ampere", lambda device: device.index == 1)
    assert _triton().endswith(", available")
    monkeypatch.setattr(backends, "is_ampere", lambda device: False)
    assert "plain PyTorch" in _triton()
