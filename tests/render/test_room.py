from __future__ import annotations

import numpy as np
import pytest

from fastssl.render.room import build_room
from fastssl.render.scene import Camera, Scene

ROOMS = range(10)


@pytest.fixture(scope="module")
def rooms() -> list[Scene]:
    return [build_room(1, index) for index in ROOMS]


def test_the_same_numbers_give_the_same_room_and_others_another(rooms: list[Scene]) -> None:
    again = build_room(1, 3)
    assert np.array_equal(again.mesh.points, rooms[3].mesh.points)
    assert np.array_equal(again.camera.rotation, rooms[3].camera.rotation)
    assert all(
        np.array_equal(a.material.texture, b.material.texture) and a.radiance == b.radiance
        for a, b in zip(again.parts, rooms[3].parts, strict=True)
    )
    shapes = {scene.mesh.points.tobytes() for scene in (*rooms, build_room(2, 3))}
    assert len(shapes) == len(rooms) + 1


def test_rooms_are_furnished_and_lit(rooms: list[Scene]) -> None:
    for scene in rooms:
        instances = {part.instance for part in scene.parts}
        assert instances == set(range(1, len(instances) + 1))
        assert len(instances) > 12
        lights = {part.radiance for part in scene.parts if part.radiance is not None}
        assert 1 <= len(lights) <= 3
    assert len({round(float(np.ptp(scene.mesh.points[:, 2])), 3) for scene in rooms}) == len(rooms)


def test_the_camera_stands_upright_in_free_space(rooms: list[Scene]) -> None:
    for scene in rooms:
        camera = scene.camera
        assert np.allclose(camera.rotation @ camera.rotation.T, np.eye(3))
        assert np.linalg.det(camera.rotation) == pytest.approx(1)
        assert camera.rotation[1, 2] < -0.7  # down is down
        shell = scene.parts[0].mesh.points  # the floor
        assert (shell.min(axis=0)[:2] < camera.position[:2]).all()
        assert (camera.position[:2] < shell.max(axis=0)[:2]).all()
        for instance in range(7, scene.instance.max() + 1):  # the first six are floor, ceiling and walls
            points = scene.mesh.points[scene.mesh.faces[scene.instance == instance]].reshape(-1, 3)
            outside = np.maximum(points.min(axis=0) - camera.position, camera.position - points.max(axis=0))
            assert outside.max() > 0.29
        assert 0.4 < camera.position[2] < 2.1


def test_meshes_are_sound(rooms: list[Scene]) -> None:
    """Lights shine, and shading is smooth, on the side of the normals: faces must turn the same way."""
    for scene in rooms:
        for part in scene.parts:
            mesh = part.mesh
            assert np.isfinite(mesh.uv).all()
            assert np.abs(np.linalg.norm(mesh.normals, axis=1) - 1).max() < 1e-6
            a, b, c = (mesh.points[mesh.faces[:, k]] for k in range(3))
            flat = np.cross(b - a, c - a)
            side = np.einsum("fc,fc->f", flat, mesh.normals[mesh.faces].sum(axis=1))
            assert (side > -1e-9).mean() > 0.98


def test_a_camera_looks_where_it_is_told_to() -> None:
    level = Camera.looking((1, 2, 3), yaw=0.0, fov=90.0)
    assert np.allclose(level.rotation, [[0, -1, 0], [0, 0, -1], [1, 0, 0]])  # right, down, forward
    assert Camera.looking((0, 0, 0), yaw=np.pi / 2, pitch=-0.5).rotation[2] == pytest.approx(
        [0, np.cos(0.5), -np.sin(0.5)]
    )
    rolled = Camera.looking((0, 0, 0), yaw=0.0, roll=0.1)
    assert rolled.rotation[0, 2] < 0  # turned clockwise: its right side is lower
    assert level.intrinsics(200).fx == pytest.approx(100.0)
    assert level.intrinsics(200).cx == 100.0
