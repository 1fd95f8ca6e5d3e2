"""dqcore: image tokenizers whose code length follows the image.

From the ground up; each layer imports only those before it:

- ``dqcore.kernels`` (Triton) and ``dqcore._C`` (C++ and CUDA) compute; both may be absent
- ``dqcore.ops``: the ops, each with a reference, a schema, gradients, and a choice of kernel
- ``dqcore.metrics``, ``dqcore.data`` and ``dqcore.nn``: measures, images and codes on disk, layers
- ``dqcore.quantizer``: :class:`DynamicQuantizer`, with its strategies in ``codebook`` and ``estimators``
- ``dqcore.models``: the tokenizers :class:`VQGAN` and :class:`DQVAE`, the prior :class:`DQTransformer` and its
  alternatives; ``dqcore.convert`` reads the checkpoints that the paper's authors released
- ``dqcore.inference``, ``dqcore.training`` and ``dqcore.report``: models in use, models in the making, and the page
  that shows a model
- ``dqcore.cli``: the command line, ``dqcore VERB``

:func:`warmup` compiles what a step launches before the step is captured or timed. Importing dqcore needs only PyTorch.
"""

import signal as _signal
import sys as _sys
from importlib.metadata import version as _version

#: Whether this is the command line, which imports everything here first. Ctrl-C ends it then without a traceback.
_starting = ("-m", "dqcore") in zip(_sys.orig_argv, _sys.orig_argv[1:], strict=False) or _sys.argv[0].endswith(
    "/dqcore"
)
if _starting and (_starting := _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler):
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from dqcore import convert, ops
from dqcore.backends import backend
from dqcore.codes import CodeSequence
from dqcore.compat import replace_quantizers
from dqcore.compat.moved import install as _keep_old_paths
from dqcore.models.priors.dq_transformer import DQTransformer, DQTransformerConfig
from dqcore.models.tokenizers.dqvae import DQVAE, DQVAEConfig
from dqcore.models.tokenizers.vqgan import VQGAN, VQGANConfig
from dqcore.ops.pack_codes import pack_codes
from dqcore.ops.unpack_codes import unpack_codes
from dqcore.precompile import warmup
from dqcore.quantizer import DynamicQuantizer, Quantized

__version__ = _version("dqcore")
_keep_old_paths()
if _starting:
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)

__all__ = [
    "DQVAE",
    "VQGAN",
    "CodeSequence",
    "DQTransformer",
    "DQTransformerConfig",
    "DQVAEConfig",
    "DynamicQuantizer",
    "Quantized",
    "VQGANConfig",
    "backend",
    "convert",
    "ops",
    "pack_codes",
    "replace_quantizers",
    "unpack_codes",
    "warmup",
]


def __dir__() -> list[str]:
    """The public names; what is imported to make them stays out of sight."""
    return [*__all__, "__doc__", "__file__", "__name__", "__path__", "__version__"]
