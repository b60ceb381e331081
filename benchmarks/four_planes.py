"""Rooms with boxes and spheres as four-plane samples: photo-like RGB, depth, normals and instances.

Every plane is exact, because a room is cast analytically; the picture is that of a cheap camera (grain of the
materials, one lamp, sensor noise), so that its JPEG is as large as a photo's. The benchmarks pack and load these files.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastssl.batch import Intrinsics, Record
from fastssl.geometry import pixel_rays
from fastssl.shards import DomainName
from fastssl.sources.images import read_image, read_plane

JPEG_QUALITY = 95
CLUTTER = 300
"""Small things in a room. With these the PNGs of its planes are about as large, pixel for pixel, as those of rendered
rooms in the sample shards: 11 against 12 KB of normals, 14 against 16 KB of depth at 192 x 192."""
PLANES = ("rgb.jpg", "depth.png", "normal.png", "instance.png")

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Room:
    """One view of a furnished room."""

    depth: Array
    """(H, W) metres."""
    normal: Array
    """(H, W, 3) unit vectors in the camera's frame."""
    instance: Array
    """(H, W) identities: walls, floor, ceiling and every piece of furniture."""
    camera: Intrinsics
    position: Array
    """(H, W, 3) metres, in the room's frame."""
    to_room: Array
    """(3, 3) rotation from the camera's frame into the room's."""


def rotation(pitch: float, yaw: float) -> Array:
    cp, sp, cy, sy = np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    turn: Array = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return turn


def hit_box(origin: Array, rays: Array, half: Array, *, inside: bool) -> tuple[Array, Array]:
    """Ray parameter and normal where each ray enters (or, from inside, leaves) a box about zero."""
    with np.errstate(divide="ignore"):
        low, high = (-half - origin) / rays, (half - origin) / rays
    near, far = np.minimum(low, high), np.maximum(low, high)
    # Component by component, because NumPy reduces an axis of three slowly.
    enter = np.maximum(np.maximum(near[..., 0], near[..., 1]), near[..., 2])
    leave = np.minimum(np.minimum(far[..., 0], far[..., 1]), far[..., 2])
    at = leave if inside else np.where((enter < leave) & (enter > 1e-6), enter, np.inf)
    hit = np.isfinite(at)
    axis = (far[hit].argmin(-1) if inside else near[hit].argmax(-1))[:, None]
    facing = np.zeros((len(axis), 3))
    np.put_along_axis(facing, axis, -np.sign(np.take_along_axis(rays[hit], axis, -1)), -1)
    normal = np.zeros_like(rays)
    normal[hit] = facing
    return at, normal


def hit_sphere(origin: Array, rays: Array, radius: float) -> tuple[Array, Array]:
    a, b, c = (rays * rays).sum(-1), (rays * origin).sum(-1), (origin * origin).sum() - radius**2
    root = b * b - a * c
    at = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    at[at < 1e-6] = np.inf
    with np.errstate(invalid="ignore"):
        return at, (origin + rays * at[..., None]) / radius


def cast_room(seed: int, height: int, width: int, *, clutter: int = 0) -> Room:
    """A room with 15 to 40 pieces of furniture and `clutter` small things, seen from near a wall towards its middle."""
    rng = np.random.default_rng(seed)
    focal = rng.uniform(0.65, 0.95) * width
    camera = Intrinsics(fx=focal, fy=focal, cx=width / 2, cy=height / 2)
    towards = rng.uniform(0, 2 * np.pi)
    to_room = rotation(-rng.uniform(0, 0.45), towards + rng.uniform(-0.5, 0.5))
    rays = pixel_rays(camera, height, width) @ to_room.T
    room = np.array([rng.uniform(2, 3), 1.4, rng.uniform(2, 3)])
    eye = np.array([-0.8 * room[0] * np.sin(towards), -0.1, -0.8 * room[2] * np.cos(towards)])
    depth, normal = hit_box(eye, rays, room, inside=True)
    # Walls, floor and ceiling are objects of their own.
    instance = np.rint(normal @ [1, 2, 3]).astype(int)
    furniture = 10 + rng.integers(15, 40)
    for number in range(10, furniture + clutter):
        half = rng.uniform(0.05, 0.5, 3) * (1 if number < furniture else 0.4)
        lift = rng.choice([0, rng.uniform(0, 1.2)])
        centre = np.array([rng.uniform(-1, 1) * room[0], 1.4 - half[1] - lift, rng.uniform(-1, 1) * room[2]])
        if np.hypot(*(centre - eye)[[0, 2]]) < 0.9:
            continue
        turn = rotation(0, rng.choice([0, rng.uniform(0, np.pi)]))
        is_sphere = rng.random() < 0.3
        if number >= furniture:
            turn = turn @ rotation(rng.uniform(-0.5, 0.5), 0)
        seen = _window((centre - eye) @ to_room, float(np.linalg.norm(half)), camera, height, width)
        if is_sphere:
            at, facing = hit_sphere(eye - centre, rays[seen], half[1])
        else:
            at, facing = hit_box((eye - centre) @ turn, rays[seen] @ turn, half, inside=False)
            facing = facing @ turn.T
        nearer = at < depth[seen]
        depth[seen][nearer], instance[seen][nearer], normal[seen][nearer] = at[nearer], number, facing[nearer]
    position = eye + rays * depth[..., None]
    return Room(depth, normal @ to_room, instance, camera, position, to_room)


