"""A training step of DQ-Transformer on packed codes, against the same step on a padded batch."""

import torch

import dqcore
from dqcore.data.crops import CenterCrop
from dqcore.data.images import image_to_tensor, read_image
from dqcore.data.sample import sample_photos
from dqcore.models.dq_transformer import DQTransformer
from dqcore.nn.router import EntropyRouter
from dqcore.testing import interleaved_medians

BATCH = 16


def photo_codes():
    """Random codes with the grain maps of real photographs, half of whose regions are fine."""
    crop = CenterCrop(128, 128)
    images = torch.stack([image_to_tensor(crop.prepare(read_image(path))) for path in sample_photos("train")])
    router = EntropyRouter((0.5,), 16)
    router.fit([images])
    grain = router(images, []).grain
    chosen = torch.randperm(len(grain), generator=torch.Generator().manual_seed(0))[:BATCH]
    codes = torch.randint(0, 256, (BATCH, 16, 16))
    return dqcore.pack_codes(codes, grain[chosen], num_granularities=2)


def bench_packed_training_step(benchmark, device):
    """At least 1.3 times the images a second of the padded batch; tokens processed are those that there are."""
    torch.manual_seed(0)
    sequence = photo_codes().to(device)
    model = DQTransformer.from_preset("dqtransformer-tiny").to(device).train()
    owner = torch.arange(BATCH, device=device).repeat_interleave(sequence.lengths.long())
    counts = torch.stack([torch.bincount(owner[sequence.grains == g], minlength=BATCH) for g in (0, 1)])
    longest = int(counts.amax(1).sum()) + 3  # each part is padded to its longest
    real = int(counts.sum()) + 3 * BATCH
    rows = []
    model.position_transformer.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))

    def packed():
        model(sequence).loss.backward()

    ends = torch.arange(0, BATCH * longest + 1, longest, dtype=torch.int32, device=device)
    tokens = torch.zeros(BATCH * longest, dtype=torch.int64, device=device)
    steps = torch.arange(longest, device=device).repeat(BATCH)

    def padded():
        x, positions = model._read(model.dropout(model._embed(tokens, tokens, tokens, steps)), ends)
        contents = model._write(x, tokens, ends)
        loss = sum(torch.nn.functional.cross_entropy(logits, tokens) for logits in (positions, contents))
        loss.backward()

    mine, theirs = interleaved_medians(packed, padded, rounds=3)
    assert rows[0] == real
    assert BATCH * longest / real > 1.15  # photographs do differ
    benchmark.extra_info |= {
        "tokens": real,
        "padded_tokens": BATCH * longest,
        "images_per_second": BATCH / mine,
        "speedup_over_padded": theirs / mine,
    }
    benchmark(packed)
