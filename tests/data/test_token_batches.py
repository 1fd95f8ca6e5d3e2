import itertools

import pytest
import torch

from dqcore.data.token_batches import TokenBatches


def test_token_batches_are_a_function_of_seed_and_step():
    lengths = torch.randint(5, 60, (500,))
    batches = TokenBatches(lengths, 300, seed=1)
    steps = batches.steps(0)
    first = list(batches.run(0, steps))
    assert sorted(torch.cat(first).tolist()) == list(range(500))
    sizes = torch.tensor([int(lengths[batch].sum()) for batch in first])
    assert int(sizes.max()) <= 300 and float(sizes.float().mean()) > 250
    spread = torch.stack([lengths[batch].float().std() for batch in first if len(batch) > 1]).mean()
    assert spread < 0.2 * lengths.float().std()  # images of like length go together
    later = list(batches.run(steps - 2, steps + 3))
    assert torch.equal(later[0], first[-2])
    assert torch.equal(later[-1], list(batches.run(0, steps + 3))[-1])
    halves = [list(TokenBatches(lengths, 300, seed=1, rank=rank, processes=2).run(0, 5)) for rank in (0, 1)]
    assert torch.equal(halves[1][2], first[5])
    assert batches.total(1.5) == steps + round(batches.steps(1) / 2)


def test_a_long_image_is_a_batch_of_its_own():
    batches = list(TokenBatches(torch.tensor([5, 90, 5, 5]), 15, seed=0).run(0, 2))
    assert sorted(map(len, batches)) == [1, 3] and [1] in [batch.tolist() for batch in batches]


def test_fewer_batches_than_processes():
    with pytest.raises(ValueError, match="token_budget: 100 tokens hold more than 2 processes can share"):
        TokenBatches(torch.tensor([5, 5]), 100, seed=0, processes=2)


def test_images_are_sorted_in_windows_and_batches_shuffled():
    """So an image meets others in the next epoch, and short images do not come first."""
    lengths = torch.arange(20, 420)
    batches = TokenBatches(lengths, 700, seed=1)
    steps = batches.steps(0)
    first, second = ([frozenset(b.tolist()) for b in batches.run(s, s + steps)] for s in (0, steps))
    assert len(set(first) & set(second)) < len(first) / 2
    means = [float(lengths[list(images)].float().mean()) for images in first]
    rises = sum(a < b for a, b in itertools.pairwise(means)) / (len(means) - 1)
    assert 0.3 < rises < 0.7
