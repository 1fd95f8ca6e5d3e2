"""dqcore: image tokenizers whose code length follows the image.

From the ground up; each layer imports only those before it:

- ``dqcore.kernels`` (Triton) and ``dqcore._C`` (C++ and CUDA) compute; both may be absent
- ``dqcore.ops``: the ops, each with a reference, a schema, gradients, and a choice of kernel
- ``dqcore.metrics``, ``dqcore.data`` and ``dqcore.nn``: measures, images and codes on disk, layers
- ``dqcore.quantizer``: :class:`DynamicQuantizer`, with its strategies in ``codebook`` and ``estimators``;
  ``dqcore.compat``: quantizers of other libraries on the same ops
- ``dqcore.stream``: the ``.dqc`` file
- ``dqcore.models``: the tokenizers :class:`VQGAN` and :class:`DQVAE`, the prior :class:`DQTransformer` and its
  alternatives; ``dqcore.convert`` reads the checkpoints that the paper's authors released
- ``dqcore.inference``, ``dqcore.training``, ``dqcore.report`` and ``dqcore.experiments``: models in use, models in the
  making, the page that shows a model, and the paper's claims measured
- ``dqcore.cli``: the command line, ``dqcore VERB``

:func:`warmup` compiles what a step launches before the step is captured or timed. Importing dqcore needs only PyTorch.
"""

import importlib as _importlib
import sys as _sys
from importlib.metadata import version as _version
from typing import TYPE_CHECKING as _TYPE_CHECKING

#: Whether Python was started as ``dqcore`` or ``python -m dqcore``. The public names are then imported only when one is
#: asked for, so that ``--help`` and a mistyped verb are answered without loading PyTorch.
_as_module = ("-m", "dqcore") in zip(_sys.orig_argv, _sys.orig_argv[1:], strict=False)
_is_command_line = _as_module or _sys.argv[0].endswith("/dqcore")
#: ``__getattr__`` imports the names by running this file a second time, and then ``_lazy`` exists already.
_lazy = _is_command_line and "_lazy" not in globals()

if _TYPE_CHECKING or not _lazy:
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

    _keep_old_paths()

__version__ = _version("dqcore")

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


if not _TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Import the public names when the first of them is asked for."""
        if not _lazy or name not in __all__:
            raise AttributeError(f"module 'dqcore' has no attribute {name!r}")
        _importlib.reload(_sys.modules[__name__])
        return globals()[name]


def __dir__() -> list[str]:
    """The public names; what is imported to make them stays out of sight."""
    return [*__all__, "__doc__", "__file__", "__name__", "__path__", "__version__"]
