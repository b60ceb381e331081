"""Where things stand: a room under construction, with what is taken on its floor and on its walls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastssl.render.furniture import Item, Top
from fastssl.render.materials import Style
from fastssl.render.scene import Material, Mesh, Part, joined
from fastssl.render.textures import Rng

LightKind: TypeAlias = Literal["window", "ceiling", "lamp"]
Radiance: TypeAlias = tuple[float, float, float]
Pose: TypeAlias = tuple[float, float, float, float]
"""x, y, z and yaw."""

_TRIES = 14
"""Places that are tried before a thing is left out."""


@dataclass(frozen=True, slots=True)
class Wall:
    """One of the four walls; `s` runs along it, from its right to its left end as seen from inside the room."""

    origin: tuple[float, float]
    yaw: float
    length: float

    def at(self, s: float, off: float = 0.0) -> tuple[float, float]:
        """The point of the floor `s` along the wall and `off` metres into the room."""
        cos, sin = float(np.cos(self.yaw)), float(np.sin(self.yaw))
        return self.origin[0] + s * cos - off * sin, self.origin[1] + s * sin + off * cos


@dataclass(eq=False)
class Room:
    """A box of a room that fills up: X from 0 to `width`, Y from 0 to `depth`, Z from 0 to `height`."""

    rng: Rng
    style: Style
    width: float
    depth: float
    height: float
    lights: dict[LightKind, Radiance]
    """What each kind of light emits; a kind that is missing is switched off."""
    parts: list[Part] = field(default_factory=list)
    bounds: list[NDArray[np.float64]] = field(default_factory=list)
    """(2, 3) lowest and highest corner of each thing inside the room, without walls, floor and ceiling."""
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    """x0, y0, x1, y1 of the floor that is taken."""
    hung: list[list[tuple[float, float, float, float]]] = field(default_factory=lambda: [[], [], [], []])
    """s0, s1, z0, z1 of what is taken on each wall."""
    tops: list[tuple[Top, Pose]] = field(default_factory=list)
    """What small things can be put on, with the pose of the thing that it belongs to."""
    instances: int = 0

    @property
    def walls(self) -> tuple[Wall, Wall, Wall, Wall]:
        """South, east, north and west."""
        return (
            Wall((0.0, 0.0), 0.0, self.width),
            Wall((self.width, 0.0), np.pi / 2, self.depth),
            Wall((self.width, self.depth), np.pi, self.width),
            Wall((0.0, self.depth), -np.pi / 2, self.depth),
        )

    def add_object(
        self, pieces: Sequence[tuple[Mesh, Material]], glow: Sequence[Mesh] = (), light: LightKind = "lamp"
    ) -> None:
        """Adds one instance; `glow` shines if `light` is on, and is opal glass, or at a window the night, if not."""
        self.instances += 1
        by_material: dict[int, tuple[Material, list[Mesh]]] = {}
        for mesh, material in pieces:
            by_material.setdefault(id(material), (material, []))[1].append(mesh)
        for material, meshes in by_material.values():
            self.parts.append(Part(mesh=joined(meshes), material=material, instance=self.instances))
        if glow:
            tone = 0.03 if light == "window" else 0.8
            off = Material(texture=np.full((2, 2, 3), tone, dtype=np.float32), density=2.0, roughness=0.3)
            radiance = self.lights.get(light)
            self.parts.append(Part(mesh=joined(list(glow)), material=off, instance=self.instances, radiance=radiance))

    def place(self, item: Item, pose: Pose, light: LightKind = "lamp") -> None:
        """Puts a thing into the room, wherever that is, and remembers its tops."""
        x, y, z, yaw = pose
        pieces = [(mesh.turned(yaw).moved(x, y, z), material) for mesh, material in item.pieces]
        glow = [mesh.turned(yaw).moved(x, y, z) for mesh in item.glow]
        self.add_object(pieces, glow, light)
        points = np.concatenate([mesh.points for mesh, _ in pieces] + [mesh.points for mesh in glow])
        self.bounds.append(np.stack([points.min(axis=0), points.max(axis=0)]))
        self.tops.extend((top, pose) for top in item.tops)

    def is_free(self, area: tuple[float, float, float, float]) -> bool:
        """The area lies inside the room and on no other."""
        x0, y0, x1, y1 = area
        inside = x0 >= 0 and y0 >= 0 and x1 <= self.width and y1 <= self.depth
        return inside and not any(x0 < c and a < x1 and y0 < d and b < y1 for a, b, c, d in self.taken)

    def stand(self, item: Item, pose: Pose, *, gap: float = 0.04) -> bool:
        """Stands a thing on the floor if there is room for it there."""
        area = _area(item, pose, gap)
        if not self.is_free(area):
            return False
        self.taken.append(area)
        self.place(item, pose)
        return True

    def stand_at_wall(self, item: Item) -> Pose | None:
        """Stands a thing with its back to a wall, below windows and beside doors; None if it fits nowhere."""
        low, high = item.bounds()
        half = float(max(-low[0], high[0]))
        for _ in range(_TRIES):
            k = int(self.rng.integers(4))
            wall = self.walls[k]
            if wall.length < 2 * half + 0.1:
                continue
            s = self.rng.uniform(half, wall.length - half)
            span = (s - half, s + half, 0.0, float(high[2]))
            x, y = wall.at(s, 0.03 - float(low[1]))
            pose = (x, y, 0.0, wall.yaw)
            if not self._overlaps(k, span) and self.stand(item, pose, gap=0.0):
                self.hung[k].append(span)
                return pose
        return None

    def stand_anywhere(self, item: Item) -> bool:
        """Stands a thing somewhere on the free floor, mostly square to the walls."""
        for _ in range(_TRIES):
            yaw = float(self.rng.integers(4) * np.pi / 2 + self.rng.normal(0, 0.2))
            x, y = self.rng.uniform(0.3, self.width - 0.3), self.rng.uniform(0.3, self.depth - 0.3)
            if self.stand(item, (x, y, 0.0, yaw)):
                return True
        return False

    def hang(self, item: Item, low: float, high: float) -> bool:
        """Hangs a thing on a wall, its foot between `low` and `high`."""
        corners = item.bounds()
        half, rise = float(corners[1, 0]), float(corners[1, 2])
        for _ in range(_TRIES):
            k = int(self.rng.integers(4))
            wall = self.walls[k]
            top = min(high, self.height - rise - 0.1)
            if wall.length < 2 * half + 0.2 or top < low:
                continue
            s, z = self.rng.uniform(half + 0.08, wall.length - half - 0.08), self.rng.uniform(low, top)
            span = (s - half, s + half, z, z + rise)
            if not self._overlaps(k, span):
                self.hung[k].append(span)
                x, y = wall.at(s)
                self.place(item, (x, y, z, wall.yaw))
                return True
        return False

    def _overlaps(self, k: int, span: tuple[float, float, float, float]) -> bool:
        s0, s1, z0, z1 = span
        return any(s0 < b and a < s1 and z0 < d and c < z1 for a, b, c, d in self.hung[k])


def _area(item: Item, pose: Pose, gap: float) -> tuple[float, float, float, float]:
    """The rectangle of floor, square to the walls, that a thing covers."""
    x, y, _, yaw = pose
    low, high = item.bounds()[:, :2]
    corners = np.array([[a, b] for a in (low[0], high[0]) for b in (low[1], high[1])])
    cos, sin = np.cos(yaw), np.sin(yaw)
    turned = corners @ np.array([[cos, sin], [-sin, cos]]) + [x, y]
    x0, y0 = turned.min(axis=0) - gap
    x1, y1 = turned.max(axis=0) + gap
    return float(x0), float(y0), float(x1), float(y1)
