"""Calls of launchers that are noted and made again."""

import types

import pytest


@pytest.fixture
def replaying(monkeypatch):
    """Calls are noted as on a GPU, though kernels are interpreted."""
    import noted_calls  # needs Triton

    from dqcore.kernels import launch, replay

    driver = types.SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 0)
    monkeypatch.setattr(replay, "INTERPRETED", False)
    monkeypatch.setattr(replay, "is_free", lambda: True)
    monkeypatch.setattr(replay.triton.runtime.driver, "_active", driver)
    monkeypatch.setattr(launch, "_launch", noted_calls.interpreted)
    replay.forget()
    yield
    replay.forget()
