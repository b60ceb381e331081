"""Procedural textures: linear reflectance over a rectangle in metres, from a random generator and colours.

Every pattern takes the coordinates of its texels, so that planks are as wide as planks whatever the resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array: TypeAlias = NDArray[np.floating]
Rng: TypeAlias = np.random.Generator
Pattern: TypeAlias = Callable[[Rng, Array, Array, Array, Array], Array]
"""(generator, u, v, one colour, another colour) -> (h, w, 3); u of shape (1, w) and v of shape (h, 1) in metres."""


def paint(rng: Rng, pattern: Pattern, size: tuple[float, float], density: float, a: Array, b: Array) -> Array:
    """A texture of `size` (width, height) metres at `density` texels per metre in the colours `a` and `b`."""
    columns, rows = (max(4, round(side * density)) for side in size)
    u = (np.arange(columns, dtype=np.float32)[None, :] + 0.5) / density
    v = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / density
    return np.clip(pattern(rng, u, v, a, b), 0.005, 0.92).astype(np.float32)


def noise(rng: Rng, u: Array, v: Array, cell: float | tuple[float, float], octaves: int = 4) -> Array:
    """Smooth noise in about [0, 1], its largest blobs `cell` metres (along u, along v) across."""
    cells = np.broadcast_to(cell, 2)
    rows, columns = v.shape[0], u.shape[1]
    spans = np.array([u[0, -1] - u[0, 0], v[-1, 0] - v[0, 0]]) / cells
    total = np.zeros((rows, columns), dtype=np.float32)
    for octave in range(octaves):
        nodes = np.minimum(np.ceil(spans * 2**octave).astype(int) + 2, (columns, rows))
        grid = rng.random((int(nodes[1]), int(nodes[0])), dtype=np.float32)
        total += np.asarray(Image.fromarray(grid).resize((columns, rows), Image.Resampling.BICUBIC)) * 0.5**octave
    return total / (2 - 2 * 0.5**octaves)


def mix(a: Array, b: Array, fraction: Array) -> Array:
    """Colours `a` and `b` blended by (h, w) `fraction` of b."""
    fraction = np.clip(fraction, 0, 1).astype(np.float32, copy=False)[..., None]
    return a + fraction * (b - a)


def lottery(rng: Rng, *cells: NDArray[np.int64]) -> Array:
    """One random number in [0, 1) per distinct cell, for tiles and planks that differ from their neighbours."""
    code = np.zeros(np.broadcast_shapes(*(cell.shape for cell in cells)), dtype=np.int64)
    for cell in cells:
        code = code * 131 + cell
    return rng.random(4099, dtype=np.float32)[code % 4099]


def _cells(x: Array, period: float) -> tuple[NDArray[np.int64], Array]:
    """Number of the period that each coordinate lies in, and where within it, in [0, 1)."""
    turns = x / period
    whole = np.floor(turns)
    return whole.astype(np.int64), (turns - whole).astype(np.float32)


def _joint(inside: Array, width: float) -> Array:
    """1 within `width` (a fraction of the period) of a period's border, else 0."""
    return (np.minimum(inside, 1 - inside) < width / 2).astype(np.float32)


