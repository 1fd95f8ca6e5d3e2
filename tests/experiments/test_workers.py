"""The processes of experiments end with the one that started them, whether it is told to end or killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import os, pathlib, sys, time
from dqcore.cli.signals import endable
from dqcore.experiments.workers import do_in_processes
from dqcore.training import StoppedError
from dqcore.training.stop import StopSignals

def work(folder):
    with StopSignals() as signals:  # as a training run does
        pathlib.Path(folder, str(os.getpid())).touch()
        while not signals.received:
            time.sleep(0.05)
        time.sleep(1)  # it saves; a second signal would end it at once
        pathlib.Path(folder, f"{os.getpid()}-saved").touch()
    raise StoppedError(pathlib.Path(folder), 0, signals.received)

if __name__ == "__main__":
    with endable():  # as the command line does
        do_in_processes([(work, (sys.argv[1],), "")] * 3, 2, print)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_they_end_with_their_starter(tmp_path, number):
    """Though the signal reaches that one alone, and a third task waits."""
    script, busy = tmp_path / "script.py", tmp_path / "busy"
    script.write_text(SCRIPT)
    busy.mkdir()
    with subprocess.Popen([sys.executable, script, busy], stderr=subprocess.DEVNULL, preexec_fn=heeding) as starter:
        wait(lambda: len(list(busy.iterdir())) == 2)
        processes = [int(path.name) for path in busy.iterdir()]
        assert all(os.getpgid(process) == process for process in processes), "Ctrl-C would reach them twice"
        starter.send_signal(number)
        assert starter.wait(30)
    wait(lambda: not any(map(runs, processes)))
    names = {str(process) for process in processes}
    assert {path.name for path in busy.iterdir()} == names | {f"{name}-saved" for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("starter_first", [True, False])
def test_a_signal_to_all_of_them_is_one(tmp_path, starter_first):
    """As systemd and Slurm send it; and ``timeout`` sends it to the starter, then to its whole group."""
    script, busy = tmp_path / "script.py", tmp_path / "busy"
    script.write_text(SCRIPT)
    busy.mkdir()
    with subprocess.Popen([sys.executable, script, busy], stderr=subprocess.DEVNULL) as starter:
        wait(lambda: len(list(busy.iterdir())) == 2)
        processes = [int(path.name) for path in busy.iterdir()]
        for process in [starter.pid, *processes] if starter_first else [*processes, starter.pid]:
            os.kill(process, signal.SIGTERM)
        time.sleep(0.2)
        starter.send_signal(signal.SIGTERM)
        assert starter.wait(30)
    names = {str(process) for process in processes}
    assert {path.name for path in busy.iterdir()} == names | {f"{name}-saved" for name in names}


@pytest.mark.slow
def test_one_is_killed(tmp_path):
    """As where memory runs out: the other saves, nothing else begins, and the message says what happened."""
    script, busy = tmp_path / "script.py", tmp_path / "busy"
    script.write_text(SCRIPT)
    busy.mkdir()
    with subprocess.Popen([sys.executable, script, busy], stderr=subprocess.PIPE, text=True) as starter:
        wait(lambda: len(list(busy.iterdir())) == 2)
        killed, other = (int(path.name) for path in busy.iterdir())
        os.kill(killed, signal.SIGKILL)
        message = starter.communicate(timeout=60)[1]
    assert "DqcoreError: a process was killed, as where memory runs out" in message
    assert {path.name for path in busy.iterdir()} == {str(killed), str(other), f"{other}-saved"}
    assert not runs(other)


def heeding():
    """Heed Ctrl-C, which a test that runs in the background of a shell would ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def runs(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait(done, seconds=60):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)
