"""The settings of sampling: one value that the command line, ``write_samples`` and the priors pass on."""

from __future__ import annotations

from dataclasses import dataclass

from dqcore.errors import InputError
from dqcore.fields import check_fields
from dqcore.models.sampling.draw import Draw, check_draw
from dqcore.nn.attention import CacheKind

__all__ = ["Sampling"]


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        temperature: Divides the logits of contents; more than 0.
        top_k: Contents are drawn from the ``top_k`` likeliest codes; None for all.
        top_p: Contents are drawn from the smallest set of likeliest codes whose probabilities reach this sum, in
            ``(0, 1]``.
        position_temperature: As ``temperature``, for positions; None takes ``temperature``.
        position_top_k: As ``top_k``, for positions.
        position_top_p: As ``top_p``, for positions.
        guidance: ``s`` in ``logits without class + s (logits with class - logits without class)``. 1 runs the model
            once for each sample, any other number twice.
        cache: How the keys and values of the tokens so far are kept: "weights", in the dtype of the weights, with which
            the samples are those that the model defines; "bfloat16", 2 bytes a number; "int8", 1 byte a number and a
            scale for each token and head; "auto", bfloat16 for a float32 model on a GPU and else as the weights.

    Raises:
        InputError: A setting is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = 300
    top_p: float = 1.0
    position_temperature: float | None = None
    position_top_k: int | None = None
    position_top_p: float = 1.0
    guidance: float = 1.0
    cache: CacheKind = "auto"

    def __post_init__(self) -> None:
        check_fields(self)
        check_draw(self.temperature, self.top_k, self.top_p)
        temperature = self.temperature if self.position_temperature is None else self.position_temperature
        check_draw(temperature, self.position_top_k, self.position_top_p, prefix="position_")
        most = 1e30 * min(1.0, self.temperature, temperature)  # beyond, quotients leave float32
        if self.copies > 1 and not abs(self.guidance) <= most:
            raise InputError(f"guidance: expected at most 1e30 times the temperature either way, got {self.guidance}")

    @property
    def contents(self) -> Draw:
        """How contents are drawn."""
        return Draw(self.temperature, self.top_k, self.top_p)

    @property
    def positions(self) -> Draw:
        """How positions are drawn."""
        temperature = self.temperature if self.position_temperature is None else self.position_temperature
        return Draw(temperature, self.position_top_k, self.position_top_p)

    @property
    def copies(self) -> int:
        """How often the model runs for each sample."""
        return 1 if self.guidance == 1.0 else 2
