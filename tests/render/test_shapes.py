"""Closed solids against their volumes, and all surfaces against their own normals."""

from __future__ import annotations

from math import gamma

import numpy as np
import pytest

from fastssl.render.scene import Mesh, joined
from fastssl.render.shapes import ball, box, cushion, cylinder, lathe, quad, ring, rod, sheet


def superellipsoid(width: float, depth: float, height: float, softness: float) -> float:
    """Volume: a b c e^2 / 4 times B(e/2 + 1, e) B(e/2, e/2), for the sides a, b, c."""

    def beta(p: float, q: float) -> float:
        return gamma(p) * gamma(q) / gamma(p + q)

    return (
        width * depth * height / 4 * softness**2 * beta(softness / 2 + 1, softness) * beta(softness / 2, softness / 2)
    )


SOLIDS = {
    "box": (box(0.3, 0.5, 0.7), 0.3 * 0.5 * 0.7),
    "cylinder": (cylinder(0.4, 0.9), np.pi * 0.4**2 * 0.9),
    "ball": (ball(0.5), 4 / 3 * np.pi * 0.5**3),
    "ellipsoid": (cushion(0.6, 0.8, 1.0, softness=1.0), np.pi / 6 * 0.6 * 0.8 * 1.0),
    "cushion": (cushion(0.6, 0.8, 1.0, softness=0.4), superellipsoid(0.6, 0.8, 1.0, 0.4)),
    "nearly a box": (cushion(0.6, 0.8, 1.0, softness=0.1), superellipsoid(0.6, 0.8, 1.0, 0.1)),
    "spiky": (cushion(0.6, 0.8, 1.0, softness=1.5), superellipsoid(0.6, 0.8, 1.0, 1.5)),
    "cone": (lathe([(0, 0), (0.5, 0), (0, 0.8)]), np.pi * 0.5**2 * 0.8 / 3),
    "smooth spindle": (
        lathe([(float(0.5 * np.sin(t)), float(t)) for t in np.linspace(0, np.pi, 40)], smooth=True),
        np.pi**2 * 0.5**2 / 2,
    ),
    "ring": (ring(0.5, 0.3), 2 * np.pi**2 * 0.5 * 0.15**2),
    "rod": (rod((0.2, 0.1, 0.0), (1.0, -0.4, 0.9), 0.2), np.pi * 0.2**2 * float(np.sqrt(0.64 + 0.25 + 0.81))),
    "tapered rod": (rod((0, 0, 1.0), (0, 0, 0), 0.4, tip=0.5), np.pi / 3 * (0.4**2 + 0.4 * 0.2 + 0.2**2)),
}


def volume(mesh: Mesh) -> float:
    """By the divergence theorem: positive only if the faces go counter-clockwise seen from outside."""
    a, b, c = (mesh.points[mesh.faces[:, k]] for k in range(3))
    return float((a * np.cross(b, c)).sum() / 6)


@pytest.mark.parametrize("name", SOLIDS)
def test_volume(name: str) -> None:
    mesh, expected = SOLIDS[name]
    assert volume(mesh) == pytest.approx(expected, rel=1e-9 if name == "box" else 0.06)


@pytest.mark.parametrize("name", [*SOLIDS, "sheet", "quad"])
def test_normals_are_unit_and_on_the_side_of_the_faces(name: str) -> None:
    if name == "sheet":
        x, y = np.linspace(0, 2, 30), np.linspace(0, 1, 20)[:, None]
        mesh = sheet(np.stack(np.broadcast_arrays(x, y, 0.1 * np.sin(5 * x) + y), axis=-1))
    elif name == "quad":
        mesh = quad(np.zeros(3), np.array([1.0, 0, 0]), np.array([0, 0, -2.0]))
    else:
        mesh, _ = SOLIDS[name]
    assert np.allclose(np.linalg.norm(mesh.normals, axis=1), 1)
    a, b, c = (mesh.points[mesh.faces[:, k]] for k in range(3))
    flat = np.cross(b - a, c - a)
    area = np.linalg.norm(flat, axis=1)
    outward = np.einsum("fc,fkc->fk", flat, mesh.normals[mesh.faces])
    assert (outward > -1e-9)[area > 1e-9].all()


def test_a_ball_stands_on_the_floor_and_has_the_normals_of_a_sphere() -> None:
    mesh = ball(0.4)
    out = mesh.points - [0, 0, 0.4]
    assert mesh.points[:, 2].min() == pytest.approx(0)
    assert np.allclose(mesh.normals, out / 0.4)


@pytest.mark.parametrize("softness", [0.3, 0.6, 1.4])
def test_the_normals_of_a_cushion_are_the_gradient_of_its_equation(softness: float) -> None:
    """|x/a|^p + |y/b|^p + |z/c|^p = 1 with p = 2 / softness."""
    half = np.array([0.3, 0.4, 0.5])
    mesh = cushion(*(2 * half), softness=softness)
    x = (mesh.points - [0, 0, half[2]]) / half
    power = 2 / softness
    assert np.allclose((np.abs(x) ** power).sum(axis=1), 1)
    inner = (np.abs(x) > 0.05).all(axis=1)
    gradient = np.sign(x) * np.abs(x) ** (power - 1) / half
    gradient /= np.linalg.norm(gradient, axis=1, keepdims=True)
    assert inner.sum() > 50
    assert np.allclose(mesh.normals[inner], gradient[inner], atol=1e-6)


def test_texture_coordinates_are_metres() -> None:
    mesh = box(0.3, 0.5, 0.7)
    for face in mesh.faces:
        edges = np.linalg.norm(np.diff(mesh.points[face], axis=0), axis=1)
        assert np.allclose(np.linalg.norm(np.diff(mesh.uv[face], axis=0), axis=1), edges)
    spread = cylinder(0.3, 2.0).uv.max(axis=0)
    assert spread == pytest.approx([2 * np.pi * 0.3, 2.0], rel=0.02)


def test_joined_and_moved_meshes_keep_their_shapes() -> None:
    parts = [box(0.2, 0.2, 0.2), ball(0.3).moved(x=2.0), cylinder(0.1, 1.0).moved(y=-3.0)]
    whole = joined(parts).turned(1.0).moved(1, 2, 3)
    assert volume(whole) == pytest.approx(sum(volume(part) for part in parts))
    assert whole.points[:24].mean(axis=0) == pytest.approx([1, 2, 3.1])
