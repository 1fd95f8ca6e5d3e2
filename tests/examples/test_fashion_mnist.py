"""The class-conditional run on real Fashion-MNIST, where Debian's package of it is installed."""

import importlib.util
from pathlib import Path

import pytest

DATA = Path("/usr/share/datasets/fashion-mnist")
SCRIPT = Path(__file__).parents[2] / "examples" / "fashion_mnist.py"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_a_classifier_recognises_the_samples(tmp_path):
    spec = importlib.util.spec_from_file_location("fashion_mnist", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    result = example.main(DATA, tmp_path)
    assert result["accuracy_on_real"] > 0.85
    assert result["accuracy_on_samples"] >= 0.7
