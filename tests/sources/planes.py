"""A room corner with a panel before it, known in closed form: what a source must recover from its dataset's files.

The camera looks down into the corner where a frontal wall, the floor and a side wall meet, from a room that is turned
against it in all three angles, so that no plane is parallel to the image or seen edge on. The corner is laid where a
given camera sees it at 68 % of the width and 60 % of the height, which makes the same picture for any camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastssl.batch import Intrinsics, Record
from fastssl.geometry import edge_of
from fastssl.shards import Manifest, Source, pack, read_samples

# Wall and floor, and wall and panel, differ by one; floor and side wall agree in their low bytes, wall, floor and panel
# in their high ones.
PANEL, WALL, FLOOR, SIDE_WALL = 299, 300, 301, 45
IDENTITIES = (PANEL, WALL, FLOOR, SIDE_WALL)

_CORNER_AT = (0.68, 0.60)
_CORNER_DEPTH = 4.0
_PANEL_AT = (0.30, 0.42)
_PANEL_DEPTH = 2.2
_YAW, _PITCH, _ROLL = np.radians([22.0, 20.0, 4.0])


@dataclass(frozen=True, eq=False)
class PlaneScene:
    """What the camera sees, at the pixels' centres (index + 0.5); X right, Y down, Z forward."""

    camera: Intrinsics
    z: NDArray[np.float64]
    """(H, W) planar depth in metres."""
    ray_length: NDArray[np.float64]
    """(H, W) distance from the camera's centre in metres."""
    normal: NDArray[np.float64]
    """(H, W, 3) unit vectors that face the camera."""
    instance: NDArray[np.int32]
    """(H, W), one of `IDENTITIES` each."""

    @cached_property
    def edge(self) -> NDArray[np.bool_]:
        """(H, W) pixels whose right or lower neighbour has another identity."""
        padded = np.pad(self.instance, ((0, 1), (0, 1)), mode="edge")
        here = padded[:-1, :-1]
        return (here != padded[:-1, 1:]) | (here != padded[1:, :-1])


def scene(camera: Intrinsics, height: int, width: int, *, scale: float = 1.0) -> PlaneScene:
    """The scene as this camera sees it; with `scale` 1 it is 1.5 to 6 m away, and `scale` enlarges the whole room."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = _ray(camera, columns, rows)
    corner = _ray(camera, _CORNER_AT[0] * width, _CORNER_AT[1] * height) * _CORNER_DEPTH
    planes = {  # identity: normal towards the camera, a point on it
        WALL: (_ROOM @ [0, 0, -1], corner),
        FLOOR: (_ROOM @ [0, -1, 0], corner),
        SIDE_WALL: (_ROOM @ [-1, 0, 0], corner),
        PANEL: _panel(camera, height, width),
    }
    depths = {identity: (normal @ point) / (rays @ normal) for identity, (normal, point) in planes.items()}
    depths = {identity: np.where(depth > 0, depth, np.inf) for identity, depth in depths.items()}
    u, v = columns / width, rows / height
    on_panel = (np.abs(u - _PANEL_AT[0] + 0.1 * (v - 0.5)) < 0.17) & (np.abs(v - _PANEL_AT[1] - 0.15 * (u - 0.5)) < 0.2)
    depths[PANEL][~on_panel] = np.inf
    nearest = np.argmin(np.stack(list(depths.values())), axis=0)
    z = scale * np.min(np.stack(list(depths.values())), axis=0)
    assert np.isfinite(z).all(), "the camera sees past the room: its field of view is too wide"
    return PlaneScene(
        camera=camera,
        z=z,
        ray_length=z * np.linalg.norm(rays, axis=2),
        normal=np.stack([normal for normal, _ in planes.values()])[nearest],
        instance=np.array(list(planes), np.int32)[nearest],
    )


def wall(camera: Intrinsics, height: int, width: int, distance: float) -> PlaneScene:
    """A wall alone, turned by 20 degrees about the vertical, which the optical axis meets at this many metres."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = _ray(camera, columns, rows)
    normal = np.array([np.sin(np.radians(20)), 0.0, -np.cos(np.radians(20))])
    z = normal[2] * distance / (rays @ normal)
    assert z.min() > 0, "the camera sees past the wall's horizon"
    return PlaneScene(
        camera=camera,
        z=z,
        ray_length=z * np.linalg.norm(rays, axis=2),
        normal=np.broadcast_to(normal, rays.shape),
        instance=np.full(z.shape, WALL, np.int32),
    )


def assert_wall(record: Record, wall: PlaneScene, *, mean: float = 0.5, p90: float = 2.0, known: float = 0.99) -> None:
    """Normals of a record are those of the wall, as well as its depth's steps allow.

    Args:
        mean, p90: degrees, of the errors of all normals that are known.
        known: smallest fraction of the pixels that must have a normal.
    """
    assert record.normal is not None
    has_normal = record.normal.any(axis=2)
    assert has_normal.mean() >= known, f"only {has_normal.mean():.3f} of the wall has a normal"
    errors = angles(record.normal, wall.normal)[has_normal]
    assert errors.mean() <= mean, f"normals are off by {errors.mean():.3f} degrees in the mean"
    assert np.quantile(errors, 0.9) <= p90, f"a tenth of the normals is off by {np.quantile(errors, 0.9):.3f} degrees"


