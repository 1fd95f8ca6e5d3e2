"""Swap the quantizer of a model written against vector-quantize-pytorch.

Its layers return ``(quantized, indices, loss)``, the order of :class:`dqcore.Quantized`: the whole change is the line
that makes the quantizer. Sequences ``(B, N, dim)`` ask for ``channel_last=True``, feature maps for nothing.
"""

import torch
from torch import Tensor, nn

import dqcore


class SmallAutoencoder(nn.Module):
    """A convolutional autoencoder around any quantizer with vector-quantize-pytorch's return values."""

    def __init__(self, vq: nn.Module, dim: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, dim, 3, 2, 1), nn.GELU(), nn.Conv2d(dim, dim, 3, 2, 1))
        self.vq = vq
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(dim, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, indices ``(B, H, W)`` and commitment loss."""
        quantized, indices, commit_loss = self.vq(self.encoder(x))
        return self.decoder(quantized), indices, commit_loss


def train(vq: nn.Module, steps: int = 50) -> list[float]:
    """Train on random stripes; returns the losses."""
    torch.manual_seed(0)
    model = SmallAutoencoder(vq)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(steps):
        x = torch.sin(torch.rand(8, 1, 1, 1) * 6 + torch.linspace(0, 6, 32)).expand(8, 1, 32, 32)
        reconstruction, _, commit_loss = model(x)
        loss = (reconstruction - x).abs().mean() + commit_loss.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    """Train with ours, and say how the loss fell."""
    # before: VectorQuantize(dim=32, codebook_size=64, accept_image_fmap=True, commitment_weight=0.25)
    losses = train(dqcore.DynamicQuantizer(32, 64, commitment=0.25))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
