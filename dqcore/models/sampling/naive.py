"""What sampling means, written to be read: no caches, no slots, no batches, no speed.

:func:`generate` draws what :meth:`dqcore.models.priors.base.Prior.sample` draws, code for code, from every prior that
walks a tape (:mod:`dqcore.models.tape`). At each step the model reads all tokens so far. Then the position and after it
the content of the next token is drawn (paper, section 3.3). :func:`generate_by_region` does the same for
:class:`dqcore.models.priors.global_local.GlobalLocal`. Tests compare the fast samplers with these two. Their arguments
are those of ``Prior.sample``; they are not checked here, and all is on the CPU.
"""

from __future__ import annotations

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
            # The position transformer reads all tokens so far. Its last state predicts the position of the next one.
            runs = [_read(prior, entries, contents, each) for each in copies]
            candidates = regions.may_come_next(entries[-1])
            position_logits = [logits[-1] for _, logits in runs if logits is not None]
            entry = candidates[0]
            if position_logits:
                logits = _guided(position_logits, sampling)[tape.columns]
                scores = torch.full_like(logits, -torch.inf)
                scores[candidates] = logits[candidates]
                entry = int(sampling.positions(scores[None], numbers[entries[-1], 1:]))

            # The content transformer adds the positions of the next tokens to the states. Its last output predicts the
            # next content, which is drawn if nothing else decides it.
            if tape.positions[entry] < 0:
                content = int(tape.contents[entry])
            elif entry in known:
                content = known[entry]
            else:
                following = [*entries[1:], entry]
                states = [each for each, _ in runs]
                content_logits = [_write(prior, *each, following) for each in zip(states, copies, strict=True)]
                content = int(sampling.contents(_guided(content_logits, sampling)[None], numbers[entry, :1]))
            regions.take(entry)
            entries.append(entry)
            contents.append(content)
        drawn[image, entries] = torch.tensor(contents)
    return tape.to_sequence(drawn, tape.order)


class _Regions:
    """Which granularity each region of one image has so far, and so which entries of the tape may come next.

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
        """Entries after ``here`` up to the first that must not be passed over."""
        found = []
        for entry in range(here + 1, len(self.grains)):
            grain, is_code, must = self.grains[entry], self.positions[entry] >= 0, True
            if is_code:
                region, cell = self._region_and_cell(entry)
                if grain > self.last or (region not in self.given and grain < self.closed):
                    continue
                if region in self.chosen:
                    if grain != self.chosen[region]:
                        continue  # the region is covered by codes of another granularity
                else:
                    if cell != (0, 0):
                        continue  # a region's granularity is chosen with its first code
                    must = grain == self.finest  # the last chance to cover the region
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


def _read(prior: TapeModel, entries: list[int], contents: list[int], label: int) -> tuple[Tensor, Tensor | None]:
    """States and position logits after all tokens of one image."""
    tape, here = prior.tape, torch.tensor(entries)
    shift = tape.starts[here] * label
    x = prior.embed(torch.tensor(contents) + shift, tape.rows[here] + shift, tape.grains[here], torch.arange(len(here)))
    return prior.predict_positions(x, torch.tensor([0, len(here)], dtype=torch.int32))


def _write(prior: TapeModel, states: Tensor, label: int, following: list[int]) -> Tensor:
    """Logits ``(K,)`` of the last of the following codes."""
    rows = prior.tape.rows[following] + prior.tape.starts[following] * label
    logits = prior.predict_contents(states, rows, torch.tensor([0, len(rows)], dtype=torch.int32))
    return logits[-1, : prior.config.codebook_size]


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
