"""Quantizers of other libraries, by their own interface, on dqcore's lookup; and dqcore's own old import paths.

``compat.vector_quantize_pytorch``, ``compat.taming``, ``compat.llamagen``, ``compat.titok`` and ``compat.diffusers``
hold classes with the names, arguments, return values, attributes and state-dict keys of those libraries.
:func:`replace_quantizers` puts them into a model.
"""

from dqcore.compat.replace import register, replace_quantizers

__all__ = ["register", "replace_quantizers"]
