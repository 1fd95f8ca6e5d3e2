"""``dqcore info``."""

import re


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
