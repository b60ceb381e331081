"""Small things that lie about, and what hangs on walls and ceilings.

Small things stand at the origin. Things on a wall have their back at y = 0, face +Y, and their foot at z = 0.
Things on a ceiling hang down from z = 0.
"""

from __future__ import annotations

import numpy as np

from fastssl.render import textures
from fastssl.render.furniture import Item, Maker, Top, plant, sculpture, table_lamp
from fastssl.render.materials import Style
from fastssl.render.scene import Material
from fastssl.render.shapes import ball, box, cushion, cylinder, lathe, ring, rod, sheet
from fastssl.render.textures import Rng


def book(rng: Rng, style: Style) -> Item:
    """A lying book."""
    width, depth, height = rng.uniform(0.13, 0.24), rng.uniform(0.18, 0.32), rng.uniform(0.02, 0.06)
    item = Item().add(style.plain((0, 0.2), (0.7, 0.9)), box(width - 0.01, depth - 0.01, height - 0.008).moved(z=0.004))
    cover = style.surface(textures.PICTURES, (width, depth)) if rng.random() < 0.4 else style.plain()
    item.add(cover, box(width, depth, 0.004), box(width, depth, 0.004).moved(z=height - 0.004))
    return item.add(cover, box(0.005, depth, height).moved(x=-width / 2))


def standing_book(rng: Rng, style: Style) -> Item:
    """An upright book, its back towards +Y."""
    width, depth, height = rng.uniform(0.025, 0.07), rng.uniform(0.14, 0.22), rng.uniform(0.18, 0.3)
    cover = style.fabric((0.2, 0.3)) if rng.random() < 0.15 else style.plain()
    return Item().add(cover, box(width, depth, height))


def vase(rng: Rng, style: Style) -> Item:
    """A turned vessel: vase, jug, bottle."""
    height = rng.uniform(0.12, 0.42)
    level = np.linspace(0, 1, 12)
    waves = 1 + rng.uniform(0.1, 0.6) * np.sin(level * rng.uniform(2, 7) + rng.uniform(0, 6))
    radius = height * rng.uniform(0.15, 0.32) * waves
    outside = [(0.0, 0.0), *((float(r), float(height * t)) for r, t in zip(radius, level, strict=True))]
    rim = float(radius[-1])
    vessel = lathe(outside, smooth=True)
    inside = lathe([(rim, height), (rim * 0.85, height), (rim * 0.6, height * 0.6), (0, height * 0.6)])
    item = Item().add(style.plainly((0.8, 0.4)), vessel, inside)
    if rng.random() < 0.35:
        for _ in range(rng.integers(3, 9)):
            x, y = rng.normal(0, 0.08, 2)
            z = height + rng.uniform(0.1, 0.3)
            item.add(style.plain((0.3, 1), (0.3, 0.6)), rod((0, 0, height * 0.6), (x, y, z), 0.003))
            item.add(style.plain((0.5, 1.0)), ball(rng.uniform(0.015, 0.04)).moved(x, y, z - 0.02))
    return item


def bowl(rng: Rng, style: Style) -> Item:
    """A bowl, often with fruit in it."""
    radius = rng.uniform(0.07, 0.16)
    height = radius * rng.uniform(0.35, 0.8)
    curve = [(float(radius * np.sin(a)), float(height * (1 - np.cos(a)))) for a in np.linspace(0, np.pi / 2, 8)]
    item = Item().add(style.plainly((0.4, 0.4)), lathe(curve, smooth=True))
    if rng.random() < 0.6:
        fruit = style.plain((0.7, 1.0))
        for _ in range(rng.integers(3, 7)):
            x, y = rng.normal(0, radius * 0.35, 2)
            item.add(fruit, ball(radius * 0.3).moved(x, y, height * 0.35 + rng.uniform(0, 0.3) * height))
    return item


def cup(rng: Rng, style: Style) -> Item:
    """A mug or a glass."""
    radius, height = rng.uniform(0.03, 0.05), rng.uniform(0.07, 0.13)
    wall = lathe(
        [(0, 0), (radius * rng.uniform(0.6, 1), 0), (radius, height), (radius * 0.9, height), (radius * 0.8, 0.01)]
    )
    handle = ring(height * 0.3, 0.012).rotated(np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]))
    return Item().add(style.plain(), wall, handle.moved(x=radius * 0.95, z=height * 0.5))


