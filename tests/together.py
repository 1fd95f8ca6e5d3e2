"""Triton's interpreter with all programs of a grid at once: each runs to where they wait for each other, in turn."""

import inspect
import threading

from triton.runtime import interpreter


class Program(threading.Thread):
    """One program of a grid. It runs while its starter waits for it, never beside another one."""

    def __init__(self, index, run):
        super().__init__(daemon=True)
        self.index, self.run_it = index, run
        self.go, self.parked = threading.Semaphore(0), threading.Semaphore(0)
        self.over, self.error = False, None
        self.start()

    def run(self):
        self.go.acquire()
        try:
            self.run_it()
        except BaseException as error:
            self.error = error
        self.over = True
        self.parked.release()

    def resume(self):
        """Run up to the next wait, or to the end."""
        interpreter.interpreter_builder.set_grid_idx(self.index, 0, 0)
        self.go.release()
        self.parked.acquire()
        if self.error is not None:
            raise self.error

    def wait(self):
        self.parked.release()
        self.go.acquire()


def wait_for_all(arrived, turn, PROGRAMS):
    """Stands for ``kernels.grid.wait_for_all``."""
    threading.current_thread().wait()


def launch(self, *args_dev, **kwargs):
    """Stands for ``GridExecutor.__call__``, for a grid of one dimension. The last program goes first in each turn."""
    kwargs = {key: value for key, value in kwargs.items() if key in inspect.getfullargspec(self.fn).args}
    args_hst, kwargs_hst = self._init_args_hst(args_dev, kwargs)
    scope = interpreter._patch_lang(self.fn)
    try:
        args = inspect.getcallargs(self.fn, *args_hst, **kwargs_hst)
        args = {
            name: value if name in self.constexprs else interpreter._implicit_cvt(value) for name, value in args.items()
        }
        interpreter.interpreter_builder.set_grid_dim(*self.grid, 1, 1)
        waiting = [Program(index, lambda: self.fn(**args)) for index in reversed(range(self.grid[0]))]
        while waiting:
            for program in waiting:
                program.resume()
            ended = {program.over for program in waiting}
            assert len(ended) == 1, "some programs wait for others that have ended"
            waiting = [program for program in waiting if not program.over]
    finally:
        if scope is not None:  # in Triton 3.4 nothing is put back
            scope.restore()
    self._restore_args_dev(args_dev, args_hst, kwargs, kwargs_hst)


def run_together(monkeypatch, number, *modules):
    """Launch the cooperative kernels of these modules with ``number`` programs."""
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
    for module in modules:
        monkeypatch.setattr(module, "wait_for_all", wait_for_all)
        monkeypatch.setattr(module, "programs", lambda most: number)
