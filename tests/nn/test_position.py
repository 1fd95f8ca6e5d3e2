import torch

from dqcore.nn.position import FourierPosition, LearnedPosition, position_biases


def test_learned_is_exact_at_the_trained_size():
    bias = LearnedPosition(5, 3)
    expected = bias.rows[:, None] + bias.columns[None, :]
    assert torch.equal(bias(5, 5), expected.permute(2, 0, 1))


def test_learned_interpolates_between_its_ends():
    bias = LearnedPosition(3, 2)
    with torch.no_grad():
        bias.rows.copy_(torch.tensor([[0.0, 10], [2, 20], [4, 40]]))
        bias.columns.zero_()
    assert bias(5, 1)[:, :, 0].T.tolist() == [[0, 10], [1, 15], [2, 20], [3, 30], [4, 40]]


def test_learned_axes():
    bias = LearnedPosition(4, 2)
    with torch.no_grad():
        bias.columns.zero_()
    assert bias(4, 9).shape == (2, 4, 9)
    assert torch.equal(bias(4, 9)[:, :, 0], bias(4, 9)[:, :, 8])


def test_fourier_is_a_sine_of_coordinates_in_minus_one_to_one():
    bias = FourierPosition(4)
    values = bias(3, 7)
    for row, y in enumerate([-1.0, 0.0, 1.0]):
        for column in range(7):
            expected = torch.sin(bias.weight @ torch.tensor([column / 3 - 1, y]) + bias.bias)
            torch.testing.assert_close(values[:, row, column], expected)
    assert bias.bfloat16()(3, 7).dtype == torch.bfloat16


def test_names():
    for position, names in {
        "none": [],
        "fourier": ["fourier"],
        "learned": ["learned"],
        "fourier+learned": ["fourier", "learned"],
    }.items():
        assert list(position_biases(position, 4, 2)) == names
