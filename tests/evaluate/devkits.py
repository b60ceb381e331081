"""Devkits of PASCAL VOC with a few photos that tests make, file by file as the real one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

_OBJECT = """\t<object>
\t\t<name>{name}</name>
\t\t<pose>Left</pose>
\t\t<truncated>{truncated}</truncated>
\t\t<difficult>{difficult}</difficult>
\t\t<bndbox>
\t\t\t<xmin>{x1}</xmin>
\t\t\t<ymin>{y1}</ymin>
\t\t\t<xmax>{x2}</xmax>
\t\t\t<ymax>{y2}</ymax>
\t\t</bndbox>
\t</object>
"""


@dataclass(frozen=True)
class Thing:
    """An object as its file has it: sides from 1, the last pixel included."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class Photo:
    image: Image.Image
    things: tuple[Thing, ...] = field(default=())


def write_devkit(
    folder: Path, splits: Mapping[str, Mapping[str, Photo]], classes: Collection[str], year: str = "VOC2007"
) -> Path:
    """`VOCdevkit` with the photos of each split by their IDs; lists of labels are those of the classes."""
    root = folder / "VOCdevkit"
    lists, annotations, images = (root / year / part for part in ("ImageSets/Main", "Annotations", "JPEGImages"))
    for part in (lists, annotations, images):
        part.mkdir(parents=True, exist_ok=True)
    for split, photos in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{identity}\n" for identity in photos))
        for name in classes:
            lines = [f"{identity} {_label(photo, name):2d}\n" for identity, photo in photos.items()]
            (lists / f"{name}_{split}.txt").write_text("".join(lines))
        for identity, photo in photos.items():
            photo.image.save(images / f"{identity}.jpg", quality=95)
            (annotations / f"{identity}.xml").write_text(_annotation(identity, photo))
    return root


def _label(photo: Photo, name: str) -> int:
    found = [thing.difficult for thing in photo.things if thing.name == name]
    return -1 if not found else 0 if all(found) else 1


def _annotation(identity: str, photo: Photo) -> str:
    width, height = photo.image.size
    things = "".join(
        _OBJECT.format(
            name=thing.name,
            truncated=int(thing.truncated),
            difficult=int(thing.difficult),
            **dict(zip(("x1", "y1", "x2", "y2"), thing.box, strict=True)),
        )
        for thing in photo.things
    )
    return (
        "<annotation>\n\t<folder>VOC2007</folder>\n"
        f"\t<filename>{identity}.jpg</filename>\n"
        "\t<source>\n\t\t<database>The VOC2007 Database</database>\n\t\t<image>flickr</image>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{width}</width>\n\t\t<height>{height}</height>\n\t\t<depth>3</depth>\n\t</size>\n"
        f"\t<segmented>0</segmented>\n{things}</annotation>\n"
    )
