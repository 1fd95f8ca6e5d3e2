"""Make the sample photographs that ship in ``dqcore/data/sample`` from the photographs they were cut from.

    apt-get install lomiri-wallpapers-16.04
    pip install scikit-image
    python examples/make_sample.py dqcore/data/sample

Only photographs that are in the public domain, CC0 or CC-BY-4.0 are used. Each belongs to one split as a whole.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import skimage
from PIL import Image

CROP = 128
QUALITY = 92
SCIKIT_IMAGE = Path(skimage.__file__).parent / "data"
LOMIRI = Path("/usr/share/backgrounds")
LOMIRI_SOURCE = "https://gitlab.com/ubports/development/core/lomiri-wallpapers"
CC_BY = "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)"
CC0 = "[CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/)"
PUBLIC_DOMAIN = "public domain"


@dataclass(frozen=True)
class Photo:
    """One photograph: where it lies, whose it is, and how it is cut.

    Attributes:
        name: Stem of its crops' file names.
        path: The original.
        title: What it shows, and its title where it has one.
        author: Whom to credit.
        licence: Its licence, with a link.
        source: Where it was published.
        cuts: ``(short side, left, top)`` of each crop, left and top as shares of the free space; None for the grid.
    """

    name: str
    path: Path
    title: str
    author: str
    licence: str
    source: str
    cuts: tuple[tuple[int, float, float], ...] | None = None


def lomiri(name: str, file: str, title: str, author: str, licence: str = CC_BY, cuts=None) -> Photo:
    """A photograph of the Lomiri wallpapers (published in 2018)."""
    return Photo(name, LOMIRI / file, title, author, licence, LOMIRI_SOURCE, cuts)


TRAIN = [
    Photo(
        "astronaut", SCIKIT_IMAGE / "astronaut.png", "Eileen Collins", "NASA", PUBLIC_DOMAIN, "https://flic.kr/p/r9qvLn"
    ),
    Photo(
        "hubble",
        SCIKIT_IMAGE / "hubble_deep_field.jpg",
        "Hubble eXtreme Deep Field",
        "NASA, ESA",
        PUBLIC_DOMAIN,
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        ((384, 0.0, 0.5), (384, 1.0, 1.0), (150, 0.5, 0.5)),
    ),
    Photo(
        "retina",
        SCIKIT_IMAGE / "retina.jpg",
        "Fundus photograph of a normal left eye",
        "Mikael Häggström",
        CC0,
        "https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        ((384, 0.5, 0.0), (384, 0.0, 0.5), (384, 0.5, 0.5), (384, 1.0, 0.5), (150, 0.5, 0.5)),
    ),
    lomiri("fig", "Picture_0B_by_freespace.jpg", "Picture 0B", 'Trevor "Freespace"'),
    lomiri("brushes", "Picture_1A_by_freespace.jpg", "Picture 1A", 'Trevor "Freespace"'),
    lomiri("drum", "Wine_by_Jakkub_Mede.jpg", "Wine", "Jakub Mede"),
    lomiri("meadow", "aitzgorri_by_Aitzol_Berasategi.jpg", "aitzgorri", "Aitzol Berasategi"),
    lomiri("friends", "friends_by_Aitzol_Berasategi.jpg", "friends", "Aitzol Berasategi"),
    lomiri("stream", "life_by_Aitzol_Berasategi.jpg", "life", "Aitzol Berasategi"),
    lomiri("sunset", "sunset_by_Aitzol_Berasategi.jpg", "sunset", "Aitzol Berasategi"),
]
HELD_OUT = [
    Photo(
        "cat",
        SCIKIT_IMAGE / "chelsea.png",
        "Chelsea the cat",
        "Stefan van der Walt",
        CC0,
        "https://scikit-image.org/docs/stable/api/skimage.data.html",
        ((160, 0.62, 0.5), (384, 0.75, 1.0)),
    ),
    Photo(
        "coffee",
        SCIKIT_IMAGE / "coffee.png",
        "Coffee cup, courtesy of Pikolo Espresso Bar",
        "Rachel Michetti",
        CC0,
        "https://scikit-image.org/docs/stable/api/skimage.data.html",
        ((150, 0.5, 0.5), (384, 0.25, 0.5)),
    ),
    Photo(
        "rocket",
        SCIKIT_IMAGE / "rocket.jpg",
        "DSCOVR on a Falcon 9",
        "SpaceX",
        PUBLIC_DOMAIN,
        "https://www.flickr.com/photos/spacexphotos/16511594820/",
        ((160, 0.5, 1.0), (384, 0.47, 0.5)),
    ),
    lomiri(
        "dandelion",
        "seeding_by_Clements_Engelhardt.jpg",
        "seeding",
        "Clemens Engelhardt",
        CC0,
        ((160, 0.15, 0.2), (384, 0.5, 0.5)),
    ),
    lomiri(
        "peaks",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "picosdeeuropa",
        "Aitzol Berasategi",
        CC_BY,
        ((160, 0.75, 0.5), (384, 0.25, 0.0)),
    ),
]


def resized(image: Image.Image, short_side: int) -> Image.Image:
    """The whole photograph with its shorter side at ``short_side`` pixels."""
    scale = short_side / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def grid(image: Image.Image) -> list[tuple[int, float, float]]:
    """Crops side by side at short side 384, and one or two that show most of the photograph."""
    width, height = resized(image, 384).size
    columns, rows = width // CROP, height // CROP
    cuts = [(384, x / (columns - 1), y / (rows - 1)) for y in range(rows) for x in range(columns)]
    far = (0.0, 1.0) if max(width, height) > 1.3 * min(width, height) else (0.5,)
    tall = height > width
    return cuts + [(150, 0.5, place) if tall else (150, place, 0.5) for place in far]


def cut(image: Image.Image, short_side: int, left: float, top: float) -> Image.Image:
    """One crop of 128 x 128 pixels."""
    image = resized(image, short_side)
    x, y = round(left * (image.width - CROP)), round(top * (image.height - CROP))
    return image.crop((x, y, x + CROP, y + CROP))


def write(photos: list[Photo], folder: Path) -> None:
    """Cut all crops of a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for photo in photos:
        with Image.open(photo.path) as original:
            image = original.convert("RGB")
        for index, place in enumerate(photo.cuts or grid(image)):
            cut(image, *place).save(
                folder / f"{photo.name}-{index:02d}.jpg", quality=QUALITY, subsampling=0, optimize=True
            )


def table(photos: list[Photo], split: str) -> list[str]:
    """Rows of the attribution table."""
    return [
        f"| `{split}/{photo.name}-*.jpg` | [{photo.title}]({photo.source}) | {photo.author} | {photo.licence} |"
        for photo in photos
    ]


def attribution() -> str:
    """The text of ``ATTRIBUTION.md``."""
    lines = [
        "# The sample photographs",
        "",
        "Everything in this folder was cut from the photographs below, which reach us through scikit-image and the",
        "Lomiri wallpapers of 2018. **What was changed:** each photograph was resized, cut into squares of 128 x 128",
        "pixels, and saved as JPEG of quality 92 (`examples/make_sample.py`). The crops keep the licence of their",
        "photograph; the licence of dqcore's code does not apply to them. No photograph is in both splits.",
        "",
        "| files | photograph | by | licence |",
        "|---|---|---|---|",
        *table(TRAIN, "train"),
        *table(HELD_OUT, "heldout"),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both splits and the attribution."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write(TRAIN, folder / "train")
    write(HELD_OUT, folder / "heldout")
    (folder / "ATTRIBUTION.md").write_text(attribution(), encoding="utf-8")


if __name__ == "__main__":
    main()
