"""Swap the quantizer of a VQGAN written against taming-transformers' convention.

There a quantizer returns ``(quantized, loss, (perplexity, one_hot, indices))`` and a model decodes indices through
``get_codebook_entry``. ``TamingQuantizer`` speaks that: ``self.quantize = TamingQuantizer(...)`` is the whole change.
"""

import torch
from torch import Tensor, nn

import dqcore


class TamingQuantizer(dqcore.DynamicQuantizer):
    """A :class:`dqcore.DynamicQuantizer` with taming-transformers' return values."""

    def forward(self, z: Tensor, *args: object) -> tuple[Tensor, Tensor, tuple[Tensor, None, Tensor]]:
        """Quantize ``z (B, C, H, W)``; the indices come flat, in raster order."""
        quantized, codes, loss = super().forward(z, *args)
        frequency = torch.bincount(codes.flatten(), minlength=self.codebook_size) / codes.numel()
        return quantized, loss, (torch.special.entr(frequency).sum().exp(), None, codes.flatten())

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Vectors of flat ``indices`` as a map ``(B, C, H, W)``; ``shape`` is ``(B, H, W, C)``."""
        return self.embed(indices.view(shape[:3]))


class SmallVQModel(nn.Module):
    """The part of a VQGAN that touches its quantizer, as taming-transformers writes it."""

    def __init__(self, quantize: nn.Module, z_channels: int = 32, embed_dim: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, z_channels, 4, 4), nn.SiLU(), nn.Conv2d(z_channels, z_channels, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(z_channels, z_channels, 1), nn.SiLU(), nn.ConvTranspose2d(z_channels, 3, 4, 4)
        )
        self.quantize = quantize
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, tuple]:
        """Quantized features, loss, and what the quantizer says of its codes."""
        return self.quantize(self.quant_conv(self.encoder(x)))

    def decode(self, quant: Tensor) -> Tensor:
        """Images from quantized features."""
        return self.decoder(self.post_quant_conv(quant))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruction and quantizer loss."""
        quant, diff, _ = self.encode(x)
        return self.decode(quant), diff


def main(steps: int = 50) -> list[float]:
    """Train on random stripes; returns the losses."""
    torch.manual_seed(0)
    model = SmallVQModel(TamingQuantizer(16, 64))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        x = torch.sin(torch.rand(8, 1, 1, 1) * 6 + torch.linspace(0, 6, 32)).expand(8, 3, 32, 32)
        reconstruction, quantizer_loss = model(x)
        loss = (reconstruction - x).abs().mean() + quantizer_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, perplexity {model.quantize.perplexity:.1f}")
    return losses


if __name__ == "__main__":
    main()
