"""Triton kernels: tensors in, tensors out. Imported as ``dqcore.kernels``; needs torch and triton, nothing else.

One file an op, named by its stem, read from the top: what is computed, how the work is divided and what stays in
registers, and the reference in ``dqcore.ops`` that it must equal; the kernels, named ``_<what>_kernel``; last the
launchers ``<stem>_fwd`` and ``<stem>_bwd``, which allocate, return early on empty input and launch, and never make the
host wait. Arguments were checked by the op. Tiles that a GPU or a size decides are rows of ``tables/<stem>.json``
(``tuned``). Kernels of one op that need files of their own are named by what they do: ``nearest_code`` is made of
``tokens`` (which vectors), ``rounding``, ``scan`` and ``settle``.
"""

if __name__ != "dqcore.kernels":
    raise ImportError("import dqcore.kernels; kernels/ is only its folder")
