"""The state files of training runs; see :mod:`dqcore.tensor_files`."""

from dqcore.tensor_files import read_state, write_state

__all__ = ["read_state", "write_state"]
