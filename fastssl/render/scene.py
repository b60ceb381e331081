"""A room as data: meshes, materials, lights and a camera, in NumPy alone.

The world's frame is metres with Z up. The camera's frame is that of `fastssl.batch`: X right, Y down, Z forward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastssl.batch import Intrinsics


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mesh:
    """Triangles with shading normals. Vertices are shared only where the surface is smooth."""

    points: NDArray[np.float64]
    """(V, 3) metres."""
    normals: NDArray[np.float64]
    """(V, 3) unit vectors."""
    uv: NDArray[np.float64]
    """(V, 2) metres along the surface, v downwards in the texture."""
    faces: NDArray[np.int64]
    """(F, 3) vertex indices, counter-clockwise seen from the side that the normals point to."""

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Mesh:
        """The mesh, shifted by metres."""
        return replace(self, points=self.points + np.array([x, y, z]))

    def rotated(self, rotation: NDArray[np.float64]) -> Mesh:
        """The mesh under a (3, 3) rotation about the origin."""
        return replace(self, points=self.points @ rotation.T, normals=self.normals @ rotation.T)

    def turned(self, yaw: float) -> Mesh:
        """The mesh, turned by radians about the vertical, counter-clockwise seen from above."""
        cos, sin = np.cos(yaw), np.sin(yaw)
        return self.rotated(np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]))


def joined(meshes: list[Mesh]) -> Mesh:
    """One mesh of several, in their order."""
    starts = np.cumsum([0] + [len(mesh.points) for mesh in meshes[:-1]])
    return Mesh(
        points=np.concatenate([mesh.points for mesh in meshes]),
        normals=np.concatenate([mesh.normals for mesh in meshes]),
        uv=np.concatenate([mesh.uv for mesh in meshes]),
        faces=np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=True)]),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Material:
    """How a surface looks: a texture over it, and how it reflects."""

    texture: NDArray[np.float32]
    """(h, w, 3) linear reflectance in [0, 1]; row 0 at v = 0."""
    density: float
    """Texels per metre. A surface larger than the texture stretches it."""
    roughness: float = 1.0
    """0.05 is a mirror's, 1 is matt."""
    metallic: float = 0.0
    """0 is a plastic, 1 is a metal coloured by the texture."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A mesh in the world, with what it is made of and which object it belongs to."""

    mesh: Mesh
    material: Material
    instance: int
    """Number of the object as a person would count it; above 0."""
    radiance: tuple[float, float, float] | None = None
    """What a light emits on the side of its normals, linear RGB; then the material is not used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A pinhole camera of square images."""

    position: NDArray[np.float64]
    """(3,) metres in the world."""
    rotation: NDArray[np.float64]
    """(3, 3); its rows are the camera's right, down and forward directions in the world."""
    fov: float
    """Horizontal field of view in degrees."""

    @classmethod
    def looking(
        cls, position: ArrayLike, *, yaw: float, pitch: float = 0.0, roll: float = 0.0, fov: float = 60.0
    ) -> Camera:
        """A camera that looks along `yaw` (radians from X towards Y), up by `pitch`, and rolled by `roll`."""
        forward = np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        down = np.cross(forward, right)
        rolled_right = np.cos(roll) * right + np.sin(roll) * down
        rotation = np.stack([rolled_right, np.cross(forward, rolled_right), forward])
        return cls(position=np.asarray(position, dtype=np.float64), rotation=rotation, fov=fov)

    def intrinsics(self, size: int) -> Intrinsics:
        """The pinhole camera of an image of `size` by `size` pixels."""
        focal = size / 2 / np.tan(np.radians(self.fov) / 2)
        return Intrinsics(fx=focal, fy=focal, cx=size / 2, cy=size / 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Everything that a picture and its labels depend on."""

    parts: tuple[Part, ...]
    camera: Camera
    exposure: float = 0.0
    """Stops above or below what automatic exposure chooses."""

    @cached_property
    def mesh(self) -> Mesh:
        """All parts as one mesh, in their order."""
        return joined([part.mesh for part in self.parts])

    @cached_property
    def instance(self) -> NDArray[np.int32]:
        """(F,) the object that each face of `mesh` belongs to."""
        counts = [len(part.mesh.faces) for part in self.parts]
        return np.repeat(np.array([part.instance for part in self.parts], dtype=np.int32), counts)
