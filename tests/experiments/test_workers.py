"""The processes of experiments end with the one that started them, whether it is told to end or killed."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dqcore.errors import DqcoreError
from dqcore.experiments.workers import do_in_processes

SCRIPT = """
import os, pathlib, sys, time
from dqcore.experiments.workers import do_in_processes

def work(folder):
    pathlib.Path(folder, str(os.getpid())).touch()
    time.sleep(100)

if __name__ == "__main__":
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
    assert len(list(busy.iterdir())) == 2, "the third task began"


@pytest.mark.slow
def test_a_process_that_was_killed(tmp_path):
    with pytest.raises(DqcoreError, match="a process was killed, as where memory runs out"):
        do_in_processes([(os._exit, (1,), "")], 1, print)


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
