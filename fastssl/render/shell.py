"""Floor, ceiling and walls with their windows and doors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from fastssl.render import textures
from fastssl.render.clutter import curtain, radiator
from fastssl.render.furniture import Item
from fastssl.render.layout import Room
from fastssl.render.scene import Material, Mesh, joined
from fastssl.render.shapes import box, quad, rod


@dataclass(frozen=True, slots=True)
class _Opening:
    """A hole in a wall, `recess` deep."""

    s0: float
    s1: float
    z0: float
    z1: float
    recess: float
    is_door: bool


def build_shell(room: Room, *, windows: int, doors: int) -> None:
    """Adds floor, ceiling and four walls, at most so many windows and doors, and what hangs before the windows."""
    _add_floor_and_ceiling(room)
    openings: list[list[_Opening]] = [[], [], [], []]
    for is_door in [True] * doors + [False] * windows:
        k = int(room.rng.integers(4))
        opening = _opening(room, k, is_door)
        if opening is not None:
            openings[k].append(opening)
    main = _wall_material(room)
    accent = _wall_material(room) if room.rng.random() < 0.35 else main
    trim = room.style.trim()
    skirting = float(room.rng.choice([0.0, 0.06, 0.1, 0.15]))
    feature = int(room.rng.integers(4))
    for k in range(4):
        _add_wall(room, k, accent if k == feature else main, trim, skirting, openings[k])
    for k in range(4):
        for opening in openings[k]:
            if opening.is_door:
                _add_door(room, k, opening, trim)
            else:
                _add_window(room, k, opening, trim)


def _add_floor_and_ceiling(room: Room) -> None:
    style, size = room.style, (room.width, room.depth)
    floor = style.surface(textures.FLOORS, size, colours=style.floor_colours(), roughness=(0.15, 0.9), texels=640)
    light = style.colour((0.0, 0.2), (0.75, 0.97)), style.colour((0.0, 0.3), (0.5, 0.95))
    ceiling = style.surface(textures.CEILINGS, size, colours=light, roughness=(0.8, 1.0), texels=256)
    wide, deep, up = np.array([room.width, 0, 0]), np.array([0, room.depth, 0]), np.array([0, 0, room.height])
    room.add_object([(quad(deep, wide, -deep), floor)])
    pieces = [(quad(up, wide, deep), ceiling)]
    if room.rng.random() < 0.15:
        beam = style.wood((room.width, 0.3))
        thick = room.rng.uniform(0.1, 0.2)
        one = box(room.width, thick * 0.8, thick).moved(x=room.width / 2, z=room.height - thick)
        rows = np.arange(0.4, room.depth - 0.2, room.rng.uniform(0.6, 1.1))
        pieces += [(one.moved(y=float(y)), beam) for y in rows]
    room.add_object(pieces)


def _wall_material(room: Room) -> Material:
    style, light = room.style, room.rng.random() < 0.7
    colours = (
        style.colour((0.0, 0.35), (0.7, 0.97)) if light else style.colour((0.2, 0.8), (0.2, 0.7)),
        style.colour((0.0, 0.7), (0.4, 0.95)),
    )
    size = (max(room.width, room.depth), room.height)
    return style.surface(textures.WALLS, size, colours=colours, roughness=(0.5, 1.0), texels=640)


def _opening(room: Room, k: int, is_door: bool) -> _Opening | None:
    """A free place for a window or door on wall `k`, which it takes."""
    rng, wall = room.rng, room.walls[k]
    if is_door:
        width, low, high, recess = rng.uniform(0.75, 1.0), 0.0, rng.uniform(1.95, 2.15), rng.uniform(0.02, 0.15)
    else:
        width, low = rng.uniform(0.7, min(2.4, wall.length - 0.6)), rng.choice([0.1, rng.uniform(0.7, 1.1)])
        high, recess = min(room.height - 0.15, low + rng.uniform(1.0, 2.0)), rng.uniform(0.06, 0.3)
    s = rng.uniform(0.2, wall.length - width - 0.2)
    if any(s < b and a < s + width for a, b, _, _ in room.hung[k]):
        return None
    room.hung[k].append((s - 0.12, s + width + 0.12, low - 0.12, high + 0.12))
    if is_door:
        x0, y0 = wall.at(s)
        x1, y1 = wall.at(s + width, 0.7)
        room.taken.append((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
    return _Opening(s, s + width, low, high, recess, is_door)


def _add_wall(
    room: Room, k: int, material: Material, trim: Material, skirting: float, openings: list[_Opening]
) -> None:
    """A wall with holes: the cells of the grid that the holes' sides draw, the holes' cheeks, and the skirting."""
    wall = room.walls[k]
    cuts_s = sorted({0.0, wall.length, *(x for o in openings for x in (o.s0, o.s1))})
    cuts_z = sorted({0.0, room.height, *(z for o in openings for z in (o.z0, o.z1))})
    meshes: list[Mesh] = []
    boards: list[Mesh] = []
    for s0, s1 in pairwise(cuts_s):
        for z0, z1 in pairwise(cuts_z):
            if not any(o.s0 < (s0 + s1) / 2 < o.s1 and o.z0 < (z0 + z1) / 2 < o.z1 for o in openings):
                piece = quad(np.array([s1, 0.0, z1]), np.array([s0 - s1, 0.0, 0.0]), np.array([0.0, 0.0, z0 - z1]))
                meshes.append(replace(piece, uv=piece.uv + np.array([wall.length - s1, room.height - z1])))
                if z0 == 0.0 and skirting:
                    boards.append(box(s1 - s0, 0.016, skirting).moved((s0 + s1) / 2, 0.008))
    for o in openings:
        meshes += _cheeks(o)
    pieces = [(joined(group), look) for group, look in ((meshes, material), (boards, trim)) if group]
    room.add_object([(mesh.turned(wall.yaw).moved(*wall.at(0.0)), look) for mesh, look in pieces])


def _cheeks(o: _Opening) -> list[Mesh]:
    """The inner sides of a hole."""
    inward, across, rise = np.array([0, -o.recess, 0]), np.array([o.s1 - o.s0, 0, 0]), np.array([0, 0, o.z1 - o.z0])
    near, far = np.array([o.s0, 0, o.z0]), np.array([o.s1, 0, o.z0])
    return [
        quad(near + rise + inward, -inward, -rise),
        quad(far + rise, inward, -rise),
        quad(near, across, inward),
        quad(near + rise + inward, across, -inward),
    ]


def _add_door(room: Room, k: int, o: _Opening, trim: Material) -> None:
    """A leaf with panels, a handle and a frame."""
    style, width, height = room.style, o.s1 - o.s0, o.z1 - o.z0
    leaf = trim if room.rng.random() < 0.5 else style.wood((height, width))
    item = Item().add(leaf, box(width, 0.02, height).moved(y=0.01 - o.recess))
    rows, columns = int(room.rng.integers(1, 4)), int(room.rng.integers(1, 3))
    for row in range(rows):
        for column in range(columns):
            w, h = width / columns, height / rows
            panel = box(w * 0.7, 0.02, h * 0.75)
            item.add(leaf, panel.moved((column + 0.5) * w - width / 2, 0.02 - o.recess, (row + 0.12) * h))
    side = float(room.rng.choice([-0.42, 0.42])) * width
    handle = rod((side, 0.06 - o.recess, 1.0), (side * 0.72, 0.06 - o.recess, 1.0), 0.01)
    item.add(style.metal(), handle, rod((side, -o.recess, 1.0), (side, 0.06 - o.recess, 1.0), 0.01))
    border = room.rng.uniform(0.05, 0.1)
    for x in (-(width + border) / 2, (width + border) / 2):
        item.add(trim, box(border, 0.03, height + border).moved(x, 0.015))
    item.add(trim, box(width, 0.03, border).moved(0, 0.015, height))
    _place(room, k, o, item)


def _add_window(room: Room, k: int, o: _Opening, trim: Material) -> None:
    """Bright panes in a frame, with curtains or a blind before them and a radiator below."""
    rng, style, width, height = room.rng, room.style, o.s1 - o.s0, o.z1 - o.z0
    back, bar = -o.recess, rng.uniform(0.03, 0.07)
    item = Item()
    pane = quad(np.array([width / 2, back, height]), np.array([-width, 0, 0]), np.array([0, 0, -height]))
    item.glow.append(pane)
    columns, rows = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    for k_x in range(columns + 1):
        x = (width - bar) * (k_x / columns - 0.5)
        item.add(trim, box(bar, 0.05, height).moved(x, back + 0.025))
    for k_z in range(rows + 1):
        item.add(trim, box(width, 0.045, bar).moved(0, back + 0.0225, (height - bar) * k_z / rows))
    if o.z0 > 0.3:
        item.add(trim, box(width + 0.1, o.recess + 0.08, 0.03).moved(0, (0.08 - o.recess) / 2, -0.02))
    _place(room, k, o, item)
    if rng.random() < 0.45:
        _add_curtains(room, k, o)
    elif rng.random() < 0.4:
        drop = height * rng.uniform(0.2, 0.8)
        slats = [box(width * 0.96, 0.05, 0.004).moved(0, 0.03, height - z) for z in np.arange(0.03, drop, 0.06)]
        _place(room, k, o, Item().add(style.plain((0.0, 0.5), (0.5, 0.95)), *slats))
    if o.z0 > 0.6 and rng.random() < 0.35:
        heater = radiator(rng, style)
        x, y = room.walls[k].at((o.s0 + o.s1) / 2)
        room.place(heater, (x, y, 0.0, room.walls[k].yaw))


def _add_curtains(room: Room, k: int, o: _Opening) -> None:
    rng, wall = room.rng, room.walls[k]
    top = min(o.z1 + 0.12, room.height - 0.03)
    foot = 0.03 if rng.random() < 0.7 else max(o.z0 - 0.15, 0.03)
    cloth = room.style.fabric((1.5, top - foot))
    for s, side in ((o.s0, -1), (o.s1, 1)):
        width = rng.uniform(0.2, 0.35) * (o.s1 - o.s0)
        middle = float(np.clip(s + side * (0.12 - width / 2), width / 2, wall.length - width / 2))
        x, y = wall.at(middle)
        room.place(curtain(rng, width, top - foot, cloth), (x, y, foot, wall.yaw))


def _place(room: Room, k: int, o: _Opening, item: Item) -> None:
    x, y = room.walls[k].at((o.s0 + o.s1) / 2)
    room.place(item, (x, y, o.z0, room.walls[k].yaw), "window")
