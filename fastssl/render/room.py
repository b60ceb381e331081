"""A furnished room from (seed, index): what the project's synthetic images show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastssl.render import clutter, furniture, textures
from fastssl.render.furniture import Item, Maker, Top
from fastssl.render.layout import LightKind, Pose, Radiance, Room
from fastssl.render.materials import Style
from fastssl.render.scene import Scene
from fastssl.render.shapes import box
from fastssl.render.shell import build_shell
from fastssl.render.textures import Rng
from fastssl.render.view import choose_camera

_Plan = tuple[tuple[Maker, ...], tuple[Maker, ...], tuple[Maker, ...]]
_PLANS: tuple[_Plan, ...] = (
    # what comes first, what else stands at walls, what stands anywhere
    (
        (furniture.sofa, furniture.coffee_table),
        (furniture.bookcase, furniture.dresser, furniture.armchair, furniture.floor_lamp, furniture.side_table),
        (furniture.armchair, furniture.plant, furniture.stool, furniture.sculpture, furniture.coffee_table),
    ),
    (
        (furniture.bed,),
        (
            furniture.wardrobe,
            furniture.dresser,
            furniture.side_table,
            furniture.desk,
            furniture.bookcase,
            furniture.ladder,
        ),
        (furniture.chair, furniture.stool, furniture.armchair, furniture.plant, furniture.floor_lamp),
    ),
    (
        (furniture.desk,),
        (furniture.bookcase, furniture.bookcase, furniture.dresser, furniture.desk, furniture.wardrobe),
        (furniture.chair, furniture.chair, furniture.plant, furniture.table, furniture.floor_lamp, furniture.stool),
    ),
    (
        (furniture.table,),
        (furniture.dresser, furniture.counter, furniture.bookcase, furniture.fridge, furniture.floor_lamp),
        (furniture.chair, furniture.plant, furniture.stool, furniture.sculpture),
    ),
    (
        (furniture.counter, furniture.fridge),
        (furniture.counter, furniture.dresser, furniture.wardrobe, furniture.bookcase),
        (furniture.table, furniture.stool, furniture.chair, furniture.plant),
    ),
    (
        (furniture.sculpture, furniture.sculpture),
        (furniture.bookcase, furniture.dresser, furniture.sofa, furniture.ladder, furniture.wardrobe, furniture.bed),
        (furniture.sculpture, furniture.chair, furniture.stool, furniture.plant, furniture.table, furniture.armchair),
    ),
)
_CENTRAL = (furniture.table, furniture.coffee_table, furniture.sculpture)


def build_room(seed: int, index: int) -> Scene:
    """The room of this seed and index: the same for the same two numbers, wherever and whenever it is built."""
    rng = np.random.default_rng([seed, index])
    style = Style(rng)
    width, depth = np.sort(rng.uniform(2.6, rng.choice([5.0, 6.0, 8.0]), 2))[:: rng.choice([-1, 1])]
    windows = int(rng.choice([0, 1, 1, 2, 2, 3]))
    room = Room(
        rng=rng,
        style=style,
        width=float(width),
        depth=float(depth),
        height=float(rng.uniform(2.3, 3.3)),
        lights=_lights(rng, windows),
    )
    build_shell(room, windows=windows, doors=int(rng.integers(0, 3)))
    _furnish(room)
    _hang(room)
    _strew(room)
    if all(part.radiance is None for part in room.parts):  # the lamps that were to be lit found no place to stand
        room.lights["ceiling"] = _ceiling_light(rng)
        _hang_ceiling_lights(room)
    return Scene(parts=tuple(room.parts), camera=choose_camera(room), exposure=float(rng.normal(0, 0.3)))


def _lights(rng: Rng, windows: int) -> dict[LightKind, Radiance]:
    """Which lights are on, and their colours: daylight from blue to golden, lamps from warm to neutral."""
    lights: dict[LightKind, Radiance] = {}
    daylight, lamplight = windows > 0 and rng.random() < 0.8, rng.random() < 0.5
    if daylight:
        lights["window"] = _tinted(rng, rng.uniform(6, 14), rng.uniform(-0.25, 0.35))
    if lamplight:
        lights["lamp"] = _tinted(rng, rng.uniform(8, 20), rng.uniform(-0.5, -0.1))
    if not (daylight or lamplight) or rng.random() < 0.5:
        lights["ceiling"] = _ceiling_light(rng)
    return lights


def _ceiling_light(rng: Rng) -> Radiance:
    return _tinted(rng, rng.uniform(20, 45), rng.uniform(-0.4, 0.1))


def _tinted(rng: Rng, strength: float, coolness: float) -> Radiance:
    return strength * (1 - 0.6 * coolness), strength, strength * (1 + coolness)


def _furnish(room: Room) -> None:
    rng, style = room.rng, room.style
    first, at_walls, anywhere = _PLANS[rng.integers(len(_PLANS))]
    _hang_ceiling_lights(room)
    if rng.random() < 0.55:
        _lay_rug(room)
    for maker in first:
        item = maker(rng, style)
        if maker in _CENTRAL:
            x, y = room.width * rng.uniform(0.35, 0.65), room.depth * rng.uniform(0.35, 0.65)
            pose = (x, y, 0.0, float(rng.integers(2) * np.pi / 2 + rng.normal(0, 0.05)))
            if room.stand(item, pose) and maker is furniture.table:
                _seat(room, item, pose, (-1, 1))
        else:
            at_wall = room.stand_at_wall(item)
            if at_wall is not None and maker is furniture.desk:
                _seat(room, item, at_wall, (1,))
    area = room.width * room.depth
    for _ in range(round(area * rng.uniform(0.3, 0.6))):
        room.stand_at_wall(_draw(room, at_walls))
    for _ in range(round(area * rng.uniform(0.15, 0.4))):
        room.stand_anywhere(_draw(room, anywhere))


def _draw(room: Room, makers: Sequence[Maker]) -> Item:
    return makers[int(room.rng.integers(len(makers)))](room.rng, room.style)


def _hang_ceiling_lights(room: Room) -> None:
    rng = room.rng
    lamp = _draw(room, (clutter.pendant, clutter.ceiling_panel))
    count = int(rng.integers(1, 4))
    y = room.depth * rng.uniform(0.35, 0.65)
    for k in range(count):
        room.place(lamp, (room.width * (k + 0.5) / count, y, room.height, 0.0), "ceiling")


def _lay_rug(room: Room) -> None:
    rng = room.rng
    width, depth = rng.uniform(1.2, max(1.3, 0.7 * room.width)), rng.uniform(0.9, max(1.0, 0.7 * room.depth))
    cloth = room.style.surface(textures.RUGS, (width, depth), roughness=(0.9, 1.0), texels=320)
    x, y = (side / 2 + rng.normal(0, 0.2) for side in (room.width, room.depth))
    room.place(Item().add(cloth, box(width, depth, 0.012)), (x, y, 0.0, rng.normal(0, 0.1)))


def _seat(room: Room, item: Item, pose: Pose, sides: Sequence[int]) -> None:
    """Draws chairs up to a table or desk, at the given sides along its Y."""
    rng = room.rng
    seat = furniture.chair(rng, room.style)
    x, y, _, yaw = pose
    _, (half_x, half_y, _) = item.bounds()
    row = (-0.45 * half_x, 0.45 * half_x) if half_x > 0.6 and len(sides) > 1 else (0.0,)
    for side in sides:
        for along in row:
            if rng.random() < 0.12:
                continue
            out = side * (half_y + rng.uniform(0.0, 0.35))
            a = x + np.cos(yaw) * along - np.sin(yaw) * out
            b = y + np.sin(yaw) * along + np.cos(yaw) * out
            if 0.3 < a < room.width - 0.3 and 0.3 < b < room.depth - 0.3:
                room.place(seat, (a, b, 0.0, yaw + (0.0 if side < 0 else np.pi) + rng.normal(0, 0.2)))
                room.taken.append((a - 0.25, b - 0.25, a + 0.25, b + 0.25))


def _hang(room: Room) -> None:
    """Pictures, clocks and shelves on the walls."""
    for _ in range(int(room.rng.integers(2, 12))):
        room.hang(_draw(room, clutter.ON_WALLS), 1.0, 1.6)


def _strew(room: Room) -> None:
    """Small things on everything that can carry them, and on the floor."""
    rng = room.rng
    fullness = rng.uniform(0.3, 1.0)
    for top, pose in list(room.tops):
        if rng.random() < fullness:
            _fill(room, top, pose, fullness)
    for _ in range(int(rng.integers(0, 8))):
        room.stand_anywhere(_draw(room, clutter.ON_FLOORS))


def _fill(room: Room, top: Top, pose: Pose, fullness: float) -> None:
    """Lays things on a top without overlap, in a row where it is narrow."""
    rng = room.rng
    shelf = top.width > 2.2 * top.depth and top.clearance < 0.6
    makers = (
        clutter.ON_SHELVES if shelf else clutter.ON_SEATS if top.z < 0.62 and top.width > 0.8 else clutter.ON_TABLES
    )
    edge = -top.width / 2 + 0.02
    used: list[tuple[float, float, float]] = []
    for _ in range(int(rng.integers(3, 26) if shelf else rng.integers(1, 6) * fullness + 1)):
        item = _draw(room, makers).fitted(0.9 * top.width, 0.9 * top.depth, 0.95 * top.clearance)
        low, high = item.bounds()
        radius = float(max(-low[:2].min(), high[:2].max()))
        if shelf:
            x, y = edge - float(low[0]), float(rng.uniform(-0.05, 0.0)) * top.depth
            edge = x + float(high[0]) + float(rng.choice([0.002, 0.002, 0.05]))
            if edge > top.width / 2:
                return
        else:
            x, y = (float(rng.uniform(-1, 1)) * max(0.0, side / 2 - radius) for side in (top.width, top.depth))
            if any(np.hypot(x - a, y - b) < radius + r for a, b, r in used):
                continue
            used.append((x, y, radius))
        turn = 0.0 if shelf else float(rng.normal(0, 0.5))
        x0, y0, z0, yaw = pose
        at_x = x0 + np.cos(yaw) * (top.x + x) - np.sin(yaw) * (top.y + y)
        at_y = y0 + np.sin(yaw) * (top.x + x) + np.cos(yaw) * (top.y + y)
        room.place(item, (at_x, at_y, z0 + top.z, yaw + turn))
