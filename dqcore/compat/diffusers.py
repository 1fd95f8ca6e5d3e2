"""The quantizer of diffusers' ``VQModel`` (``diffusers.models.autoencoders.vae``): same interface and state dict."""

from __future__ import annotations

from os import PathLike

from torch import Tensor

from dqcore.compat.remap import MapQuantizer
from dqcore.errors import whole_given

__all__ = ["VectorQuantizer"]


class VectorQuantizer(MapQuantizer):
    """Nearest code with a straight-through gradient; codes may be numbered anew.

    Args:
        n_e: Number of codes K.
        vq_embed_dim: Channels D.
        beta: Weight of one term of the loss, see ``legacy``.
        remap: A ``.npy`` file with the codes in use; codes are then given as places in it.
        unknown_index: What a code outside that file becomes: ``"random"``, ``"extra"`` (one more number) or a number.
        sane_index_shape: Return codes as ``(B, H, W)`` instead of ``(N,)``.
        legacy: Whether ``beta`` weighs the codebook's term ``mean((e - sg[z])^2)``; else the encoder's.

    Raises:
        InputError: A size that is not whole or below 1, or a weight that is no number.
    """

    def __init__(
        self,
        n_e: int,
        vq_embed_dim: int,
        beta: float,
        remap: str | PathLike | None = None,
        unknown_index: int | str = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        whole_given(1, n_e=n_e, vq_embed_dim=vq_embed_dim)
        super().__init__(n_e, vq_embed_dim, beta, remap, unknown_index, sane_index_shape, legacy)
        self.vq_embed_dim = vq_embed_dim

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Quantize a feature map.

        Args:
            z: ``(B, D, H, W)``.

        Returns:
            The quantized map; the loss; and None, None and the codes: ``(N,)``, with ``remap`` ``(N, 1)``, with
            ``sane_index_shape`` ``(B, H, W)``.
        """
        return self._quantize(z)
