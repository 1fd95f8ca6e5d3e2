"""A training step of DQ-Transformer on packed codes, against the same step on a padded batch."""

import pytest
import torch
from rows import hold
from timing import interleaved_medians

import dqcore
from dqcore.data.crops import CenterCrop
from dqcore.data.images import image_to_tensor, read_image
from dqcore.data.photos import sample_photos
from dqcore.distributed import World
from dqcore.models.priors.dq_transformer import DQTransformer
from dqcore.nn.router import EntropyRouter
from dqcore.training.prior.step import PriorStep

BATCH = 16
SHARE = 0.5
#: Bfloat16 operations a second, by the name of the GPU: what a large product reaches on an H200 or H100, whose data
#: sheets say 989e12; of an A100 the data sheet's.
MATRIX_PEAK = {"H200": 790e12, "H100": 790e12, "A100": 312e12}


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
    """Meant to be 1.3 times the images a second of the padded batch; tokens processed are those that there are."""
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
        x, positions = model.predict_positions(model.dropout(model.embed(tokens, tokens, tokens, steps)), ends)
        contents = model.predict_contents(x, tokens, ends)
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
    hold(benchmark, at_least={"speedup_over_padded": 1.3})
    benchmark(packed)


def floating_operations(model, sequence):
    """Of a training step's matrix products, a multiplication and an addition each: backward is twice forward.

    Counted are the codes that there are and the causal half of the scores; nothing is counted twice for being
    computed again.
    """
    config = model.config
    layers = config.position_layers + config.content_layers
    lengths = sequence.lengths.double() + 2 * config.num_granularities - 1
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    scores = 2 * layers * config.dim * float(lengths.square().sum())
    return 3 * (2 * weights * float(lengths.sum()) + scores)


def test_floating_operations_are_those_that_run():
    """PyTorch's own counter, on one image, whose attention it sees as whole squares."""
    from torch.utils.flop_counter import FlopCounterMode

    model = DQTransformer.from_preset("dqtransformer-tiny", dropout=0.0).train()
    grain = torch.arange(64).view(1, 8, 8) % 2
    sequence = dqcore.pack_codes(torch.zeros(1, 16, 16, dtype=torch.int64), grain, num_granularities=2)
    with FlopCounterMode(display=False) as counter:
        model(sequence).loss.backward()
    products = ("mm", "addmm")
    counted = sum(n for name, n in counter.get_flop_counts()["Global"].items() if str(name).split(".")[1] in products)
    scores = 3 * 2 * 5 * 128 * (len(sequence.codes) + 3) ** 2
    assert counted == floating_operations(model, sequence) - scores


@pytest.mark.parametrize("compiled", [False, True])
def bench_base_training_step(benchmark, compiled):
    """Meant to reach half of what a large bfloat16 product does: base model, 32 images, half of their regions fine.

    The whole step: forward under autocast, backward, gradient norm, AdamW. On a CPU a small model, so that it runs.
    """
    cuda = torch.cuda.is_available()
    if compiled and not cuda:
        pytest.skip("compiled blocks are measured on a GPU")
    torch.manual_seed(0)
    preset, images, side = ("dqtransformer-base", 32, 16) if cuda else ("dqtransformer-tiny", 2, 8)
    device = torch.device("cuda" if cuda else "cpu")
    model = DQTransformer.from_preset(preset).to(device)
    grain = torch.stack([torch.randperm(side * side).view(side, side) % 2 for _ in range(images)])
    codes = torch.randint(0, model.config.codebook_size, (images, 2 * side, 2 * side))
    sequence = dqcore.pack_codes(codes, grain, num_granularities=2).to(device)
    if compiled:
        for part in (model.position_transformer, model.content_transformer):
            for block in part.blocks:
                block.compile(dynamic=True)
    step = PriorStep(model, World(0, 1, device), autocast=cuda)
    losses = [step(sequence, None, n, 3e-4)["content_loss"] for n in range(3)]  # also warms up
    assert losses[2] < losses[0], "it learns the batch"
    benchmark.pedantic(step, (sequence, None, 3, 3e-4), rounds=10 if cuda else 1, warmup_rounds=2 if cuda else 0)
    if benchmark.stats:
        rate = floating_operations(model, sequence) / benchmark.stats.stats.median
        peak = next((v for name, v in MATRIX_PEAK.items() if cuda and name in torch.cuda.get_device_name()), None)
        benchmark.extra_info |= {
            "tokens": len(sequence.codes) + 3 * images,
            "images_per_second": images / benchmark.stats.stats.median,
            "operations_per_second": rate,
            "matrix_peak": peak,
            "share_of_matrix_peak": None if peak is None else rate / peak,
        }
        if peak is not None:
            hold(benchmark, at_least={"share_of_matrix_peak": SHARE})
