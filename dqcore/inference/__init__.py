"""Trained models in use, above ``load`` and ``measure``: a file for each thing that is done with them.

- images to codes: ``encode_batch`` in memory; ``encode_shards`` to a folder that a prior is trained on;
  ``encode_streams`` to ``.dqc`` files, with ``budget`` for their size, ``codec`` for their bytes, ``stream_file`` and
  ``stream_folder`` for where they go
- codes to images: ``decode``; there and back: ``reconstruct``
- images from a prior: ``sample``, ``complete``
- how good a tokenizer is: ``evaluate``, over ``measure``, ``compare`` (with codecs), ``twin``, ``paired`` and ``sets``
"""

from dqcore.inference.measure import Evaluation, evaluate_tokenizer

__all__ = ["Evaluation", "evaluate_tokenizer"]
