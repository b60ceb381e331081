"""Normals that a dataset stores: which of them count, and whether they are in the frame that they are taken for."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics
from fastssl.geometry import normals_from_depth, resized_camera

_Float = TypeVar("_Float", bound=np.floating)

# Of a squared length; the tolerance of the tools of SUNCG's renderings.
_TOLERANCE = 0.1
# Steps of the depth tilt a slope by the less, the wider the grid is; a few thousand pixels are enough for a mean.
_GRID = 128
# Metres between neighbouring values of the depth that Structured3D, PBRS and SUNCG store.
_STEP = 0.001


def unit_normals(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Vectors (H, W, 3) brought to unit length; zero where they are more than 5 % longer or shorter than that.

    Those are no normals: the code of "none", or a mix of the two sides of a border.
    """
    square = np.einsum("hwc,hwc->hw", vectors, vectors)
    scale = np.zeros_like(square)
    np.divide(1, np.sqrt(square), out=scale, where=np.abs(square - 1) <= _TOLERANCE)
    unit: NDArray[np.float32] = (vectors * scale[..., None]).astype(np.float32, copy=False)
    return unit


def facing_normals(normal: NDArray[np.float32], rays: NDArray[np.floating]) -> NDArray[np.float32]:
    """The normals (H, W, 3) that face the camera, zero for the others; `rays` are those of `pixel_rays`."""
    return np.where(np.einsum("hwc,hwc->hw", normal, rays)[..., None] < 0, normal, np.float32(0))


def stored_and_computed(
    normal: NDArray[_Float],
    depth: NDArray[np.float32],
    camera: Intrinsics,
    step: float | NDArray[np.floating] = _STEP,
) -> tuple[NDArray[_Float], NDArray[np.float32]]:
    """Stored normals, and those that `normals_from_depth` computes: (N, 3) both.

    They are taken at the pixels of a coarse grid where both are known. What the two agree in tells the frame of the
    stored ones.

    Args:
        normal: (H, W, 3), zero vector = not known.
        depth: (H, W) metres.
        camera: of both.
        step: metres between neighbouring values of the depth, or (H, W) of them; whole millimetres if not given.
    """
    stride = max(1, depth.shape[1] // _GRID)
    few = np.s_[stride // 2 :: stride, stride // 2 :: stride]
    coarse = resized_camera(camera, 1 / stride, 1 / stride)
    stored, computed = normal[few], normals_from_depth(depth[few], coarse, step=np.broadcast_to(step, depth.shape)[few])
    both = stored.any(axis=2) & computed.any(axis=2)
    return stored[both], computed[both]
