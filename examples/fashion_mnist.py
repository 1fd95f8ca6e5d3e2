"""Class-conditional Fashion-MNIST, from IDX files to pictures that a classifier recognises.

This trains a DQ-VAE with 4 x 4 regions of 1 or 4 codes and a DQ-Transformer on its codes, and draws 1,000 samples of
the ten classes. A classifier that was trained on real pictures then counts how many samples show the class that was
asked for. It takes about ten minutes on two cores:

    apt-get install dataset-fashion-mnist
    python examples/fashion_mnist.py
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from dqcore import DQVAE
from dqcore.data.idx import FASHION_CLASSES, export_idx, read_idx_pair
from dqcore.inference.sample import decode_sequence, load_pair, write_samples
from dqcore.training import TokenizerTraining, train_tokenizer
from dqcore.training.prior.run import PriorTraining, train_prior

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def train_on_pictures(images: Path, out: Path, tokenizer_steps: int, prior_steps: int) -> None:
    """Train a tokenizer and then a prior, each in its own folder below ``out``."""
    torch.manual_seed(0)
    model = DQVAE.from_preset(
        "dqvae-dual-entropy-tiny",
        strides=(8, 4),
        codebook_size=128,
        dim=16,
        latent_channels=32,
        encoder_multipliers=(1, 2, 2, 2),
        decoder_multipliers=(1, 2, 2),
        encoder_attention=(),
        decoder_attention=(),
        resolution=32,
        initialisation="kmeans",
        restart=True,
    )
    options = TokenizerTraining(
        data=images,
        recipe="imagenet",
        preset="dqvae-dual-entropy-tiny",
        out=out / "tokenizer",
        steps=tokenizer_steps,
        batch_size=32,
        image_size=32,
        flip=False,
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=20,
        gradient_clip=1.0,
        average_decay=0.99,
        perceptual="none",
        discriminator=False,
        workers=0,
        validate_every=10**6,
        device="cpu",
    )
    train_tokenizer(options, model=model)
    train_prior(
        PriorTraining(
            data=images,
            recipe="paper",
            tokenizer=out / "tokenizer",
            out=out / "prior",
            preset="dqtransformer-tiny",
            classes=True,
            label_dropout=0.1,
            dropout=0.0,
            image_size=32,
            encode_batch=64,
            steps=prior_steps,
            token_budget=2_000,
            learning_rate=1.5e-3,
            warmup_steps=30,
            gradient_clip=1.0,
            average_decay=0.99,
            device="cpu",
        )
    )


def new_classifier(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    """A small convolutional network, trained on real pictures ``(N, 1, 32, 32)`` in [-1, 1]."""
    net = nn.Sequential(
        nn.Conv2d(1, 24, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(128):
            loss = F.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def real_pictures(data: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures ``(N, 1, 32, 32)`` in [-1, 1] and their labels."""
    images, labels = read_idx_pair(data, split)
    return F.pad(images, (2, 2, 2, 2))[:, None].float() / 127.5 - 1, labels


@torch.no_grad()
def accuracy(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of pictures whose label the classifier finds."""
    return float((net(images).argmax(1) == labels).float().mean())


def main(
    data: Path = DEBIAN,
    out: Path = Path("runs/fashion"),
    *,
    pictures: int = 10_000,
    tokenizer_steps: int = 400,
    prior_steps: int = 600,
    samples: int = 1000,
    guidance: float = 2.0,
) -> dict[str, float]:
    """Train, draw and classify samples; returns the classifier's accuracy on real test pictures and on the samples."""
    folder = out / "images"
    if not folder.is_dir():
        export_idx(data, folder, limit=pictures)
    if not (out / "prior" / "model").is_dir():
        train_on_pictures(folder, out, tokenizer_steps, prior_steps)
    prior, tokenizer = load_pair(out / "prior")
    names = json.loads((out / "prior" / "model" / "classes.json").read_text())
    labels = torch.arange(samples) % len(names)
    drawn = decode_sequence(tokenizer, prior.generate(samples, labels, seed=1, guidance=guidance), 100)
    torch.manual_seed(0)
    net = new_classifier(*real_pictures(data, "train"), epochs=2)
    truth = torch.tensor([FASHION_CLASSES.index(names[label]) for label in labels.tolist()])
    result = {
        "accuracy_on_real": accuracy(net, *real_pictures(data, "t10k")),
        "accuracy_on_samples": accuracy(net, drawn.clamp(-1, 1).mean(1, keepdim=True), truth),
    }
    write_samples(prior, tokenizer, out / "samples", 64, labels=labels[:64], seed=1, guidance=guidance)
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEBIAN, help="folder of IDX files")
    parser.add_argument("--out", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--guidance", type=float, default=2.0)
    chosen = parser.parse_args()
    main(chosen.data, chosen.out, guidance=chosen.guidance)
