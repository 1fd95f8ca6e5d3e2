"""dqcore: vector quantization whose code length follows the image."""

from dqcore import convert, ops
from dqcore.backends import backend
from dqcore.models.dqvae import DQVAE, DQVAEConfig
from dqcore.models.vqgan import VQGAN, VQGANConfig
from dqcore.quantizer import DynamicQuantizer, Quantized

__all__ = ["DQVAE", "VQGAN", "DQVAEConfig", "DynamicQuantizer", "Quantized", "VQGANConfig", "backend", "convert", "ops"]
