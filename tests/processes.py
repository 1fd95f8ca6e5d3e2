"""Several processes of one test, as torchrun would start them."""

import os
import socket
import subprocess
import sys


def places(size):
    """The environment of each of ``size`` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    rest = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [os.environ | rest | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def launch(script, *words, size):
    """Run a script in each process; gives exit code, stdout and stderr of each."""
    command = [sys.executable, "-c", script, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=place, **pipes) for place in places(size)]
    try:
        found = [process.communicate(timeout=150) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, found, strict=True)]
