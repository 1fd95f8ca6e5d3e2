"""What sampling means, written to be read: no caches, no slots, no batches, no speed.

:func:`generate` draws what :meth:`dqcore.models.priors.base.Prior.sample` draws, code for code, from every prior that
walks a tape (:mod:`dqcore.models.tape`). At each step the model reads all tokens so far. Then the position and after it
the content of the next token is drawn (paper, section 3.3). :func:`generate_by_region` does the same for
:class:`dqcore.models.priors.global_local.GlobalLocal`. Tests compare the fast samplers with these two. Their arguments
are those of ``Prior.sample``; they are not checked here. The prior is on the CPU and in evaluation mode. What
``sampling.cache`` rounds is not imitated: there is no cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dqcore.codes import CodeSequence
from dqcore.models.sampling.draw import uniforms
from dqcore.models.sampling.regions import RegionModel
from dqcore.models.sampling.settings import Sampling
from dqcore.models.sampling.steps import TapeModel
from dqcore.models.tape import NULL, Tape

__all__ = ["generate", "generate_by_region"]


@torch.no_grad()
def generate(
    prior: TapeModel,
    batch_size: int,
    labels: Tensor | int | None = None,
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    given: CodeSequence | None = None,
    closed: int = 0,
    stop_after: int | None = None,
) -> CodeSequence:
    """Draw the samples ``first`` to ``first + batch_size - 1`` of a seed from DQ-Transformer or a raster prior."""
    sampling, tape = sampling or Sampling(), prior.tape
    drawn = torch.full((batch_size, len(tape)), -1)
    for image, label in enumerate(_labels_of(labels, batch_size, prior.config.num_classes)):
        copies = (label, NULL)[: sampling.copies]  # guidance runs the model with the class and without
        numbers = uniforms(seed, torch.tensor([first + image]), 2 * len(tape)).view(len(tape), 2)
        known = {} if given is None else _codes_by_entry(tape, given[image])
        regions = _Regions(tape, known, closed, stop_after)

        entries, contents = [0], [int(tape.contents[0])]  # every image begins with a start token
        while entries[-1] < len(tape) - 1:
            # The position transformer reads all tokens so far. Its last state predicts the position of the next one,
            # which is drawn from those that keep the image valid. (A plain raster prior knows all positions.)
            states, position_logits = _predict_position(prior, entries, contents, copies, sampling)
            candidates = regions.may_come_next(entries[-1])
            entry = candidates[0]
            if position_logits is not None:
                logits = torch.full((len(tape),), -torch.inf)
                logits[candidates] = position_logits[tape.columns[candidates]]
                entry = int(sampling.positions(logits[None], numbers[entries[-1], 1:]))

            # The content transformer reads the states, to each of which the position of the token after it is added.
            # Its last output predicts the next content, which is drawn unless it is a special token's or is given.
            if tape.positions[entry] < 0:
                content = int(tape.contents[entry])
            elif entry in known:
                content = known[entry]
            else:
                logits = _predict_content(prior, states, [*entries[1:], entry], copies, sampling)
                content = int(sampling.contents(logits[None], numbers[entry, :1]))
            regions.take(entry)
            entries.append(entry)
            contents.append(content)
        drawn[image, entries] = torch.tensor(contents)
    return tape.to_sequence(drawn, tape.order)


class _Regions:
    """The granularity of each region of one image as far as it is known, and thus which entries may come next.

    Args:
        tape: The tape.
        known: Codes that are given, by entry; their regions have no other codes.
        closed: Granularities below this one have no codes but the given ones.
        stop_after: Finer granularities than this one have no codes.
    """

    def __init__(self, tape: Tape, known: dict[int, int], closed: int, stop_after: int | None) -> None:
        self.grains, self.positions = tape.grains.tolist(), tape.positions.tolist()
        self.width, self.finest = tape.region_grid[1], tape.num_granularities - 1
        self.closed, self.last = closed, self.finest if stop_after is None else stop_after
        self.given = {self._region_and_cell(entry)[0]: self.grains[entry] for entry in known}
        self.chosen = dict(self.given)

    def may_come_next(self, here: int) -> list[int]:
        """Entries after ``here`` that may be taken, up to the first that must not be passed over."""
        found = []
        for entry in range(here + 1, len(self.grains)):
            grain, is_code, must = self.grains[entry], self.positions[entry] >= 0, True
            if is_code:
                region, cell = self._region_and_cell(entry)
                if grain > self.last or (region not in self.given and grain < self.closed):
                    continue
                if region in self.chosen:
                    if grain != self.chosen[region]:
                        continue  # another granularity covers the region
                else:
                    if cell != (0, 0):
                        continue  # a granularity covers a region from its first code on, or not at all
                    must = grain == self.finest  # nothing after it could cover the region
            found.append(entry)
            if must:
                break
        return found

    def take(self, entry: int) -> None:
        """Note the granularity of the code's region."""
        if self.positions[entry] >= 0:
            self.chosen[self._region_and_cell(entry)[0]] = self.grains[entry]

    def _region_and_cell(self, entry: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The region of a code, and the code's place in it; both as row and column."""
        side = 2 ** self.grains[entry]
        row, column = divmod(self.positions[entry], self.width * side)
        return (row // side, column // side), (row % side, column % side)


def _codes_by_entry(tape: Tape, image: CodeSequence) -> dict[int, int]:
    return dict(zip(tape.entries_of(image).tolist(), image.codes.tolist(), strict=True))


def _predict_position(
    prior: TapeModel, entries: list[int], contents: list[int], copies: Sequence[int], sampling: Sampling
) -> tuple[list[Tensor], Tensor | None]:
    """States ``(n, dim)`` of the tokens so far, for each copy, and logits ``(columns,)`` of the position after them."""
    tape, here, states, logits = prior.tape, torch.tensor(entries), [], []
    for label in copies:
        shift = tape.starts[here] * label
        rows, steps = tape.rows[here] + shift, torch.arange(len(here))
        x = prior.embed(torch.tensor(contents) + shift, rows, tape.grains[here], steps)
        states_of_copy, columns = prior.predict_positions(x, torch.tensor([0, len(here)], dtype=torch.int32))
        states.append(states_of_copy)
        logits += [] if columns is None else [columns[-1]]
    return states, _guided(logits, sampling) if logits else None


def _predict_content(
    prior: TapeModel, states: list[Tensor], following: list[int], copies: Sequence[int], sampling: Sampling
) -> Tensor:
    """Logits ``(K,)`` of the last code of ``following``, the entries of the tokens after those that were read."""
    logits = []
    for label, states_of_copy in zip(copies, states, strict=True):
        rows = prior.tape.rows[following] + prior.tape.starts[following] * label
        out = prior.predict_contents(states_of_copy, rows, torch.tensor([0, len(rows)], dtype=torch.int32))
        logits.append(out[-1, : prior.config.codebook_size])
    return _guided(logits, sampling)


def _guided(logits: list[Tensor], sampling: Sampling) -> Tensor:
    """``without class + s (with class - without class)``."""
    if len(logits) == 1:
        return logits[0]
    with_class, without = (each.float() for each in logits)
    return without + sampling.guidance * (with_class - without)


def _labels_of(labels: Tensor | int | None, batch_size: int, num_classes: int) -> list[int]:
    """The label of each sample; without classes it is 0."""
    if labels is None:
        return [NULL if num_classes else 0] * batch_size
    each = [labels] * batch_size if isinstance(labels, int) else labels.tolist()
    return [NULL if label < 0 else label for label in each]


@torch.no_grad()
def generate_by_region(
    prior: RegionModel,
    batch_size: int,
    labels: Tensor | int | None = None,
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    first: int = 0,
    given: CodeSequence | None = None,
) -> CodeSequence:
    """Draw the samples ``first`` to ``first + batch_size - 1`` of a seed from a Global-Local prior."""
    sampling, placeholder = sampling or Sampling(), prior.config.codebook_size
    shape = prior.num_regions, prior.num_places
    contents = torch.full((batch_size, *shape), placeholder)
    known = torch.full_like(contents, -1) if given is None else prior.contents_of(given, -1)
    for image, label in enumerate(_labels_of(labels, batch_size, prior.config.num_classes)):
        numbers = uniforms(seed, torch.tensor([first + image]), prior.num_regions * prior.num_places).view(shape)
        for region in range(prior.num_regions):
            for place in range(prior.num_places):
                if known[image, region, place] >= 0:
                    contents[image, region, place] = known[image, region, place]
                elif place == 0 or contents[image, region, place - 1] != placeholder:
                    # What stands at this place and after it has no influence on these logits.
                    runs = [
                        prior.predict_contents(contents[image : image + 1], torch.tensor([each]))
                        for each in (label, NULL)[: sampling.copies]
                    ]
                    logits = _guided([run.view(*shape, -1)[region, place] for run in runs], sampling)
                    logits = logits if prior.may_end(place) else logits[:placeholder]
                    contents[image, region, place] = sampling.contents(logits[None], numbers[region, place, None])[0]
    return prior.to_sequence(contents)
