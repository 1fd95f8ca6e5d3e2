"""dqcore: vector quantization whose code length follows the image."""

from dqcore import ops
from dqcore.backends import backend

__all__ = ["backend", "ops"]
