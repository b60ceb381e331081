"""Cameras, rays, normal frames and contours, in NumPy and in the units of `fastssl.batch`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics


def resized_camera(camera: Intrinsics, scale_x: float, scale_y: float) -> Intrinsics:
    """The camera of an image that was stretched by `scale_x` horizontally and `scale_y` vertically."""
    return Intrinsics(
        fx=camera.fx * scale_x,
        fy=camera.fy * scale_y,
        cx=camera.cx * scale_x,
        cy=camera.cy * scale_y,
    )


def pixel_rays(camera: Intrinsics, height: int, width: int) -> NDArray[np.float64]:
    """Viewing rays through the pixels' centres: (height, width, 3), with z = 1.

    A ray times the planar depth of its pixel is the point seen there, in metres.
    """
    x = (np.arange(width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(height) + 0.5 - camera.cy) / camera.fy
    rays = np.ones((height, width, 3))
    rays[..., 0] = x[None, :]
    rays[..., 1] = y[:, None]
    return rays


def contours(instance: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Contours of objects: (H, W), true where the identity differs from the right or lower neighbour's.

    Identities that differ by one are as different as any others, which an edge detector run on the raw
    numbers would miss.
    """
    edge = np.zeros(instance.shape, dtype=bool)
    edge[:, :-1] |= instance[:, :-1] != instance[:, 1:]
    edge[:-1, :] |= instance[:-1, :] != instance[1:, :]
    return edge