def assert_matches(
    record: Record,
    scene: PlaneScene,
    *,
    depth_tolerance: float = 0.001,
    normal_degrees: float = 1.0,
    contours: bool = True,
    min_known: float = 0.9,
) -> None:
    """A record shows this scene, in the units and frames of `fastssl.batch`.

    Args:
        depth_tolerance: metres.
        normal_degrees: the largest error of any normal.
        contours: they must be exactly `scene.edge`.
        min_known: smallest fraction of the pixels that must have a depth, and a normal.
    """
    height, width = scene.z.shape
    assert record.image.shape == (height, width, 3)
    assert record.image.dtype == np.uint8
    assert record.camera is not None
    _assert_close_camera(record.camera, scene.camera)
    _assert_depth(record, scene, depth_tolerance, min_known)
    _assert_normal(record, scene, normal_degrees, min_known)
    if contours:
        assert np.array_equal(_edge(record), scene.edge), "contours are not where identities change"


def assert_packs(
    source: Source,
    scene: PlaneScene,
    out: Path,
    *,
    depth_tolerance: float = 0.001,
    normal_degrees: float = 1.0,
    min_known: float = 0.9,
) -> Manifest:
    """What comes back from shards of 32 x 32 pixels is this scene, for every sample, and its first reference is first.

    Args:
        depth_tolerance: metres by which the source may be off; packing adds half a millimetre.
        normal_degrees: by which the source may be off; packing adds 0.39 degrees.
        min_known: smallest fraction of pixels with a depth and a normal.
    """
    manifest = pack(source, out, size=32)
    rows, columns = (((np.arange(32) + 0.5) * side / 32).astype(int) for side in scene.z.shape)
    nearest = np.ix_(rows, columns)
    keys = []
    for sample in read_samples(out):
        keys.append(sample.key)
        assert sample.depth is not None
        assert sample.normal is not None
        assert sample.valid is not None
        assert sample.edge is not None
        assert sample.valid.mean() >= min_known
        assert np.abs(sample.depth - scene.z[nearest])[sample.valid].max() <= depth_tolerance + 0.0005001
        assert angles(sample.normal, scene.normal[nearest])[sample.valid].max() <= normal_degrees + 0.4
        assert sample.edge.any()
    assert keys == [source.key(reference) for reference in source.references()]
    assert len(keys) == manifest.samples
    assert (manifest.layout, manifest.domain, manifest.licence) == (source.layout, source.domain, source.licence)
    return manifest


def _edge(record: Record) -> NDArray[np.bool_]:
    if record.instance is None:
        assert record.edge is not None, "there are neither identities nor contours"
        assert record.edge.dtype == np.bool_
        return record.edge
    assert record.edge is None
    assert record.instance.dtype == np.int32
    return edge_of(record.instance)


def _assert_close_camera(camera: Intrinsics, expected: Intrinsics) -> None:
    for name in ("fx", "fy", "cx", "cy"):
        seen, right = getattr(camera, name), getattr(expected, name)
        assert abs(seen - right) < 1e-3 * max(1.0, abs(right)), f"{name} is {seen}, not {right}"


def _assert_depth(record: Record, scene: PlaneScene, tolerance: float, min_known: float) -> None:
    depth = record.depth
    assert depth is not None
    assert depth.dtype == np.float32
    assert depth.shape == scene.z.shape
    assert np.isfinite(depth).all()
    known = depth != 0
    assert known.mean() >= min_known, f"only {known.mean():.3f} of the pixels have a depth"
    worst = np.abs(depth - scene.z)[known].max()
    assert worst <= tolerance, f"depth is off by {worst:.4f} m"


def _assert_normal(record: Record, scene: PlaneScene, degrees: float, min_known: float) -> None:
    normal = record.normal
    assert normal is not None
    assert normal.dtype == np.float32
    assert normal.shape == scene.normal.shape
    assert np.isfinite(normal).all()
    known = normal.any(axis=2)
    assert known.mean() >= min_known, f"only {known.mean():.3f} of the pixels have a normal"
    assert np.abs(np.linalg.norm(normal, axis=2)[known] - 1).max() < 1e-3, "normals are not of unit length"
    worst = angles(normal, scene.normal)[known].max()
    assert worst <= degrees, f"a normal is off by {worst:.2f} degrees"
    columns, rows = np.meshgrid(np.arange(normal.shape[1]) + 0.5, np.arange(normal.shape[0]) + 0.5)
    assert ((normal * _ray(scene.camera, columns, rows)).sum(axis=2)[known] < 0).all(), "a normal faces away"


def angles(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """Angles between vectors along the last axis, in degrees; exact for small ones too."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    sine = np.linalg.norm(np.cross(one, other), axis=-1)
    return np.degrees(np.arctan2(sine, (one * other).sum(axis=-1)))


def _ray(camera: Intrinsics, column: ArrayLike, row: ArrayLike) -> NDArray[np.float64]:
    x, y = (np.asarray(column) - camera.cx) / camera.fx, (np.asarray(row) - camera.cy) / camera.fy
    return np.stack([x, y, np.ones_like(x)], axis=-1)


def _panel(camera: Intrinsics, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ray = _ray(camera, _PANEL_AT[0] * width, _PANEL_AT[1] * height)
    towards_camera = -ray / np.linalg.norm(ray)
    leaning = towards_camera + np.array([0.55, -0.35, 0.0])
    return leaning / np.linalg.norm(leaning), ray * _PANEL_DEPTH


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    one, other = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[[one, other], [one, other]] = np.cos(angle)
    matrix[one, other], matrix[other, one] = -np.sin(angle), np.sin(angle)
    return matrix


# From the room's axes (right, down, forward) to the camera's. The camera is turned right by yaw and down by pitch.
_ROOM = _rotation(2, _ROLL) @ _rotation(0, _PITCH) @ _rotation(1, -_YAW)
