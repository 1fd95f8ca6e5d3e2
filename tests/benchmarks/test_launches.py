"""Launches of a step of sampling and of a layer in training, counted without a GPU, so that none is added unseen.

Beside the layers a step has four: what reads a token, what draws a position and goes there, what adds its vector, what
draws the code and ends the step. Each of the two heads has a normalization and a product.
"""

import pytest

pytest.importorskip("triton")
from launches import sampling_step, training_layer

from dqcore.kernels import common


@pytest.mark.skipif(not common.INTERPRETED, reason="the tables of tiles ask a GPU which one it is")
def test_a_layer_and_what_is_beside_the_layers():
    one, two = sampling_step(1, 1), sampling_step(1, 2)
    each = len(two) - len(one)
    assert each <= 7
    kernels = ["_add_rows_kernel", "_take_entry_kernel", "_add_rows_kernel", "_take_content_kernel"]
    assert [name for name in one if name in kernels] == kernels  # the walk and its draws
    assert len(one) - 2 * each <= len(kernels) + 2 * len(("layer_norm", "linear"))  # and two heads
    assert one.count("_decode_attention_fwd_kernel") == 2
    assert sampling_step(1, 1, cache="int8") == one  # who appends quantizes


@pytest.mark.skipif(not common.INTERPRETED, reason="the tables of tiles ask a GPU which one it is")
def test_a_layer_in_training():
    each, size = training_layer(rows=1024, dim=256)
    assert each <= 35 and size <= 90 * 1024 * 256
