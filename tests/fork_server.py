"""Runs scripts in processes of their own, forked from one that has imported the package: ``python fork_server.py``.

Each line of stdin is one order, see :func:`processes.start`. The process that is forked leaves the loop and goes on as
``python -c script`` would: its own streams, environment, ``sys.argv`` and ``__main__``, and the interpreter's own end.
A keeper between it and this one waits for it and writes its exit code.
"""

import json
import os
import signal
import sys
import types
from pathlib import Path


def preload():
    """What nearly every script imports, which takes seconds; no thread may run afterwards."""
    import PIL.Image  # noqa: F401
    import torch.distributed.fsdp  # noqa: F401

    import dqcore.cli
    import dqcore.inference.encode_shards
    import dqcore.training.prior.run
    import dqcore.training.tokenizer.run  # noqa: F401


def keep(process, place):
    """Wait for a process, write its exit code under its own name once it is whole, and end."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    place.with_suffix(".part").write_text(str(code))
    place.with_suffix(".part").rename(place.with_suffix(".code"))
    os._exit(0)


def become(order, place):
    """Streams, environment and words of a process that was started for this order alone."""
    for number, suffix in ((1, ".out"), (2, ".err")):
        file = os.open(place.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    sys.argv = ["-c", *order["words"]]


def serve():
    """The next script that this process is to run: a child's; the server itself ends with its input."""
    for line in iter(sys.stdin.readline, ""):
        order = json.loads(line)
        place = Path(order["place"])
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process = os.fork()
        if process:
            place.with_suffix(".pid").write_text(f"{process}\n")
            keep(process, place)
        become(order, place)
        return order["script"]
    raise SystemExit


def main():
    """In a child only this returns: the code to run in a fresh ``__main__``."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    preload()
    code = compile(serve(), "<string>", "exec")
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


if __name__ == "__main__":
    main()