def toy(rng: Rng, style: Style) -> Item:
    """A solid of bright colour."""
    size = rng.uniform(0.05, 0.18)
    solids = (
        ball(size / 2),
        box(size, size, size),
        lathe([(0, 0), (size / 2, 0), (0, size)]),
        cylinder(size / 2, size),
        ring(size / 2, size / 3),
        box(size * 2, size, size * 0.6),
    )
    return Item().add(style.plain((0.6, 1.0), (0.5, 1.0)), solids[int(rng.integers(len(solids)))])


def carton(rng: Rng, style: Style) -> Item:
    """A cardboard box, a crate or a parcel, closed or open."""
    width, depth, height = rng.uniform(0.2, 0.6, 3)
    card = np.array([0.45, 0.27, 0.13], dtype=np.float32) * np.float32(rng.uniform(0.6, 1.3))
    plain_card = (textures.plain, textures.plaster)
    material = (
        style.surface(plain_card, (0.6, 0.6), colours=(card, card)) if rng.random() < 0.6 else style.wood((0.6, 0.6))
    )
    if rng.random() < 0.5:
        item = Item().add(material, box(width, depth, height))
        return item.add(style.plain((0, 0.5), (0.5, 0.9)), box(0.05, depth + 0.004, height + 0.002))
    item = Item().add(material, box(width, depth, 0.01))
    for side in (-1, 1):
        item.add(material, box(0.012, depth, height).moved(x=side * width / 2))
        item.add(material, box(width, 0.012, height).moved(y=side * depth / 2))
    return item


def basket(rng: Rng, style: Style) -> Item:
    """A basket or a bin."""
    radius, height = rng.uniform(0.12, 0.25), rng.uniform(0.2, 0.45)
    foot = radius * rng.uniform(0.6, 1.0)
    side = lathe([(0, 0), (foot, 0), (radius, height), (radius * 0.93, height), (foot * 0.9, 0.02), (0, 0.02)])
    return Item().add(style.fabric((1.5, 0.5)) if rng.random() < 0.6 else style.plainly((1.5, 0.5)), side)


def big_ball(rng: Rng, style: Style) -> Item:
    """A ball or globe."""
    radius = rng.uniform(0.1, 0.3)
    return Item().add(style.plainly((2.0, 1.0)), ball(radius))


def pillow(rng: Rng, style: Style) -> Item:
    """A scatter cushion, lying or leaning."""
    side, tilt = rng.uniform(0.3, 0.5), rng.choice([0.0, 1.1, 1.25])
    cos, sin = np.cos(tilt), np.sin(tilt)
    mesh = cushion(side, side * rng.uniform(0.6, 1), 0.13, softness=0.7).moved(z=-0.065)
    mesh = mesh.rotated(np.array([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]]))
    return Item().add(style.fabric((0.5, 0.5)), mesh.moved(z=-float(mesh.points[:, 2].min())))


def screen(rng: Rng, style: Style) -> Item:
    """A monitor, a television or a framed photograph on a foot."""
    width = rng.uniform(0.35, 1.0)
    height = width * rng.uniform(0.5, 0.7)
    case = style.plain((0.0, 0.1), (0.05, 0.3))
    dark = style.plain((0.0, 0.2), (0.05, 0.12))
    picture = style.surface(textures.PICTURES, (width, height), roughness=(0.1, 0.4)) if rng.random() < 0.6 else dark
    item = Item().add(case, box(width, 0.04, height).moved(z=0.08), cylinder(0.02, 0.1), box(width * 0.4, 0.2, 0.01))
    return item.add(picture, box(width * 0.94, 0.005, height * 0.92).moved(0, 0.022, 0.08 + height * 0.04))


def wall_picture(rng: Rng, style: Style) -> Item:
    """A framed picture, a poster, a mirror or a hanging."""
    width = rng.uniform(0.25, 1.2)
    height = width * rng.uniform(0.6, 1.5)
    if rng.random() < 0.15:
        height = min(height, 1.2)
        return Item().add(style.fabric((width, height)), box(width, 0.01, height))
    shiny = rng.random() < 0.12
    canvas = style.metal() if shiny else style.surface(textures.PICTURES, (width, height), roughness=(0.3, 0.9))
    border = rng.choice([0.0, 0.02, 0.05])
    item = Item()
    if border:
        item.add(style.trim(), box(width + 2 * border, 0.03, height + 2 * border).moved(z=-border))
    return item.add(canvas, box(width, 0.036, height))


