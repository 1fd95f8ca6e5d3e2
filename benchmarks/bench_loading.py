"""Loading batches with workers, against decoding and cropping the same images alone; JPEG decoded whole and smaller."""

from __future__ import annotations

import multiprocessing
import random
import resource
import statistics
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from dqcore.data.batches import Crops, StepSampler, batch_loader
from dqcore.data.crops import RandomCrop
from dqcore.data.images import image_to_uint8, list_images
from dqcore.data.photos import sample_photos

IMAGES = 64
BATCH = 8
SIZE = (1024, 768)
CROP = RandomCrop(256, 256)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of the size that photographs on the web have, put together from the package's photographs."""
    folder, rng, tiles = tmp_path_factory.mktemp("photos"), random.Random(0), sample_photos("train")
    for number in range(IMAGES):
        image = Image.new("RGB", SIZE)
        for left in range(0, SIZE[0], 256):
            for top in range(0, SIZE[1], 256):
                with Image.open(rng.choice(tiles)) as tile:
                    image.paste(tile.resize((256, 256), Image.Resampling.BICUBIC), (left, top))
        image.save(folder / f"{number:02d}.jpg", quality=90)
    with tarfile.open(folder.parent / "photos.tar", "w") as tar:
        tar.add(folder, ".")
    return folder


def decode(crops: Crops, numbers: Sequence[int]) -> None:
    """What a worker does to each image, and nothing else."""
    for number in numbers:
        image_to_uint8(CROP.cut(crops.read(crops.paths[number]), random.Random(number)))


def alone(crops: Crops, processes: int) -> None:
    """The same in this number of new processes, each with its part."""
    parts = [range(first, len(crops), processes) for first in range(processes)]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=decode, args=(crops, part)) for part in parts]
    for process in started:
        process.start()
    for process in started:
        process.join()


def load(crops: Crops, workers: int) -> None:
    """An epoch of batches, as a training run takes them."""
    sampler = StepSampler(len(crops), BATCH, seed=0, start=0, stop=len(crops) // BATCH)
    count = sum(len(batch.images) for batch in batch_loader(crops, sampler, workers=workers, pin=False))
    assert count == len(crops)


def rates(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Images a second by the clock, and a second of processors' time, in all processes; the calls take turns."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start, before = time.perf_counter(), _processor_time()
            call()
            seen[name].append((time.perf_counter() - start, _processor_time() - before))
    return {
        name: {
            "images_per_second": IMAGES / statistics.median(clock for clock, _ in times),
            "images_per_processor_second": IMAGES / statistics.median(spent for _, spent in times),
        }
        for name, times in seen.items()
    }


def _processor_time() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@pytest.mark.parametrize("source", ["folder", "tar"])
@pytest.mark.parametrize("workers", [1, 2])
def bench_loading(benchmark, photos, workers, source, request):
    """Meant to be at least 0.9 of decoding alone with as many processes."""
    crops = Crops(list_images(photos if source == "folder" else photos.parent / "photos.tar"), CROP)
    rounds = 7 if request.config.getoption("--benchmark") else 1
    calls = {"alone": lambda: alone(crops, workers), "loader": lambda: load(crops, workers)}
    found = rates(calls, rounds)
    share = {unit: found["loader"][unit] / found["alone"][unit] for unit in found["alone"]}
    benchmark.extra_info |= {"size": SIZE, "images": IMAGES, "workers": workers, **found, "share": share}
    benchmark.extra_info["met"] = share["images_per_second"] >= 0.9
    benchmark.pedantic(load, (crops, workers), rounds=1)


def bench_fast_jpeg(benchmark, photos, request):
    """Decoding at a part of the size where twice the pixels remain: of 768, all for crops of 256, a half for 192."""
    paths = list_images(photos)
    rounds = 7 if request.config.getoption("--benchmark") else 1
    found = {}
    for resize in (256, 192):
        crop = RandomCrop(resize, resize)
        whole, fast = Crops(paths, crop), Crops(paths, crop, fast_jpeg=True)
        calls = {
            f"{resize}, whole": lambda whole=whole: [whole.read(path) for path in paths],
            f"{resize}, fast": lambda fast=fast: [fast.read(path) for path in paths],
        }
        found |= rates(calls, rounds)
    benchmark.extra_info |= {"size": SIZE, "images": IMAGES, **found}
    benchmark.pedantic(decode, (Crops(paths, CROP), range(8)), rounds=1)
