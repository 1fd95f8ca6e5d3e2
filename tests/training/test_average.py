import copy

import torch
from torch import nn

from dqcore.training.average import WeightAverage


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.trained = nn.Parameter(torch.zeros(3))
        self.codes = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def _walk(average, model, values):
    for value in values:
        model.trained.data.fill_(value)
        model.codes.data.fill_(value)
        model.count.fill_(int(value))
        average.update_parameters(model)


def test_follows_its_formula_and_copies_the_rest():
    model = _Model().train()
    average = WeightAverage(model, decay=0.5)
    assert not average.module.training and model.training
    _walk(average, model, [1.0, 2.0, 4.0, 8.0, 16.0])
    expected = 1.0
    for updates, value in enumerate([2.0, 4.0, 8.0, 16.0], start=1):
        decay = min(0.5, (1 + updates) / (10 + updates))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.module.trained, torch.full((3,), expected))
    assert (average.module.codes == 16).all() and average.module.count == 16
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_resumes():
    model = _Model()
    average = WeightAverage(model, decay=0.9)
    _walk(average, model, [1.0, 5.0])
    other = WeightAverage(_Model(), decay=0.9)
    other.load_state_dict(copy.deepcopy(average.state_dict()))
    for each in (average, other):
        _walk(each, model, [3.0, 7.0])
    assert torch.equal(average.module.trained, other.module.trained)


def test_the_number_of_updates_stays_on_the_cpu():
    """Tensors without values stand for a GPU's: the host must not ask for any."""
    model = _Model().to("meta")
    average = WeightAverage(model, decay=0.5)
    for _ in range(3):
        average.update_parameters(model)
    assert int(average.n_averaged) == 3