def plain(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """An even coat with the faintest clouding."""
    return a * (0.94 + 0.12 * noise(rng, u, v, 0.4, 3))[..., None]


def plaster(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Rough plaster or concrete: stains and grit."""
    stain, grit = noise(rng, u, v, 0.9, 5), noise(rng, u, v, 0.02, 2)
    return a * (0.7 + 0.4 * stain + 0.2 * grit)[..., None]


def grain(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Wood with its grain along u."""
    bend = noise(rng, u, v, (1.2, 0.15), 3)
    rings = 0.5 + 0.5 * np.sin((v * rng.uniform(30, 90) + bend * rng.uniform(8, 25)) * 2)
    fibres = noise(rng, u, v, (0.25, 0.008), 3)
    return mix(a, b, 0.55 * rings * bend + 0.75 * (fibres - 0.3))


def planks(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Floor boards along u."""
    width, length = rng.uniform(0.07, 0.2), rng.uniform(0.7, 2.0)
    row, across = _cells(v, width)
    column, along = _cells(u + lottery(rng, row) * length, length)
    tone = lottery(rng, row, column)
    joint = np.maximum(_joint(across, 0.006 / width), _joint(along, 0.006 / length))
    return grain(rng, u, v, a, b) * ((0.7 + 0.5 * tone) * (1 - 0.75 * joint))[..., None]


def parquet(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Squares of short boards, turned by a quarter from one to the next."""
    side, boards = rng.uniform(0.25, 0.5), int(rng.integers(3, 7))
    column, x = _cells(u, side)
    row, y = _cells(v, side)
    upright = (row + column) % 2 == 0
    board, inside = _cells(np.where(upright, x, y).astype(np.float32), 1 / boards)
    tone = lottery(rng, row, column, board)
    return mix(a, b, tone) * (1 - 0.6 * _joint(inside, 0.05) + 0.25 * (noise(rng, u, v, 0.03, 3) - 0.5))[..., None]


def checker(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """A chess board."""
    side = rng.uniform(0.12, 0.5)
    odd = (np.floor(u / side) + np.floor(v / side)) % 2
    return mix(a, b, odd.astype(np.float32)) * (0.85 + 0.3 * noise(rng, u, v, 0.3))[..., None]


def tiles(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Glazed tiles with joints of the other colour."""
    width = rng.uniform(0.1, 0.45)
    height = width * rng.choice([0.5, 1.0, 1.0])
    row, y = _cells(v, height)
    column, x = _cells(u + (row % 2) * width * rng.choice([0.0, 0.5]), width)
    tone = 0.8 + 0.35 * lottery(rng, row, column) + 0.2 * (noise(rng, u, v, 0.1) - 0.5)
    return mix(a * tone[..., None], b, np.maximum(_joint(x, 0.008 / width), _joint(y, 0.008 / height)))


def brick(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """A brick wall."""
    row, y = _cells(v, 0.075)
    column, x = _cells(u + (row % 2) * 0.12, 0.24)
    tone = 0.6 + 0.6 * lottery(rng, row, column) + 0.5 * (noise(rng, u, v, 0.05) - 0.5)
    return mix(a * tone[..., None], b, np.maximum(_joint(x, 0.06), _joint(y, 0.18)))


def marble(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Stone with veins."""
    warp = noise(rng, u, v, 0.8, 6)
    vein = 1 - np.abs(np.sin((u * rng.uniform(0.3, 2) + v * rng.uniform(0.3, 2) + warp * rng.uniform(2, 4)) * np.pi))
    return mix(a, b, vein ** rng.uniform(4, 10) + 0.3 * (noise(rng, u, v, 0.2) - 0.4))


def terrazzo(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Stone chips in a ground."""
    cell = rng.uniform(0.02, 0.06)
    chip, kind = noise(rng, u, v, cell, 2), noise(rng, u, v, 3 * cell, 1)
    chips = np.where((kind > 0.5)[..., None], b, 1 - 0.7 * a)
    return np.where((chip > 0.62)[..., None], chips, a)


def carpet(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Tufts, with a border and a medallion of the other colour."""
    width, height = float(u[0, -1]), float(v[-1, 0])
    edge = np.minimum(np.minimum(u, width - u), np.minimum(v, height - v)) / min(width, height)
    x, y = u / width - 0.5, v / height - 0.5
    waves = np.sin(x * rng.integers(6, 40)) * np.sin(y * rng.integers(6, 40)) + np.cos(np.hypot(x, y) * 40)
    fraction = np.where((edge > 0.05) & (edge < rng.uniform(0.08, 0.14)), 1.0, 0.6 * (waves > rng.uniform(-0.3, 0.8)))
    return mix(a, b, fraction.astype(np.float32)) * (0.6 + 0.8 * noise(rng, u, v, 0.015, 1))[..., None]


def stripes(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Stripes of up to three widths along v."""
    period = rng.uniform(0.04, 0.3)
    cuts = np.sort(rng.random(2))
    _, inside = _cells(u if rng.random() < 0.7 else u + v, period)
    fraction = np.select([inside < cuts[0], inside < cuts[1]], [np.zeros_like(inside), np.ones_like(inside)], 0.4)
    return mix(a, b, np.broadcast_to(fraction, (v.shape[0], u.shape[1]))) * _thread(rng, u, v)


def plaid(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Bands that cross."""
    period = rng.uniform(0.06, 0.25)
    wide, thin = rng.uniform(0.3, 0.6), rng.uniform(0.05, 0.12)

    def bands(x: Array) -> Array:
        _, inside = _cells(x, period)
        middle = np.abs(inside - wide / 2) < thin / 2
        return np.select([middle, inside < wide, inside > 1 - thin], [np.zeros_like(inside), 0.5, 0.3], 0.0)

    return mix(a, b, bands(u) + bands(v)) * _thread(rng, u, v)


def dots(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Dots or rings in staggered rows."""
    period = rng.uniform(0.05, 0.3)
    row, y = _cells(v, period)
    _, x = _cells(u + (row % 2) * period / 2, period)
    distance = np.hypot(x - 0.5, y - 0.5)
    inner = rng.choice([0.0, 0.0, 0.12])
    return mix(a, b, ((distance < rng.uniform(0.2, 0.4)) & (distance >= inner)).astype(np.float32))


def ornament(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """A wallpaper's repeated, mirrored motif."""
    period = rng.uniform(0.15, 0.6)
    row, y = _cells(v, period * rng.uniform(1, 1.6))
    _, x = _cells(u + (row % 2) * period / 2, period)
    x, y = np.abs(x - 0.5) * 2, y * 2 - 1
    petals, bend = rng.integers(3, 9), rng.uniform(0, 6)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    wave = np.cos(petals * angle + bend * radius) + np.cos(radius * rng.uniform(6, 16))
    return mix(a, b, (wave > rng.uniform(0, 0.8)).astype(np.float32))


def weave(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """A coarse fabric of two threads."""
    fraction = 0.5 + 0.5 * np.sin(u * 2 * np.pi / 0.018) * np.sin(v * 2 * np.pi / 0.018)
    return mix(a, a * 0.6 + b * 0.4, fraction.astype(np.float32)) * _thread(rng, u, v)


def camouflage(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Large blots, as on cow hide or printed cloth."""
    cell = rng.uniform(0.08, 0.4)
    one, two = noise(rng, u, v, cell, 3), noise(rng, u, v, cell, 3)
    return np.where((one > 0.55)[..., None], b, mix(a, b, 0.5 * (two > 0.55)))


def panelling(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """Upright boards below a rail, paint above."""
    width, rail = rng.uniform(0.08, 0.3), rng.uniform(0.9, 1.4)
    board, inside = _cells(u, width)
    from_floor = v[-1, 0] - v
    boards = b * ((0.9 + 0.15 * lottery(rng, board)) * (1 - 0.5 * _joint(inside, 0.012 / width)))[..., None]
    shade = np.where(np.abs(from_floor - rail) < 0.03, 0.7, 1.0)[..., None]
    return np.where((from_floor < rail)[..., None], boards, a) * shade


def collage(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """A poster: flat shapes over one another, and lines that look like print."""
    rows, columns = v.shape[0], u.shape[1]
    inks = [a, b, *rng.random((4, 3), dtype=np.float32) ** 2]
    picture = Image.new("RGB", (columns, rows), _ink(inks[rng.integers(len(inks))]))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(4, 16)):
        x, y = rng.random(2) * (columns, rows)
        w, h = rng.uniform(0.05, 0.6, 2) * min(columns, rows)
        ink = _ink(inks[rng.integers(len(inks))])
        kind = rng.integers(4)
        if kind == 0:
            draw.rectangle((x, y, x + w, y + h), fill=ink)
        elif kind == 1:
            draw.ellipse((x - w / 2, y - w / 2, x + w / 2, y + w / 2), fill=ink)
        elif kind == 2:
            draw.polygon([tuple(point) for point in (x, y) + rng.uniform(-1, 1, (4, 2)) * (w, h)], fill=ink)
        else:
            for line in np.arange(y, y + h, max(2.0, rows / 30)):
                draw.line((x, line, x + w * rng.uniform(0.6, 1), line), fill=ink, width=max(1, rows // 80))
    return (np.asarray(picture, dtype=np.float32) / 255) ** 2


def landscape(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    """A picture of hills under a sky."""
    height = float(v[-1, 0])
    sky = mix(a, np.ones(3, dtype=np.float32), np.broadcast_to(v / height, (v.shape[0], u.shape[1])))
    picture = sky
    for k in range(rng.integers(2, 6)):
        ridge = 0.35 + 0.12 * k + 0.35 * (noise(rng, u, v[:2], float(u[0, -1]) / rng.uniform(1, 4), 5)[:1] - 0.5)
        hill = mix(b, a, np.float32(rng.uniform(0, 0.7)) * np.ones((1, 1), dtype=np.float32)) / (1 + 0.5 * k)
        shade = hill * (0.6 + 0.8 * noise(rng, u, v, height / 6, 4))[..., None]
        picture = np.where((v / height > ridge)[..., None], shade, picture)
    return picture


def _thread(rng: Rng, u: Array, v: Array) -> Array:
    return (0.8 + 0.4 * noise(rng, u, v, 0.012, 1))[..., None]


def _ink(colour: Array) -> tuple[int, int, int]:
    red, green, blue = (int(255 * channel**0.5) for channel in np.clip(colour, 0, 1))
    return red, green, blue


FLOORS: tuple[Pattern, ...] = (planks, planks, planks, parquet, checker, tiles, tiles, marble, terrazzo, plaster, weave)
WALLS: tuple[Pattern, ...] = (plain, plain, plain, plaster, stripes, ornament, dots, brick, panelling, tiles, grain)
CEILINGS: tuple[Pattern, ...] = (plain, plain, plain, plaster, panelling, planks)
FABRICS: tuple[Pattern, ...] = (weave, weave, plain, stripes, plaid, dots, camouflage, ornament, checker)
WOODS: tuple[Pattern, ...] = (grain, grain, grain, plain, planks, marble)
PICTURES: tuple[Pattern, ...] = (collage, collage, landscape, landscape, marble, ornament, camouflage)
RUGS: tuple[Pattern, ...] = (carpet, carpet, stripes, weave, plaid, dots, checker)
