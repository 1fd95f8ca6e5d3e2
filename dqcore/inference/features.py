"""The features of a set of images: several processes share the images, each of which is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dqcore.distributed import World
from dqcore.distributed.sharing import share_work
from dqcore.errors import InputError
from dqcore.inference.photos import PhotoBatches
from dqcore.inference.protocol import Protocol
from dqcore.metrics.networks import FeatureNetwork

__all__ = ["Features", "features_of_files"]


@dataclass
class Features:
    """The features of the images that could be read.

    Attributes:
        good: Their files, in their order.
        broken: Why each of the others was passed over.
        parts: The features, ``(b, D)`` a part, in the order of ``good``.
    """

    good: list[Path] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)

    @property
    def values(self) -> Tensor:
        """All of them, ``(N, D)`` float32."""
        return torch.cat(self.parts)


def features_of_files(
    network: FeatureNetwork,
    paths: Sequence[Path],
    protocol: Protocol,
    world: World,
    *,
    batch_size: int = 8,
    argument: str = "images",
    progress: Callable[[int, int], object] | None = None,
) -> Features:
    """The features of images, which do not depend on the number of processes. Every process calls this.

    Args:
        network: Gives the features.
        paths: The images' files.
        protocol: What of each image is measured.
        world: The processes that share the files; the first one gets all features, the others none.
        batch_size: Images that go through the network together, at most.
        argument: What the user named the files by, for the message if none can be read.
        progress: Called in the first process with the number of files done and of all.

    Raises:
        InputError: None of the files can be read; in the first process.
    """
    pieces = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]

    def work(piece: Sequence[Path]) -> Features:
        batches = PhotoBatches(piece, protocol, batch_size=batch_size, argument=None)
        parts = [network(batch) for batch in batches]
        return Features(batches.good, batches.broken, parts)

    found = Features()
    for some in share_work(world, pieces, work):
        found.good += some.good
        found.broken += some.broken
        found.parts += some.parts
        if progress is not None:
            progress(len(found.good) + len(found.broken), len(paths))
    if world.is_main and not found.good:
        raise InputError(f"{argument}: none of its {len(paths)} images can be read, the first: {found.broken[0]}")
    return found
