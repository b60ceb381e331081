"""Furniture of random build. Each piece stands at the origin, its back towards -Y, and names its tops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastssl.render import textures
from fastssl.render.materials import Style
from fastssl.render.scene import Material, Mesh
from fastssl.render.shapes import box, cushion, cylinder, lathe, rod, sheet
from fastssl.render.textures import Rng


@dataclass(frozen=True, slots=True)
class Top:
    """A level rectangle that carries smaller things: its middle, sides, height above the floor, and room above it."""

    x: float
    y: float
    width: float
    depth: float
    z: float
    clearance: float


@dataclass(eq=False)
class Item:
    """One object as a person would count it."""

    pieces: list[tuple[Mesh, Material]] = field(default_factory=list)
    glow: list[Mesh] = field(default_factory=list)
    """What shines of a lamp."""
    tops: list[Top] = field(default_factory=list)

    def add(self, material: Material, *meshes: Mesh) -> Item:
        """Adds meshes of one material."""
        self.pieces.extend((mesh, material) for mesh in meshes)
        return self

    def bounds(self) -> NDArray[np.float64]:
        """(2, 3): lowest and highest corner."""
        points = np.concatenate([mesh.points for mesh, _ in self.pieces] + [mesh.points for mesh in self.glow])
        return np.stack([points.min(axis=0), points.max(axis=0)])

    def fitted(self, width: float, depth: float, height: float) -> Item:
        """The same thing, or a smaller likeness of it that fits."""
        low, high = self.bounds()
        scale = min(1.0, *(np.array([width, depth, height]) / (high - low)))
        if scale == 1.0:
            return self
        pieces = [(replace(mesh, points=mesh.points * scale), material) for mesh, material in self.pieces]
        return Item(pieces, [replace(mesh, points=mesh.points * scale) for mesh in self.glow])


Maker: TypeAlias = Callable[[Rng, Style], Item]


def table(rng: Rng, style: Style, *, height: tuple[float, float] = (0.68, 0.8)) -> Item:
    """A dining table, round, square or long."""
    width, depth = rng.uniform(0.8, 1.8), rng.uniform(0.7, 1.0)
    if rng.random() < 0.3:
        return _round_table(rng, style, rng.uniform(0.4, 0.65), rng.uniform(*height))
    return _table(rng, style, width, depth, rng.uniform(*height))


def coffee_table(rng: Rng, style: Style) -> Item:
    """A low table."""
    if rng.random() < 0.35:
        return _round_table(rng, style, rng.uniform(0.3, 0.5), rng.uniform(0.35, 0.5))
    return _table(rng, style, rng.uniform(0.7, 1.3), rng.uniform(0.45, 0.7), rng.uniform(0.3, 0.5))


def side_table(rng: Rng, style: Style) -> Item:
    """A bedside or lamp table."""
    if rng.random() < 0.4:
        return _round_table(rng, style, rng.uniform(0.2, 0.3), rng.uniform(0.45, 0.65))
    if rng.random() < 0.5:
        return _cabinet(rng, style, rng.uniform(0.4, 0.55), rng.uniform(0.35, 0.45), rng.uniform(0.4, 0.65))
    return _table(rng, style, rng.uniform(0.4, 0.55), rng.uniform(0.35, 0.45), rng.uniform(0.45, 0.65))


def desk(rng: Rng, style: Style) -> Item:
    """A desk, often with drawers under one end."""
    width, depth, height = rng.uniform(1.1, 1.7), rng.uniform(0.55, 0.8), rng.uniform(0.7, 0.78)
    item = _table(rng, style, width, depth, height)
    if rng.random() < 0.7:
        block = _cabinet(rng, style, 0.4, depth - 0.1, height - 0.05, columns=1)
        side = rng.choice([-1, 1]) * (width / 2 - 0.24)
        item.pieces += [(mesh.moved(x=side), material) for mesh, material in block.pieces]
    return item


def _table(rng: Rng, style: Style, width: float, depth: float, height: float) -> Item:
    thick = rng.uniform(0.02, 0.06)
    wood = style.wood((width, depth))
    legs = wood if rng.random() < 0.5 else style.metal()
    item = Item().add(wood, box(width, depth, thick).moved(z=height - thick))
    item.tops.append(Top(0, 0, width, depth, height, 0.8))
    if rng.random() < 0.6:
        item.add(legs, *_legs(rng, width, depth, height - thick))
        if rng.random() < 0.5:
            item.add(legs, box(width * 0.85, depth * 0.85, 0.07).moved(z=height - thick - 0.07))
        if rng.random() < 0.25:
            item.add(wood, box(width * 0.85, depth * 0.85, 0.02).moved(z=height * 0.25))
        return item
    panel = box(rng.uniform(0.03, 0.08), depth * 0.9, height - thick)
    item.add(legs, panel.moved(x=width * 0.42), panel.moved(x=-width * 0.42))
    return item.add(legs, box(width * 0.84, 0.03, height * 0.4).moved(z=height * 0.4))


def _round_table(rng: Rng, style: Style, radius: float, height: float) -> Item:
    thick = rng.uniform(0.02, 0.05)
    item = Item().add(style.wood((2 * radius, 2 * radius)), cylinder(radius, thick).moved(z=height - thick))
    item.tops.append(Top(0, 0, radius * 1.4, radius * 1.4, height, 0.8))
    base = style.plainly((0.5, 0.5))
    if rng.random() < 0.5:
        foot = lathe([(0, 0), (radius * 0.6, 0), (radius * 0.55, 0.03), (0.04, 0.06), (0.04, height - thick)])
        return item.add(base, foot)
    return item.add(base, *_legs(rng, radius * 1.3, radius * 1.3, height - thick))


def _legs(rng: Rng, width: float, depth: float, height: float) -> list[Mesh]:
    """Four legs, straight, tapered or splayed, round or square."""
    thick = rng.uniform(0.025, 0.08)
    x, y = width / 2 - thick, depth / 2 - thick
    corners = [(x, y), (-x, y), (-x, -y), (x, -y)]
    if rng.random() < 0.4:
        return [box(thick, thick, height).moved(a, b) for a, b in corners]
    inset, tip = rng.choice([1.0, 0.85, 0.7]), rng.uniform(0.4, 1.0)
    return [rod((a * inset, b * inset, height), (a, b, 0), thick / 2, tip=tip) for a, b in corners]


def chair(rng: Rng, style: Style) -> Item:
    """A chair, its front towards +Y."""
    width, depth, height = rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.5), rng.uniform(0.42, 0.5)
    frame = style.plainly((0.5, 0.5))
    seat = style.fabric((0.5, 0.5)) if rng.random() < 0.6 else frame
    item = Item().add(frame, *_legs(rng, width, depth, height))
    if rng.random() < 0.5:
        item.add(seat, cushion(width, depth, 0.09, softness=0.3).moved(z=height - 0.03))
    else:
        item.add(seat, box(width, depth, 0.03).moved(z=height))
    item.tops.append(Top(0, 0, width, depth, height + 0.05, 0.4))
    return _chair_back(rng, item, frame, seat, width, depth, height)


def _chair_back(
    rng: Rng, item: Item, frame: Material, seat: Material, width: float, depth: float, height: float
) -> Item:
    back, rise, lean = -depth / 2 + 0.02, rng.uniform(0.35, 0.55), rng.uniform(0.0, 0.12)
    ends = [((x, back, height), (x, back - lean, height + rise)) for x in (-0.45 * width, 0.45 * width)]
    kind = rng.integers(3)
    if kind == 0:
        item.add(frame, *(rod(a, b, 0.016) for a, b in ends))
        count = int(rng.integers(2, 5))
        for k in range(count):
            fraction = (k + 1) / count
            item.add(
                frame, box(width * 0.95, 0.02, 0.06).moved(0, back - lean * fraction, height + rise * fraction - 0.06)
            )
    elif kind == 1:
        across, up = np.linspace(-1, 1, 9), np.linspace(0.2, 1.0, 4)[:, None]
        curved = (across * width / 2, back - lean * up + 0.06 * across**2, height + rise * up)
        item.add(seat, sheet(np.stack(np.broadcast_arrays(*curved), axis=-1))).add(
            frame, *(rod(a, b, 0.016) for a, b in ends)
        )
    else:
        item.add(seat, cushion(width, 0.08, rise, softness=0.3).moved(0, back, height + 0.02))
    if rng.random() < 0.25:
        for x in (-width / 2, width / 2):
            item.add(frame, box(0.04, depth * 0.8, 0.03).moved(x, 0, height + 0.2))
            item.add(frame, rod((x, depth * 0.3, height), (x, depth * 0.3, height + 0.2), 0.014))
    return item


def stool(rng: Rng, style: Style) -> Item:
    """A stool, a pouf or a bench."""
    height = rng.uniform(0.38, 0.7)
    item = Item(tops=[Top(0, 0, 0.3, 0.3, height, 0.4)])
    kind = rng.integers(3)
    if kind == 0:
        side = rng.uniform(0.4, 0.7)
        return item.add(style.fabric((side, side)), cushion(side, side, height, softness=rng.uniform(0.2, 0.6)))
    if kind == 1:
        item.add(style.plainly((0.4, 0.4)), cylinder(0.18, 0.04).moved(z=height - 0.04))
        return item.add(style.plainly((0.4, 0.4)), *_legs(rng, 0.3, 0.3, height - 0.04))
    return _table(rng, style, rng.uniform(0.8, 1.3), rng.uniform(0.3, 0.4), rng.uniform(0.4, 0.5))


def sofa(rng: Rng, style: Style) -> Item:
    """A sofa of two or three seats."""
    return _sofa(rng, style, int(rng.integers(2, 4)))


def armchair(rng: Rng, style: Style) -> Item:
    """A sofa for one."""
    return _sofa(rng, style, 1)


def _sofa(rng: Rng, style: Style, seats: int) -> Item:
    seat, depth, level = rng.uniform(0.55, 0.75), rng.uniform(0.75, 0.95), rng.uniform(0.25, 0.34)
    arm, arm_height, back_height = rng.uniform(0.1, 0.24), rng.uniform(0.5, 0.65), rng.uniform(0.7, 0.95)
    inner, soft = seats * seat, rng.uniform(0.15, 0.45)
    cloth = style.fabric((1.2, 1.0))
    other = cloth if rng.random() < 0.7 else style.fabric((0.8, 0.8))
    foot = rng.uniform(0.0, 0.12)
    item = Item().add(cloth, box(inner + 2 * arm, depth, level - foot).moved(z=foot))
    for side in (-1, 1):
        arm_rest = cushion(arm, depth, arm_height - foot, softness=soft)
        item.add(cloth, arm_rest.moved(side * (inner + arm) / 2, 0, foot))
        if foot > 0.03:
            legs = (cylinder(0.025, foot).moved(side * inner / 2, y) for y in (-depth * 0.4, depth * 0.4))
            item.add(style.metal(), *legs)
    thick = rng.uniform(0.15, 0.25)
    item.add(cloth, cushion(inner, thick, back_height - level, softness=soft).moved(0, (thick - depth) / 2, level))
    for k in range(seats):
        x = (k + 0.5) * seat - inner / 2
        item.add(other, cushion(seat * 0.98, depth - thick, 0.16, softness=0.25).moved(x, thick / 2, level - 0.02))
    item.tops.append(Top(0, thick / 2, inner * 0.9, depth - thick, level + 0.13, 0.5))
    return item


def bed(rng: Rng, style: Style) -> Item:
    """A single or double bed, its head at the wall."""
    width, length, level = rng.choice([0.95, 1.2, 1.5, 1.7]), rng.uniform(1.95, 2.1), rng.uniform(0.3, 0.45)
    frame, linen, quilt = style.wood((2.0, 1.2)), style.fabric((2.0, 2.0)), style.fabric((2.0, 2.0))
    item = Item().add(frame, box(width + 0.06, length, 0.12).moved(z=level - 0.12))
    item.add(frame, *_legs(rng, width, length, level - 0.12))
    item.add(linen, cushion(width, length - 0.05, 0.24, softness=0.15).moved(z=level - 0.02))
    head = rng.uniform(0.7, 1.3)
    board = style.fabric((width, 1.0)) if rng.random() < 0.4 else frame
    item.add(board, box(width + 0.08, 0.07, head).moved(y=-length / 2 - 0.03))
    if rng.random() < 0.3:
        item.add(frame, box(width + 0.08, 0.05, level + 0.3).moved(y=length / 2 + 0.02))
    item.add(quilt, _quilt(rng, width, length, level + 0.235))
    for x in [0.0] if width < 1.3 else [-width / 4, width / 4]:
        pillow = cushion(min(0.65, width * 0.7), 0.4, 0.16, softness=0.6)
        item.add(linen, pillow.moved(x, 0.3 - length / 2, level + 0.2))
    item.tops.append(Top(0, length * 0.1, width * 0.8, length * 0.5, level + 0.26, 0.5))
    return item


def _quilt(rng: Rng, width: float, length: float, z: float) -> Mesh:
    """A crumpled cover that hangs over both sides and the foot end."""
    x = np.linspace(-width / 2 - 0.03, width / 2 + 0.03, 25)
    y = np.linspace(length / 2 + 0.01, length * rng.uniform(-0.3, 0.1), 25)[:, None]
    phase, drop = rng.uniform(0, 6, 4), rng.uniform(0.15, 0.4)
    bumps = np.sin(x * 9 + phase[0] + 2 * np.sin(y * 3 + phase[1])) + np.sin(y * 11 + phase[2] + np.sin(x * 5))
    height = z + 0.015 * (1 + bumps / 2)
    hang = np.zeros_like(height)
    hang[:, [0, -1]] = drop
    hang[0, :] = drop
    return sheet(np.stack(np.broadcast_arrays(x, y, height - hang), axis=-1))


def bookcase(rng: Rng, style: Style) -> Item:
    """Open shelves."""
    width, depth, height = rng.uniform(0.6, 1.5), rng.uniform(0.25, 0.38), rng.uniform(0.8, 2.1)
    board = rng.uniform(0.018, 0.035)
    wood = style.wood((height, width))
    item = Item().add(wood, *(box(board, depth, height).moved(x=s * (width - board) / 2) for s in (-1, 1)))
    shelves = max(2, round(height / rng.uniform(0.3, 0.45)))
    gap = (height - board) / shelves
    for k in range(shelves + 1):
        item.add(wood, box(width, depth - 0.005, board).moved(z=k * gap))
        clearance = gap - board if k < shelves else 0.5
        item.tops.append(Top(0, 0, width - 2 * board, depth, k * gap + board, clearance))
    if rng.random() < 0.6:
        item.add(style.wood((height, width)), box(width, 0.012, height).moved(y=-depth / 2 + 0.006))
    if width > 1.0 and rng.random() < 0.5:
        item.add(wood, box(board, depth - 0.01, height))
    return item


def wardrobe(rng: Rng, style: Style) -> Item:
    """A tall cupboard with doors."""
    return _cabinet(rng, style, rng.uniform(0.8, 1.8), rng.uniform(0.5, 0.62), rng.uniform(1.7, 2.15), rows=1)


def dresser(rng: Rng, style: Style) -> Item:
    """A chest of drawers, a sideboard or a low cabinet."""
    return _cabinet(rng, style, rng.uniform(0.7, 1.8), rng.uniform(0.38, 0.52), rng.uniform(0.5, 1.1))


def fridge(rng: Rng, style: Style) -> Item:
    """A refrigerator."""
    material = style.metal() if rng.random() < 0.5 else style.plain((0.0, 0.6), (0.6, 1.0))
    width, depth, height = rng.uniform(0.55, 0.75), 0.6, rng.uniform(1.4, 1.9)
    split = height * rng.uniform(0.55, 0.7)
    item = Item(tops=[Top(0, 0, width, depth, height, 0.4)]).add(material, box(width, depth, height))
    for low, high in ((0.05, split), (split + 0.02, height)):
        item.add(material, box(width, 0.05, high - low).moved(0, depth / 2 + 0.03, low))
        middle = (low + high) / 2
        handle = rod((-width * 0.4, depth / 2 + 0.09, middle - 0.15), (-width * 0.4, depth / 2 + 0.09, middle), 0.012)
        item.add(style.metal(), handle)
    return item


def counter(rng: Rng, style: Style) -> Item:
    """Kitchen units under a worktop, with hob or sink."""
    width, height = rng.uniform(1.2, 2.6), rng.uniform(0.84, 0.92)
    item = _cabinet(rng, style, width, 0.58, height, rows=int(rng.integers(1, 3)), columns=round(width / 0.55))
    item.add(style.wood((width, 0.62)), box(width + 0.02, 0.62, 0.04).moved(z=height))
    item.tops = [Top(0, 0, width, 0.58, height + 0.04, 0.5)]
    x = rng.uniform(-0.3, 0.3) * width
    if rng.random() < 0.5:
        rings = (cylinder(0.09, 0.008).moved(x + a, b, height + 0.045) for a in (-0.12, 0.12) for b in (-0.12, 0.12))
        return item.add(style.plain((0, 0), (0.05, 0.1)), box(0.56, 0.5, 0.006).moved(x, 0, height + 0.04), *rings)
    metal = style.metal()
    item.add(metal, box(0.5, 0.4, 0.006).moved(x, 0, height + 0.04))
    item.add(metal, rod((x, -0.22, height + 0.04), (x, -0.22, height + 0.3), 0.014))
    return item.add(metal, rod((x, -0.22, height + 0.3), (x, -0.05, height + 0.26), 0.014))


def _cabinet(
    rng: Rng, style: Style, width: float, depth: float, height: float, *, rows: int = 0, columns: int = 0
) -> Item:
    """A closed body with a grid of doors or drawers; zero rows or columns leaves their number to chance."""
    rows = rows or max(1, round(height / rng.uniform(0.18, 0.5)))
    columns = columns or max(1, round(width / rng.uniform(0.4, 0.8)))
    body = style.wood((max(width, height), max(depth, height)))
    front = body if rng.random() < 0.5 else style.wood((width / columns, height / rows))
    metal = style.metal()
    plinth = rng.uniform(0.0, 0.12)
    item = Item(tops=[Top(0, 0, width, depth, height, 0.5)])
    item.add(body, box(width, depth, height - plinth).moved(z=plinth))
    if plinth > 0.02:
        item.add(metal, box(width * 0.92, depth * 0.88, plinth))
    w, h, gap = width / columns, (height - plinth) / rows, rng.uniform(0.004, 0.015)
    knob, upright = rng.random() < 0.5, rows == 1
    for row in range(rows):
        for column in range(columns):
            x, z = (column + 0.5) * w - width / 2, plinth + row * h
            item.add(front, box(w - gap, 0.022, h - gap).moved(x, depth / 2 + 0.011, z + gap / 2))
            at = x + w * 0.38 * (-1 if column % 2 else 1) if upright else x
            item.add(metal, _handle(knob, upright).moved(at, depth / 2 + 0.03, z + h / 2))
    return item


def _handle(knob: bool, upright: bool) -> Mesh:
    if knob:
        return cushion(0.035, 0.04, 0.035, softness=0.8)
    end = (0.0, 0.0, 0.07) if upright else (0.07, 0.0, 0.0)
    return rod((-end[0], 0.01, -end[2]), (end[0], 0.01, end[2]), 0.008)


def floor_lamp(rng: Rng, style: Style) -> Item:
    """A standard lamp with a glowing shade."""
    return _lamp(rng, style, rng.uniform(1.2, 1.75), rng.uniform(0.14, 0.24), rng.uniform(0.12, 0.18))


def table_lamp(rng: Rng, style: Style) -> Item:
    """A lamp for a desk or a chest."""
    return _lamp(rng, style, rng.uniform(0.3, 0.55), rng.uniform(0.09, 0.16), rng.uniform(0.06, 0.1))


def _lamp(rng: Rng, style: Style, height: float, radius: float, foot: float) -> Item:
    shade = radius * rng.uniform(0.8, 1.5)
    item = Item().add(style.plainly((0.3, 0.3)), lathe([(0, 0), (foot, 0), (foot * 0.9, 0.02), (0, 0.035)]))
    stem = height - shade
    if height < 0.6 and rng.random() < 0.6:
        bulge = 0.02 + foot * 0.8 * np.sin(np.pi * np.linspace(0, 1, 9)) ** rng.uniform(0.6, 1)
        belly = [(float(r), 0.02 + stem * k / 8) for k, r in enumerate(bulge)]
        item.add(style.plainly((0.4, 0.3)), lathe(belly, smooth=True))
    else:
        item.add(style.metal(), cylinder(0.012, stem))
    if rng.random() < 0.3:
        item.glow.append(cushion(2 * radius, 2 * radius, 2 * radius, softness=1.0).moved(z=stem))
        return item
    upper = radius * rng.uniform(0.4, 1.0)
    item.glow.append(lathe([(0, 0), (radius, 0), (upper, shade), (0, shade)]).moved(z=stem))
    return item


def plant(rng: Rng, style: Style) -> Item:
    """A potted plant with long leaves or a round crown."""
    pot_radius, pot_height = rng.uniform(0.1, 0.2), rng.uniform(0.15, 0.4)
    rim = pot_radius * rng.uniform(1.0, 1.4)
    pot = lathe(
        [
            (0, 0),
            (pot_radius, 0),
            (rim, pot_height),
            (rim * 0.88, pot_height),
            (rim * 0.8, pot_height - 0.03),
            (0, pot_height - 0.03),
        ]
    )
    item = Item().add(style.plainly((0.6, 0.4)), pot)
    green = _leaf_colour(rng, style)
    if rng.random() < 0.35:
        trunk = rng.uniform(0.2, 0.7)
        item.add(style.wood((0.5, 0.2)), cylinder(0.02, pot_height + trunk))
        for _ in range(rng.integers(4, 9)):
            size = rng.uniform(0.15, 0.4, 3)
            x, y, z = rng.normal(0, 0.1, 3)
            item.add(green, cushion(*size, softness=1.0).moved(x, y, pot_height + trunk + z))
        return item
    reach, rise = rng.uniform(0.2, 0.55), rng.uniform(0.2, 1.0)
    for _ in range(rng.integers(10, 26)):
        leaf = _leaf(reach * rng.uniform(0.4, 1), rise * rng.uniform(0.4, 1), rng.uniform(0.03, 0.09))
        item.add(green, leaf.turned(rng.uniform(0, 2 * np.pi)).moved(z=pot_height - 0.02))
    return item


def _leaf_colour(rng: Rng, style: Style) -> Material:
    a = np.array([rng.uniform(0.02, 0.2), rng.uniform(0.12, 0.45), rng.uniform(0.01, 0.1)], dtype=np.float32)
    return style.surface((textures.grain, textures.camouflage, textures.plain), (0.8, 0.3), colours=(a, a * 0.4))


def _leaf(reach: float, rise: float, width: float) -> Mesh:
    """A blade that rises and bends over along X."""
    t = np.linspace(0, 1, 9)[:, None]
    across = np.linspace(-1, 1, 3)[None, :]
    half = width * np.sin(np.pi * np.clip(t * 0.95 + 0.04, 0, 1)) ** 0.7
    x = reach * t**1.5 + 0 * across
    z = rise * (1.6 * t - 0.9 * t**3) - 0.2 * half * np.abs(across)
    return sheet(np.stack(np.broadcast_arrays(x, half * across, z), axis=-1))


def ladder(rng: Rng, style: Style) -> Item:
    """A ladder leaning back, or a clothes rail."""
    height, width, lean = rng.uniform(1.2, 1.9), rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.3)
    material = style.plainly((1.5, 0.2))
    item = Item()
    for x in (-width / 2, width / 2):
        item.add(material, rod((x, lean, 0), (x, -lean, height), 0.02))
    if rng.random() < 0.5:
        for fraction in np.linspace(0.12, 0.95, int(rng.integers(4, 7))):
            y, z = lean * (1 - 2 * fraction), height * fraction
            item.add(material, rod((-width / 2, y, z), (width / 2, y, z), 0.015))
        return item
    item.add(material, rod((-width / 2, -lean, height - 0.02), (width / 2, -lean, height - 0.02), 0.015))
    for x in np.arange(-width / 2 + 0.08, width / 2 - 0.05, rng.uniform(0.06, 0.12)):
        drop = rng.uniform(0.5, min(1.0, height - 0.2))
        garment = cushion(0.05, 0.4, drop, softness=0.4)
        item.add(style.fabric((1.0, 0.5)), garment.moved(x, -lean, height - 0.05 - drop))
    return item


def sculpture(rng: Rng, style: Style) -> Item:
    """A stack of solids that is no furniture at all, for shapes that furniture lacks."""
    item, z = Item(), 0.0
    size = rng.uniform(0.25, 0.6)
    for _ in range(rng.integers(2, 6)):
        height = size * rng.uniform(0.4, 1.2)
        solids = (
            box(size, size * rng.uniform(0.5, 1), height),
            cylinder(size / 2, height),
            cushion(size, size, height, softness=rng.uniform(0.3, 1.6)),
            lathe([(0, 0), (size / 2, 0), (size * rng.uniform(0, 0.4), height), (0, height)]),
        )
        mesh = solids[rng.integers(len(solids))].turned(rng.uniform(0, np.pi))
        x, y = rng.normal(0, size * 0.06, 2)
        item.add(style.plainly((size * 2, size * 2)), mesh.moved(x, y, z))
        z += height
        size *= rng.uniform(0.6, 1.0)
    return item
