"""Checks of what a quantizer is built from."""

from __future__ import annotations

from dqcore.errors import InputError
from dqcore.fields import as_float

__all__ = ["check_settings"]

#: A quantizer's strategies in the order of its arguments, and what each is.
_EXPECTED = {
    "learning": "EMA(..) or Gradient(..)",
    "initialisation": "Uniform() or KMeans(..)",
    "restart": "RandomRestart(..) or None",
    "metric": "Euclidean() or Cosine()",
    "estimator": "StraightThrough() or Rotation()",
}


def check_settings(nonfinite: object, commitment: float, *strategies: object) -> float:
    """Raise unless a quantizer's weight is no less than 0, and its strategies are objects, not words, flags or classes.

    Args:
        nonfinite: What a vector that is not finite does, a word or None.
        commitment: The weight.
        *strategies: Learning, initialisation, restart, metric, estimator: any objects that are called as ours are.

    Returns:
        The weight as a float.
    """
    if nonfinite not in (None, "raise", "mask"):
        raise InputError(f"nonfinite: expected raise, mask or None, got {nonfinite!r}")
    commitment = as_float(commitment=commitment)
    if not 0 <= commitment < float("inf"):
        raise InputError(f"commitment: expected at least 0, got {commitment}")
    for (name, expected), value in zip(_EXPECTED.items(), strategies, strict=True):
        known = hasattr(value, "build") if name == "learning" else callable(value)
        if isinstance(value, type) or not (known or (name == "restart" and value is None)):
            raise InputError(f"{name}: expected {expected}, got {value!r}")
    return commitment