def _window(centre: Array, radius: float, camera: Intrinsics, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns that can see a sphere, its centre in the camera's frame."""
    nearest, farthest = centre[2] - radius, centre[2] + radius
    if farthest <= 0:
        return slice(0, 0), slice(0, 0)
    if nearest <= 0.05:
        return slice(0, height), slice(0, width)
    bounds = []
    for axis, focal, middle, side in ((1, camera.fy, camera.cy, height), (0, camera.fx, camera.cx, width)):
        low, high = centre[axis] - radius, centre[axis] + radius
        first = middle + focal * low / (nearest if low < 0 else farthest)
        last = middle + focal * high / (farthest if high < 0 else nearest)
        bounds.append(slice(*(int(np.clip(edge, 0, side)) for edge in (np.floor(first), np.ceil(last)))))
    return bounds[0], bounds[1]


def photograph(room: Room, seed: int) -> NDArray[np.uint8]:
    """The room's picture, (H, W, 3) RGB: patterned matt materials under one lamp, with grain and sensor noise."""
    rng = np.random.default_rng([seed, 1])
    material = room.instance + 3
    kinds = int(material.max()) + 1
    colour = rng.uniform(0.15, 0.9, (kinds, 3)).astype(np.float32)
    roughness = rng.uniform(0.02, 0.12, kinds).astype(np.float32)
    position = room.position.astype(np.float32)
    pattern = np.zeros(material.shape, np.float32)
    for octave in range(4):
        waves = (rng.normal(size=(kinds, 3)) * 3.0 * 2.2**octave).astype(np.float32)
        phase = rng.uniform(0, 2 * np.pi, kinds).astype(np.float32)
        strength = (rng.uniform(0, 0.35, kinds) / 1.5**octave).astype(np.float32)
        pattern += strength[material] * np.sin((waves[material] * position).sum(-1) + phase[material])
    pattern += roughness[material] * rng.standard_normal(material.shape, np.float32)
    lamp = np.array([rng.uniform(-1, 1), -1.2, rng.uniform(-1, 1)], np.float32)
    to_lamp = lamp - position
    distance = np.linalg.norm(to_lamp, axis=-1)
    facing = ((room.normal @ room.to_room.T).astype(np.float32) * to_lamp).sum(-1) / distance
    light = 0.3 + 1.2 * np.maximum(facing, 0) / (0.6 + 0.25 * distance**2)
    linear = colour[material] * (light * np.clip(1 + pattern, 0.2, 2))[..., None]
    values = 255 * np.clip(linear, 0, 1) ** (1 / 2.2) + 2 * rng.standard_normal(linear.shape, np.float32)
    picture: NDArray[np.uint8] = np.rint(values).clip(0, 255).astype(np.uint8)
    return picture


def write_four_planes(
    folder: Path, count: int, *, height: int = 240, width: int = 320, seed: int = 0, processes: int = 2
) -> None:
    """Write samples ``00000`` to ``count - 1``; those whose files are there already are kept.

    KEY_rgb.jpg       quality 95, 4:2:0
    KEY_depth.png     16-bit gray, millimetres
    KEY_normal.png    8-bit RGB, round(127.5 (n + 1)) in 1..255 per axis, (0, 0, 0) = not known
    KEY_instance.png  16-bit gray, identities
    KEY.json          width, height and camera (fx, fy, cx, cy); written last

    The bytes depend on seed and size alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = [key for key in map(key_of, range(count)) if not (folder / f"{key}.json").exists()]
    if processes == 1:
        for key in keys:
            _write(folder, key, seed + int(key), height, width)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(_write, folder, key, seed + int(key), height, width) for key in keys]
        for job in jobs:
            job.result()


def key_of(number: int) -> str:
    return f"{number:05d}"


class FourPlanesSource:
    """Such a folder, to be packed; the numbers of its planes are those of a shard.

    Args:
        samples: so many, of files that are used over and over; None = as many as there are.
    """

    layout: str = "four_planes"
    domain: DomainName = "synthetic"
    labelled: bool = True
    subset: str | None = None
    licence: str = "CC0-1.0"

    def __init__(self, path: Path, samples: int | None = None) -> None:
        self.path = path
        self._files = sum(1 for _ in path.glob("*.json"))
        self._samples = self._files if samples is None else samples

    def references(self) -> Iterator[str]:
        return map(key_of, range(self._samples))

    def key(self, reference: str) -> str:
        return reference

    def read(self, reference: str) -> Record:
        name = f"{self.path}/{key_of(int(reference) % self._files)}"
        image, depth, normal, instance = (Path(f"{name}_{plane}") for plane in PLANES)
        return Record(
            key=reference,
            image=read_image(image),
            depth=read_plane(depth, "I;16"),
            normal=read_plane(normal, "RGB"),
            instance=read_plane(instance, "I;16"),
            camera=Intrinsics(**json.loads(Path(f"{name}.json").read_bytes())["camera"]),
        )


def _write(folder: Path, key: str, seed: int, height: int, width: int) -> None:
    room = cast_room(seed, height, width, clutter=CLUTTER)
    planes = {
        "depth.png": np.rint(room.depth * 1000).astype(np.uint16),
        "normal.png": np.rint(127.5 * (room.normal + 1)).clip(1, 255).astype(np.uint8),
        "instance.png": (room.instance + 4).astype(np.uint16),
    }
    for name, plane in planes.items():
        Image.fromarray(plane).save(folder / f"{key}_{name}")
    Image.fromarray(photograph(room, seed)).save(folder / f"{key}_rgb.jpg", quality=JPEG_QUALITY, subsampling="4:2:0")
    described = {"width": width, "height": height, "camera": asdict(room.camera)}
    partial = folder / f"{key}.json.partial"
    partial.write_text(json.dumps(described), encoding="utf-8")
    partial.rename(folder / f"{key}.json")
