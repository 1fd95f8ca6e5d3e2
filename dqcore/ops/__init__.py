"""The ops: what is computed, in three files of one name (its *stem*) for each.

``<stem>.py`` has the public function, which checks its arguments, and registers the op with torch: its schema, which
implementation runs where, and its gradient. ``reference/<stem>.py`` is the specification. ``cpu/<stem>.py`` is a faster
implementation for the CPU, where there is one. Triton kernels are ``dqcore.kernels.<stem>``, C++ and CUDA ones
``csrc/cpu/<stem>.cpp`` and ``csrc/cuda/<stem>.cu``. Arguments and results have the same order in all of them.

Dimensions: ``B`` batch, ``N`` vectors, ``K`` codes, ``D`` channels, ``H W`` finest grid, ``h w`` region grid (the
coarsest), ``G`` granularities, ``T`` codes of a packed batch.

Five ops are for one caller alone, the sampler's ``add_rows``, ``draw``, ``take_entry`` and ``take_content``, and the
codebook's ``draw_vectors``: they trust it, check nothing, and are imported from their own files.
"""

from dqcore.ops.add_layer_norm import add_layer_norm
from dqcore.ops.bias_gelu import bias_gelu
from dqcore.ops.code_sums import CodeSums, code_sums
from dqcore.ops.codebook_update import codebook_update
from dqcore.ops.cross_entropy import cross_entropy
from dqcore.ops.decode_attention import decode_attention
from dqcore.ops.dropout_mask import dropout_mask
from dqcore.ops.dynamic_lookup import Lookup, dynamic_lookup
from dqcore.ops.expand_features import expand_features
from dqcore.ops.linear_gelu import linear_gelu
from dqcore.ops.lookup_loss import LookupLoss, lookup_loss
from dqcore.ops.nearest_code import nearest_code
from dqcore.ops.pack_codes import pack_codes
from dqcore.ops.pack_features import pack_features
from dqcore.ops.patch_entropy import patch_entropy
from dqcore.ops.unpack_codes import unpack_codes
from dqcore.ops.varlen_attention import varlen_attention
from dqcore.ops.varlen_attention_packed import varlen_attention_packed

__all__ = [
    "CodeSums",
    "Lookup",
    "LookupLoss",
    "add_layer_norm",
    "bias_gelu",
    "code_sums",
    "codebook_update",
    "cross_entropy",
    "decode_attention",
    "dropout_mask",
    "dynamic_lookup",
    "expand_features",
    "linear_gelu",
    "lookup_loss",
    "nearest_code",
    "pack_codes",
    "pack_features",
    "patch_entropy",
    "unpack_codes",
    "varlen_attention",
    "varlen_attention_packed",
]