def clock(rng: Rng, style: Style) -> Item:
    """A round clock or plate."""
    radius = rng.uniform(0.12, 0.3)
    upright = np.array([[1.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    face = cylinder(radius, 0.03).rotated(upright)
    rim = ring(radius, 0.04).rotated(upright)
    item = Item().add(style.plain(), face).add(style.trim(), rim)
    return Item([(mesh.moved(z=radius), material) for mesh, material in item.pieces])


def wall_shelf(rng: Rng, style: Style) -> Item:
    """A board with small things on it."""
    width, depth = rng.uniform(0.5, 1.4), rng.uniform(0.16, 0.28)
    item = Item().add(style.wood((width, depth)), box(width, depth, 0.03).moved(y=depth / 2))
    item.tops = [Top(0, depth / 2, width, depth, 0.03, 0.35)]
    return item


def radiator(rng: Rng, style: Style) -> Item:
    """A ribbed radiator."""
    width, height = rng.uniform(0.6, 1.4), rng.uniform(0.4, 0.7)
    ribs = [
        cushion(0.05, 0.09, height, softness=0.3).moved(x, 0.07, 0.12) for x in np.arange(-width / 2, width / 2, 0.07)
    ]
    material = style.trim()
    return Item().add(material, *ribs).add(material, box(width, 0.03, 0.03).moved(0, 0.07, 0.16))


def curtain(rng: Rng, width: float, height: float, cloth: Material) -> Item:
    """A hanging cloth in folds."""
    x = np.linspace(-width / 2, width / 2, max(12, int(width * 90)))
    fold, amount = rng.uniform(0.08, 0.16), rng.uniform(0.02, 0.045)
    levels = np.linspace(1, 0, 4)[:, None]
    y = 0.09 + amount * np.sin(2 * np.pi * x / fold + 0.8 * np.sin(x * 7)) * (0.5 + 0.5 * (1 - levels))
    grid = np.stack(np.broadcast_arrays(x, y, levels * height), axis=-1)
    return Item().add(cloth, sheet(grid))


def pendant(rng: Rng, style: Style) -> Item:
    """A lamp on a cord."""
    drop, radius = rng.uniform(0.3, 0.8), rng.uniform(0.08, 0.2)
    item = Item().add(style.plain((0, 0), (0.1, 0.3)), cylinder(0.006, drop).moved(z=-drop))
    if rng.random() < 0.35:
        item.glow.append(ball(radius).moved(z=-drop - 2 * radius))
        return item
    shade = lathe([(radius, 0), (radius * rng.uniform(0.3, 0.8), radius * rng.uniform(0.6, 1.2)), (0.01, radius * 1.3)])
    item.add(style.plainly((1.5, 0.5)), shade.moved(z=-drop - radius * 1.3))
    item.glow.append(ball(radius * 0.55).moved(z=-drop - radius * 1.25))
    return item


def ceiling_panel(rng: Rng, style: Style) -> Item:
    """A flat lamp under the ceiling, square, long or round."""
    trim = style.trim()
    kind = rng.integers(3)
    if kind == 0:
        radius = rng.uniform(0.15, 0.3)
        item = Item().add(trim, cylinder(radius + 0.02, 0.05).moved(z=-0.05))
        item.glow.append(cushion(2 * radius, 2 * radius, 0.12, softness=1.0).moved(z=-0.11))
        return item
    width, depth = (rng.uniform(0.4, 0.7), rng.uniform(0.4, 0.7)) if kind == 1 else (rng.uniform(0.9, 1.4), 0.14)
    item = Item().add(trim, box(width + 0.05, depth + 0.05, 0.05).moved(z=-0.05))
    item.glow.append(box(width, depth, 0.03).moved(z=-0.07))
    return item


ON_TABLES: tuple[Maker, ...] = (book, book, vase, vase, bowl, cup, cup, toy, table_lamp, screen, plant, sculpture)
ON_SHELVES: tuple[Maker, ...] = (standing_book, standing_book, standing_book, vase, book, bowl, toy, cup)
ON_SEATS: tuple[Maker, ...] = (pillow, pillow, pillow, book, toy)
ON_FLOORS: tuple[Maker, ...] = (carton, carton, basket, big_ball, toy, toy, book, vase, pillow, sculpture)
ON_WALLS: tuple[Maker, ...] = (wall_picture, wall_picture, wall_picture, clock, wall_shelf)
