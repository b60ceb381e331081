"""Planes as colours, and pictures beside, above and in grids with words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fastssl.batch import IMAGE_MEAN
from fastssl.files import complete_or_absent

Picture = NDArray[np.uint8]

INK, FADED, PAPER = (40, 40, 40), (110, 110, 110), (255, 255, 255)
"""Colours of words, of less important words and lines, and of what lies behind."""

_STRIPE = 4

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
    return np.where(known[..., None], _bytes(_between_stops(place)), np.uint8(128))


def _between_stops(place: NDArray[np.floating]) -> NDArray[np.float64]:
    """Colours (H, W, 3) of places from 0 to 1 on the scale of light to dark; beyond its ends those of the ends."""
    stops = np.linspace(0, 1, len(_DEPTH_COLOURS))
    return np.stack([np.interp(place, stops, channel) for channel in _DEPTH_COLOURS.T], axis=-1)


def normal_picture(normal: NDArray[np.floating]) -> Picture:
    """Normals (3, H, W) in the camera frame as (H, W, 3) uint8, in the customary colours: red points right, green up,
    blue towards the viewer; gray = not known."""
    towards = normal.transpose(1, 2, 0) * np.array([1.0, -1.0, -1.0])
    return _bytes(127.5 * (1 + towards))


WORST_ANGLE = 60.0
"""Degrees from which on `angle_picture` has its darkest colour."""


def angle_picture(angle: NDArray[np.floating], known: NDArray[np.bool_]) -> Picture:
    """Angles (H, W) in degrees as (H, W, 3) uint8: light where small, dark where large; gray where not `known`."""
    colours = _bytes(_between_stops(np.where(known, angle, 0) / WORST_ANGLE))
    return np.where(known[..., None], colours, np.uint8(128))


def edge_picture(edge: NDArray[np.floating]) -> Picture:
    """Contour probabilities (H, W) in 0..1 as (H, W, 3) uint8, dark on white."""
    return np.repeat(_bytes(255 * (1 - edge))[..., None], 3, axis=-1)


_NEAR, _FAR = 0.5, 10.0
"""Ends of the scale of depth on sheets, in metres."""
_TITLES = {"depth": "depth", "normal": "normals", "edge": "contours"}


def prediction_sheet(
    images: NDArray[np.floating],
    truth: Mapping[str, NDArray[np.floating]],
    predicted: Mapping[str, NDArray[np.floating]],
) -> Image.Image:
    """One row per image: the input, then each task's ground truth and prediction.

    Args:
        images: (N, 3, S, S), as the network sees them.
        truth: by task, (N, C, S, S): depth in metres, normals, contours in 0..1.
        predicted: the same, of all tasks that are to be shown.
    """
    headings = ["image"]
    for task in predicted:
        headings += [f"{_TITLES[task]}: true", "predicted"]
    rows = [[image_picture(image, IMAGE_MEAN)] for image in images]
    for number, row in enumerate(rows):
        for task, values in predicted.items():
            row += [_plane_picture(task, truth[task][number]), _plane_picture(task, values[number])]
    return grid(rows, headings)


def _plane_picture(task: str, plane: NDArray[np.floating]) -> Picture:
    if task == "depth":
        return depth_picture(plane[0], _NEAR, _FAR)
    return normal_picture(plane) if task == "normal" else edge_picture(plane[0])


def framed(picture: Picture) -> Picture:
    """The picture with a green frame inside its border."""
    marked = picture.copy()
    for border in (marked[:4], marked[-4:], marked[:, :4], marked[:, -4:]):
        border[:] = (30, 160, 80)
    return marked


def hatched(picture: Picture, unknown: NDArray[np.bool_]) -> Picture:
    """The picture with diagonal gray stripes over its unknown pixels (H, W), which no colour of a plane looks like."""
    rows, columns = np.indices(unknown.shape)
    dark = (rows + columns) // _STRIPE % 2 == 1
    stripes = np.where(dark, np.uint8(120), np.uint8(215))[..., None]
    return np.where(unknown[..., None], stripes, picture)


def enlarged(picture: Picture, smallest: int, largest: int) -> Picture:
    """The picture with its longer side in this range of pixels: whole pixels repeated, or the mean of several."""
    longer = max(picture.shape[:2])
    factor = -(-smallest // longer)
    if factor > 1:
        return picture.repeat(factor, axis=0).repeat(factor, axis=1)
    if longer <= largest:
        return picture
    height, width = (max(1, round(side * largest / longer)) for side in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BOX))


def words(
    lines: Sequence[str], width: int, *, size: int = 12, colour: tuple[int, int, int] = INK, most: int = 3
) -> Image.Image:
    """Lines of text on a block of this width; a line that is too long goes on below, over at most `most` lines."""
    font = ImageFont.load_default(size=size)
    broken = [piece for line in lines for piece in _broken(line, font, width, most)]
    pitch = size + 4
    block = Image.new("RGB", (width, pitch * max(len(broken), 1)), PAPER)
    draw = ImageDraw.Draw(block)
    for number, piece in enumerate(broken):
        draw.text((0, pitch * number), piece, fill=colour, font=font)
    return block


def _broken(line: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Pieces that fit the width, broken after a space, underscore or hyphen where there is one in the later half."""
    pieces = list[str]()
    while line and len(pieces) < most:
        length = next((n for n in range(len(line), 1, -1) if font.getlength(line[:n]) <= width), 1)
        if length < len(line):
            if len(pieces) == most - 1:
                pieces.append(line[: max(length - 3, 1)] + "...")
                break
            place = max(line.rfind(mark, length // 2, length) for mark in " _-") + 1
            length = place or length
        pieces.append(line[:length].rstrip())
        line = line[length:]
    return pieces


def above(blocks: Sequence[Image.Image], *, gap: int = 4) -> Image.Image:
    """Blocks one above the other, flush left."""
    sheet = Image.new(
        "RGB",
        (max(block.width for block in blocks), sum(block.height for block in blocks) + gap * (len(blocks) - 1)),
        PAPER,
    )
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height + gap
    return sheet


def beside(blocks: Sequence[Image.Image], *, gap: int = 4) -> Image.Image:
    """Blocks side by side, their tops level."""
    sheet = Image.new(
        "RGB",
        (sum(block.width for block in blocks) + gap * (len(blocks) - 1), max(block.height for block in blocks)),
        PAPER,
    )
    left = 0
    for block in blocks:
        sheet.paste(block, (left, 0))
        left += block.width + gap
    return sheet


def bordered(block: Image.Image, margin: int) -> Image.Image:
    """The block with an empty margin around it."""
    sheet = Image.new("RGB", (block.width + 2 * margin, block.height + 2 * margin), PAPER)
    sheet.paste(block, (margin, margin))
    return sheet


def depth_key(near: float, far: float, width: int) -> Image.Image:
    """What the colours of `depth_picture` mean: a scale in metres."""
    scale = depth_picture(np.geomspace(near, far, width)[None].repeat(14, axis=0), near, far)
    block = Image.new("RGB", (width, 34), PAPER)
    block.paste(Image.fromarray(scale), (0, 0))
    draw, font = ImageDraw.Draw(block), ImageFont.load_default(size=11)
    taken = list[tuple[float, float]]()
    for metres in [near, far, *_round_metres(near, far)]:
        label = f"{metres:.3g} m"
        place, length = math.log(metres / near) / math.log(far / near) * (width - 1), font.getlength(label)
        left = min(max(place - length / 2, 0), width - length)
        if all(left >= stop + 8 or left + length <= start - 8 for start, stop in taken):
            draw.line([(place, 14), (place, 17)], fill=INK)
            draw.text((left, 19), label, fill=INK, font=font)
            taken.append((left, left + length))
    return block


def _round_metres(near: float, far: float) -> list[float]:
    """1, 2 and 5 times powers of ten between the two."""
    powers = range(math.floor(math.log10(near)), math.ceil(math.log10(far)) + 1)
    return [factor * 10.0**power for power in powers for factor in (1, 2, 5) if near < factor * 10.0**power < far]


def normal_key(side: int) -> Image.Image:
    """What the colours of `normal_picture` mean: a ball seen from the front."""
    x, y = np.meshgrid(*[(np.arange(side) + 0.5) / side * 2 - 1] * 2)
    outside = x * x + y * y > 1
    normal = np.stack([x, y, -np.sqrt(np.clip(1 - x * x - y * y, 0, 1))])
    return Image.fromarray(np.where(outside[..., None], np.uint8(255), normal_picture(normal)))


def grid(rows: Sequence[Sequence[Picture]], headings: Sequence[str], *, gap: int = 4) -> Image.Image:
    """Pictures of one size in rows and columns, a heading above each column, in small letters above small pictures."""
    height, width = rows[0][0].shape[:2]
    font = _fitting_font(headings, width - gap)
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


def image_columns(columns: Mapping[str, NDArray[np.floating]], mean: NDArray[np.floating]) -> Image.Image:
    """Forms of the same images side by side, a row for each image.

    Args:
        columns: by heading, (N, 3, S, S), RGB in 0..1 without `mean`.
        mean: (3,).
    """
    rows = [[image_picture(image, mean) for image in forms] for forms in zip(*columns.values(), strict=True)]
    return grid(rows, list(columns))


def _fitting_font(lines: Sequence[str], width: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The largest font in which every line has room, and the smallest that can be read where none does."""
    fonts = [ImageFont.load_default(size=size) for size in range(12, 6, -1)]
    fits = (font for font in fonts if all(font.getlength(line) <= width for line in lines))
    return next(fits, fonts[-1])


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG that is complete or absent, and its folder."""
    path.parent.mkdir(exist_ok=True)
    with complete_or_absent(path) as file:
        picture.save(file, "PNG")


def _bytes(values: NDArray[np.floating]) -> Picture:
    pixels: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels
