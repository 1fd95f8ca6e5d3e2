"""To and from the checkpoints that the paper's authors released, and those of taming-transformers and LlamaGen.

VQGANs of taming-transformers and LlamaGen need no configuration: their sizes are read from their tensors.

Each converter of the authors' models takes their state dict and their configuration, a dict (for ``dqcore convert`` a
JSON file). Keys that are not named here are ignored.

A tokenizer's configuration:

- ``kind``: ``"dual"`` or ``"triple"``, for two or three granularities.
- ``router``: ``target`` and ``params`` as in their YAML files.
- ``ch``, ``ch_mult``, ``decoder_ch_mult``, ``z_channels``, ``num_res_blocks``, ``resolution``, ``codebook_size``,
  ``encoder_attn_resolutions``, ``decoder_attn_resolutions``: as in their YAML files.
- ``position_type``: optional, ``"fourier+learned"`` by default.
- ``commitment_beta``: optional, 0.25 by default.

The threshold of an entropy router, in nats, is ``threshold`` in its ``params``. Or ``params`` hold
``fine_grain_ratito`` (their spelling), and ``json_path`` or ``thresholds``: a file or a mapping of percentiles ``"1"``
to ``"99"`` to nats. Without either, ``model.router.fit(images)`` finds a threshold. ``bins`` is ``[-1, 1]`` unless
given; the released checkpoint was trained with ``[0, 1]`` and must be given that.

A DQ-Transformer's configuration:

- ``coarse_hw``: regions along a side, or a pair of them.
- ``codebook_size``, ``position_layers``, ``content_layers``, ``heads``, ``dim``.
- ``num_classes``: optional, 0 by default, for a model without classes.
- ``fine_position_order``: optional, ``"region-first"`` by default, or ``"row-first"``.
- ``special_tokens``: optional; padding, end and (first) start of ``content``, ``coarse_position`` and
  ``fine_position``, which must follow the codes or positions in this order.
"""

from dqcore.convert.official import load_official
from dqcore.convert.prior import dqtransformer_from_official, dqtransformer_to_official
from dqcore.convert.tokenizer import dqvae_from_official, dqvae_to_official
from dqcore.convert.vqgan import recognise, vqgan_from_llamagen, vqgan_from_taming, vqgan_to_taming

__all__ = [
    "dqtransformer_from_official",
    "dqtransformer_to_official",
    "dqvae_from_official",
    "dqvae_to_official",
    "load_official",
    "recognise",
    "vqgan_from_llamagen",
    "vqgan_from_taming",
    "vqgan_to_taming",
]
