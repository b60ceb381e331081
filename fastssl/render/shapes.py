"""The solids and sheets that furniture is made of. All stand on z = 0, centred on the vertical axis, in metres."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssl.render.scene import Mesh, joined


def quad(corner: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64]) -> Mesh:
    """A parallelogram: texture runs along the edges `u` and `v` from `corner`; it faces v x u."""
    points = np.stack([corner, corner + v, corner + u + v, corner + u])
    normal = np.cross(v, u)
    width, height = np.linalg.norm(u), np.linalg.norm(v)
    return Mesh(
        points=points,
        normals=np.tile(normal / np.linalg.norm(normal), (4, 1)),
        uv=np.array([[0, 0], [0, height], [width, height], [width, 0]]),
        faces=np.array([[0, 1, 2], [0, 2, 3]]),
    )


def box(width: float, depth: float, height: float) -> Mesh:
    """A cuboid of `width` along X, `depth` along Y."""
    size = np.array([width, depth, height])
    uv = _UNIT_BOX.uv.reshape(6, 4, 2) * np.stack([size[_BOX_U], size[_BOX_V]], axis=-1)[:, None]
    points = _UNIT_BOX.points * size
    return Mesh(points=points, normals=_UNIT_BOX.normals, uv=uv.reshape(24, 2), faces=_UNIT_BOX.faces)


def sheet(points: NDArray[np.float64]) -> Mesh:
    """A smooth surface through a (rows, columns, 3) grid of points; it faces columns x rows."""
    normals = np.cross(np.gradient(points, axis=1), np.gradient(points, axis=0))
    return _grid(points, normals)


def lathe(profile: list[tuple[float, float]], *, smooth: bool = False) -> Mesh:
    """The surface that (radius, height) points sweep round the vertical axis; going up, it faces outwards."""
    angle = np.linspace(0, 2 * np.pi, _corners(max(radius for radius, _ in profile)) + 1)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    line = np.array(profile, dtype=np.float64)
    if smooth:
        return _turned_strip(line, np.gradient(line, axis=0), circle)
    pairs = [line[k : k + 2] for k in range(len(line) - 1)]
    return joined([_turned_strip(pair, np.tile(pair[1] - pair[0], (2, 1)), circle) for pair in pairs])


def cylinder(radius: float, height: float) -> Mesh:
    """A closed upright cylinder."""
    return lathe([(0, 0), (radius, 0), (radius, height), (0, height)])


def ball(radius: float) -> Mesh:
    """A sphere that touches the floor."""
    return cushion(2 * radius, 2 * radius, 2 * radius, softness=1.0)


def rod(start: tuple[float, float, float], end: tuple[float, float, float], radius: float, *, tip: float = 1.0) -> Mesh:
    """A closed straight rod between two points, its end `tip` times as thick as its start."""
    base, axis = np.array(start), np.array(end) - np.array(start)
    length = float(np.linalg.norm(axis))
    forward = axis / length
    side = np.cross(forward, [1.0, 0.0, 0.0] if abs(forward[0]) < 0.9 else [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    rotation = np.stack([side, np.cross(forward, side), forward], axis=1)
    mesh = lathe([(0, 0), (radius, 0), (radius * tip, length), (0, length)])
    return mesh.rotated(rotation).moved(*base)


def ring(radius: float, thickness: float) -> Mesh:
    """A torus lying on the floor: `radius` to the middle of its tube, `thickness` across the tube."""
    around, across = (np.linspace(0, 2 * np.pi, _corners(r) + 1) for r in (radius, thickness))
    out = np.stack([np.cos(around), np.sin(around), np.zeros_like(around)], axis=-1)
    normals = np.cos(across)[:, None, None] * out + np.sin(across)[:, None, None] * np.array([0.0, 0.0, 1.0])
    return _grid(radius * out + thickness / 2 * normals, normals).moved(z=thickness / 2)


def cushion(width: float, depth: float, height: float, *, softness: float = 0.5) -> Mesh:
    """A rounded block: a superellipsoid, nearly a box at softness 0.15, an ellipsoid at 1."""
    corners = _corners(max(width, depth, height) / 2)
    polar = _spread(np.linspace(-np.pi / 2, np.pi / 2, corners // 2 + 1), softness)[:, None]
    around = _spread(np.linspace(0, 2 * np.pi, corners + 1), softness)[None, :]

    def surface(exponent: float) -> NDArray[np.float64]:
        level = _power(np.cos(polar), exponent)
        x, y = level * _power(np.cos(around), exponent), level * _power(np.sin(around), exponent)
        return np.stack(np.broadcast_arrays(x, y, _power(np.sin(polar), exponent)), axis=-1)

    half = np.array([width, depth, height]) / 2
    return _grid(surface(softness) * half, surface(2 - softness) / half).moved(z=height / 2)


def _spread(angle: NDArray[np.float64], softness: float) -> NDArray[np.float64]:
    """Parameters of the points seen from the middle under these angles; else all would crowd at the corners."""
    return np.arctan2(_power(np.sin(angle), 1 / softness), _power(np.cos(angle), 1 / softness))


def _power(x: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    power: NDArray[np.float64] = np.sign(x) * np.abs(x) ** exponent
    return power


def _turned_strip(line: NDArray[np.float64], step: NDArray[np.float64], circle: NDArray[np.float64]) -> Mesh:
    points = np.empty((len(line), len(circle), 3))
    points[..., :2] = line[:, None, :1] * circle
    points[..., 2] = line[:, None, 1]
    normals = np.empty_like(points)
    normals[..., :2] = step[:, None, 1:] * circle
    normals[..., 2] = -step[:, None, 0]
    return _grid(points, normals)


def _grid(points: NDArray[np.float64], normals: NDArray[np.float64]) -> Mesh:
    """Two triangles per cell of a (rows, columns, 3) grid; texture follows the lengths along rows and columns."""
    rows, columns = points.shape[:2]
    down = np.cumsum(np.linalg.norm(np.diff(points, axis=0, prepend=points[:1]), axis=-1), axis=0).mean(axis=1)
    along = np.cumsum(np.linalg.norm(np.diff(points, axis=1, prepend=points[:, :1]), axis=-1), axis=1).max(axis=0)
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], axis=-1).reshape(-1, 3), np.stack([a, c, d], axis=-1).reshape(-1, 3)])
    return Mesh(
        points=points.reshape(-1, 3),
        normals=(normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)).reshape(-1, 3),
        uv=np.stack(np.broadcast_arrays(along[None, :], (down[-1] - down)[:, None]), axis=-1).reshape(-1, 2),
        faces=faces,
    )


def _corners(radius: float) -> int:
    """Corners of a circle: enough for a smooth outline in a picture of a few hundred pixels."""
    return 8 * int(np.clip(round(1 + 7.5 * radius), 1, 5))


def _unit_box() -> Mesh:
    """The cube above the floor's unit square, side by side in the order of `_BOX_U`; v points down or to the back."""
    x, y, z = np.eye(3)
    sides = ((x, y, -z), (-x, -y, -z), (y, -x, -z), (-y, x, -z), (z, x, -y), (-z, x, y))
    return joined([quad((normal - u - v) / 2, u, v) for normal, u, v in sides]).moved(z=0.5)


_BOX_U = np.array([1, 1, 0, 0, 0, 0])
"""Axis that u follows on each side of a box."""
_BOX_V = np.array([2, 2, 2, 2, 1, 1])
_UNIT_BOX = _unit_box()
