"""Triton kernels: tensors in, tensors out. Imported as ``dqcore.kernels``; needs torch and triton, nothing else.

One file an op, named by its stem. Its docstring says what is computed, how the work is divided, what stays in registers
and which reference in ``dqcore.ops`` it must equal. Then come the kernels, ``_<stem>_<part>_kernel``, and last the
launchers ``<stem>_fwd`` and ``<stem>_bwd``: they allocate, return early on empty input, launch, and never make the host
wait. The op has checked the arguments. Tiles that depend on the GPU or a size are rows of ``tables/<stem>.json``, read
by ``tuned``. A kernel is launched by ``launch(kernel, grid)(...)``, which is ``kernel[grid](...)`` in less time. A
launcher whose arguments have few shapes may be ``replayed``: calls that come again are its launches alone.

A kernel takes a tensor and its strides as one tuple, and tensors that belong together as one tuple. Numbers that change
from batch to batch stay by themselves: Triton's ``do_not_specialize`` does not reach into tuples. Comments give the
shape of each block that is loaded, stored or multiplied.

What an op shares or what would make its file long has a file named by what it does: ``nearest_code`` consists of
``vectors`` (where they lie), ``codes`` and ``rounding`` (half precision), ``scan`` and ``settle``; attention shares
``sequences`` (blocks of packed rows), ``dropout_mask`` and ``setting``, and decoding has ``cached_rows`` (what a cache
keeps); sampling shares ``draw`` and ``tape``. ``docs/exactness.md`` has the proofs.
"""

if __name__ != "dqcore.kernels":
    raise ImportError("import dqcore.kernels; kernels/ is only its folder")
