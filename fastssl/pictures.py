"""Planes as colours, and grids of pictures with headings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastssl.files import complete_or_absent

Picture = NDArray[np.uint8]

# Near to far: light yellow, orange, magenta, violet, black. Lightness falls evenly, so it also reads in print.
_DEPTH_COLOURS = np.array(
    [[252, 253, 191], [254, 194, 135], [251, 135, 97], [229, 80, 100], [181, 54, 122], [129, 37, 129], [79, 18, 123],
     [28, 16, 68], [0, 0, 4]], dtype=np.float64
)  # fmt: skip


def image_picture(image: NDArray[np.floating], mean: NDArray[np.floating]) -> Picture:
    """A network's input (3, S, S), RGB in 0..1 minus `mean` (3,), as (S, S, 3) uint8."""
    return _bytes((image.transpose(1, 2, 0) + mean) * 255)


def depth_picture(depth: NDArray[np.floating], near: float, far: float) -> Picture:
    """Depth (H, W) in metres as (H, W, 3) uint8, light near and dark far on a logarithmic scale; gray = not known."""
    known = depth > 0
    place = np.log(np.where(known, depth, near) / near) / np.log(far / near)
    place = np.clip(place, 0, 1) * (len(_DEPTH_COLOURS) - 1)
    stops = np.arange(len(_DEPTH_COLOURS))
    colours = np.stack([np.interp(place, stops, channel) for channel in _DEPTH_COLOURS.T], axis=-1)
    return np.where(known[..., None], _bytes(colours), np.uint8(128))


def normal_picture(normal: NDArray[np.floating]) -> Picture:
    """Normals (3, H, W) in the camera frame as (H, W, 3) uint8, in the customary colours: red points right, green up,
    blue towards the viewer; gray = not known."""
    towards = normal.transpose(1, 2, 0) * np.array([1.0, -1.0, -1.0])
    return _bytes(127.5 * (1 + towards))


def edge_picture(edge: NDArray[np.floating]) -> Picture:
    """Contour probabilities (H, W) in 0..1 as (H, W, 3) uint8, dark on white."""
    return np.repeat(_bytes(255 * (1 - edge))[..., None], 3, axis=-1)


def framed(picture: Picture) -> Picture:
    """The picture with a green frame inside its border."""
    marked = picture.copy()
    for border in (marked[:4], marked[-4:], marked[:, :4], marked[:, -4:]):
        border[:] = (30, 160, 80)
    return marked


def grid(rows: Sequence[Sequence[Picture]], headings: Sequence[str], *, gap: int = 4) -> Image.Image:
    """Pictures of one size in rows and columns, a heading above each column."""
    height, width = rows[0][0].shape[:2]
    font = ImageFont.load_default(size=12)
    top = 20
    sheet = Image.new(
        "RGB", (len(headings) * (width + gap) + gap, top + len(rows) * (height + gap) + gap), (255, 255, 255)
    )
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        left = gap + column * (width + gap)
        draw.text((left, 4), heading, fill=(40, 40, 40), font=font)
        for line, pictures in enumerate(rows):
            sheet.paste(Image.fromarray(pictures[column]), (left, top + line * (height + gap)))
    return sheet


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG that is complete or absent, and its folder."""
    path.parent.mkdir(exist_ok=True)
    with complete_or_absent(path) as file:
        picture.save(file, "PNG")


def _bytes(values: NDArray[np.floating]) -> Picture:
    pixels: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels
