"""The state files of training runs; see :mod:`dqcore.files.tensors`."""

from dqcore.files.tensors import read_state, write_state

__all__ = ["read_state", "write_state"]
