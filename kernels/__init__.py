"""Triton kernels: tensors in, tensors out. Imported as ``dqcore.kernels``; needs torch and triton, nothing else.

One file an op, named by its stem, read from the top: what is computed, how the work is divided and what stays in
registers, and the reference in ``dqcore.ops`` that it must equal; tile sizes as a pure function of shape and GPU; the
kernels, named ``_<what>_kernel``; last the launchers ``<stem>_fwd`` and ``<stem>_bwd``, which allocate, return early on
empty input and launch, and never make the host wait. Arguments were checked by the op.
"""

if __name__ != "dqcore.kernels":
    raise ImportError("import dqcore.kernels; kernels/ is only its folder")
