"""Where a photographer would stand: camera poses scored by what they see, without rendering."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssl.geometry import pixel_rays
from fastssl.render.layout import Room
from fastssl.render.scene import Camera

_CANDIDATES = 32
_RAYS = 20
"""Rays along each side of the coarse view that a candidate is scored by."""


def choose_camera(room: Room) -> Camera:
    """The best of some random poses at human heights inside the room and outside everything that stands in it."""
    boxes = np.stack(room.bounds)
    best, best_score = None, -np.inf
    for _ in range(_CANDIDATES):
        camera = _candidate(room, boxes)
        if camera is None:
            continue
        score = _score(room, boxes, camera)
        if score > best_score:
            best, best_score = camera, score
    if best is None:
        middle = (room.width / 2, room.depth / 2, min(1.6, room.height - 0.3))
        return Camera.looking(middle, yaw=float(room.rng.uniform(0, 2 * np.pi)), fov=75.0)
    return best


def _candidate(room: Room, boxes: NDArray[np.float64]) -> Camera | None:
    """A random pose that looks towards some thing, or None where the camera would stand inside another."""
    rng = room.rng
    height = rng.uniform(0.5, 1.0) if rng.random() < 0.15 else float(np.clip(rng.normal(1.45, 0.2), 1.0, 2.0))
    position = np.array([rng.uniform(0.2, room.width - 0.2), rng.uniform(0.2, room.depth - 0.2), height])
    if np.any(np.all((boxes[:, 0] - 0.3 < position) & (position < boxes[:, 1] + 0.3), axis=1)):
        return None
    target = boxes[rng.integers(len(boxes))].mean(axis=0) + rng.normal(0, 0.3, 3)
    ahead = target - position
    distance = float(np.hypot(ahead[0], ahead[1]))
    pitch = float(np.clip(np.arctan2(ahead[2] * 0.8, distance), -0.5, 0.2))
    yaw = float(np.arctan2(ahead[1], ahead[0]))
    return Camera.looking(
        position, yaw=yaw, pitch=pitch, roll=float(rng.normal(0, 0.02)), fov=float(rng.uniform(48, 82))
    )


def _score(room: Room, boxes: NDArray[np.float64], camera: Camera) -> float:
    """More things in view are better; one that fills the picture, or a bare wall close by, is worse."""
    rays = pixel_rays(camera.intrinsics(_RAYS), _RAYS, _RAYS).reshape(-1, 3) @ camera.rotation
    with np.errstate(divide="ignore"):
        inverse = 1 / rays[:, None]
    near, far = ((boxes[None, :, k] - camera.position) * inverse for k in (0, 1))
    enter, leave = np.minimum(near, far).max(axis=2), np.maximum(near, far).min(axis=2)
    depth = np.where((enter < leave) & (enter > 0), enter, np.inf)
    corners = np.array([[0.0, 0.0, 0.0], [room.width, room.depth, room.height]])
    wall = np.maximum(*((corner - camera.position) * inverse[:, 0] for corner in corners)).min(axis=1)
    seen = np.where(depth.min(axis=1) < wall - 1e-6, depth.argmin(axis=1), -1)
    fraction = np.bincount(seen + 1, minlength=len(boxes) + 1)[1:] / len(seen)
    distance = np.minimum(depth.min(axis=1), wall)
    return float(
        np.sqrt(np.minimum(fraction, 0.06)).sum()
        + 2 * fraction.sum()
        - 4 * max(0.0, fraction.max() - 0.35)
        - 3 * np.mean(distance < 0.7)
        - 2 * np.mean((seen < 0) & (distance < 1.2))
    )
