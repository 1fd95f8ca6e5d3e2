"""When work is called, captured and replayed. What a graph does to tensors only a GPU shows: test_dq_transformer.py."""

import contextlib
import threading
import time

import pytest
import torch

from dqcore.models.sampling import replay as module
from dqcore.models.sampling.replay import GraphedWork, Watched, can_capture


class Device:
    """Stands for CUDA: what is called while it records is kept for replays, not done."""

    def __init__(self):
        self.recording, self.captures, self.done, self.streams = False, 0, 0, []

    def work(self):
        self.done += not self.recording

    def replay(self):
        self.done += 1

    @contextlib.contextmanager
    def graph(self, graph, stream, capture_error_mode):
        assert not self.recording and capture_error_mode == "thread_local"
        self.streams.append(stream)
        self.recording, self.captures = True, self.captures + 1
        yield
        self.recording = False


@pytest.mark.parametrize("captured", [True, False])
def test_work_is_done_once_a_call_and_captured_once(monkeypatch, captured):
    device = Device()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: device)
    monkeypatch.setattr(torch.cuda, "graph", device.graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(module, "_stream", lambda device: device)
    replay = GraphedWork(device.work, captured)
    for call in range(10):
        assert device.captures == (captured and call > GraphedWork.WARM_UP)
        replay()
        assert device.done == call + 1
    assert device.streams == [3] * captured


def test_a_watched_number_on_the_cpu_is_known_at_once():
    value = torch.zeros((), dtype=torch.int64)
    watched = Watched(value)
    value += 3
    assert watched.read() == 3


def test_nothing_is_captured_without_a_gpu():
    assert not can_capture(torch.zeros(1))


def test_threads_capture_one_after_the_other(monkeypatch):
    """Else the one that begins would wait for a device on which a stream is being recorded, which fails both."""
    device = Device()
    together, failed = threading.Barrier(4), []

    def work():
        if device.recording:
            time.sleep(0.02)
        device.work()

    def sample():
        replay = GraphedWork(work, True)
        together.wait()
        try:
            for _ in range(6):
                replay()
        except AssertionError as error:
            failed.append(error)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: device)
    monkeypatch.setattr(torch.cuda, "graph", device.graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(module, "_stream", lambda device: device)
    threads = [threading.Thread(target=sample) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and device.captures == 4
