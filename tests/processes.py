"""Several processes of one test, as torchrun would start them.

They are forked from servers that have imported the package, as each import would take longer than the test; the
environment is what it would be, and so is all that an interpreter does at its end. Processes of even and odd rank come
from different servers, so that sets of strings have another order in them, as between processes that were started anew.
"""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SERVER = Path(__file__).with_name("fork_server.py")


def places(size):
    """The environment of each of ``size`` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    rest = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [os.environ | rest | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


@functools.cache
def _server(number):
    """A process to fork others from, for as long as this one runs."""
    server = subprocess.Popen([sys.executable, SERVER], stdin=subprocess.PIPE, text=True)
    atexit.register(_end, server)
    return server


def _end(server):
    server.stdin.close()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:  # a process that a test forked from this one may hold the input open
        server.kill()


@functools.cache
def _folder():
    folder = tempfile.TemporaryDirectory(prefix="dqcore-processes-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


class Process:
    """A script in a process forked from a server; what of ``subprocess.Popen`` the tests need.

    Args:
        script: What to run as ``__main__``.
        words: Its arguments.
        environment: All of its environment.
        server: The number of the server to fork from.
    """

    def __init__(self, script, words, environment, server):
        self.place = Path(tempfile.mkdtemp(dir=_folder())) / "process"
        self.server = _server(server)
        order = {"script": script, "words": list(map(str, words)), "environment": dict(environment)}
        order |= {"place": str(self.place), "folder": os.getcwd()}
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()

    @property
    def returncode(self):
        """What it ended with, minus the signal if it was killed; None while it runs."""
        file = self.place.with_suffix(".code")
        return int(file.read_text()) if file.exists() else None

    def wait(self, timeout=None):
        """Its exit code, when it has ended."""
        end = time.monotonic() + (timeout or float("inf"))
        while self.returncode is None:
            assert self.server.poll() is None, "the server that processes are forked from has ended"
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.place), timeout)
            time.sleep(0.01)
        return self.returncode

    def communicate(self, timeout=None):
        """What it wrote to stdout and to stderr, when it has ended."""
        self.wait(timeout)
        return tuple(self.place.with_suffix(suffix).read_text() for suffix in (".out", ".err"))

    def kill(self):
        """At once, and whatever state it is in."""
        file = self.place.with_suffix(".pid")
        while self.returncode is None and not (file.exists() and file.read_text().endswith("\n")):
            time.sleep(0.01)
        if self.returncode is None:
            os.kill(int(file.read_text()), signal.SIGKILL)
            self.wait(60)


def start(script, *words, size):
    """Start a script in each process."""
    return [Process(script, words, place, rank % 2) for rank, place in enumerate(places(size))]


def launch(script, *words, size):
    """Run a script in each process; gives exit code, stdout and stderr of each."""
    started = start(script, *words, size=size)
    try:
        found = [process.communicate(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, found, strict=True)]


def run(script, *words):
    """Run a script in one process that belongs to no group; gives exit code, stdout and stderr."""
    process = Process(script, words, os.environ, 0)
    try:
        texts = process.communicate(timeout=150)
    finally:
        process.kill()
    return process.returncode, *texts
