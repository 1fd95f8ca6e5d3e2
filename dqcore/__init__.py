"""dqcore: vector quantization whose code length follows the image."""

from dqcore import ops
from dqcore.backends import backend
from dqcore.quantizer import DynamicQuantizer, Quantized

__all__ = ["DynamicQuantizer", "Quantized", "backend", "ops"]
