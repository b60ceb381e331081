"""Labels against closed forms, and the picture against the labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rendered import SIZE, assert_same_labels, degrees_apart, labels_by

from fastssl.geometry import pixel_rays
from fastssl.render import trace
from fastssl.render.room import build_room
from fastssl.render.scene import Camera, Material, Mesh, Part, Scene
from fastssl.render.tracer import Picture, find_llvm

SPP = 4
GRAY = Material(texture=np.full((2, 2, 3), 0.5, dtype=np.float32), density=1.0)
CAMERA = Camera.looking((1.0, -2.0, 1.5), yaw=1.9, pitch=-0.2, roll=0.3, fov=65.0)


def in_world(camera: Camera, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of the camera's frame, in the world."""
    return points @ camera.rotation + camera.position


def seen(scene: Scene) -> Picture:
    return trace(scene, size=SIZE, spp=SPP)


def quad(camera: Camera, corners: list[list[float]]) -> Mesh:
    """Two triangles through four corners in the camera's frame, that face the camera or not."""
    points = in_world(camera, np.array(corners))
    normal = np.cross(points[1] - points[0], points[2] - points[0])
    return Mesh(
        points=points,
        normals=np.tile(normal / np.linalg.norm(normal), (4, 1)),
        uv=np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]),
        faces=np.array([[0, 1, 2], [0, 2, 3]]),
    )


def sphere(centre: NDArray[np.float64], radius: float) -> Mesh:
    """So finely divided that its facets lie within 0.02 mm of the sphere."""
    polar, around = np.meshgrid(np.linspace(0, np.pi, 257), np.linspace(0, 2 * np.pi, 513), indexing="ij")
    out = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=-1)
    index = np.arange(257 * 513).reshape(257, 513)
    a, b, c, d = (index[i : 256 + i, j : 512 + j].ravel() for i, j in ((0, 0), (1, 0), (1, 1), (0, 1)))
    return Mesh(
        points=centre + radius * out.reshape(-1, 3),
        normals=out.reshape(-1, 3),
        uv=np.zeros((257 * 513, 2)),
        faces=np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)]),
    )


@pytest.mark.parametrize("back", [False, True], ids=["front", "back"])
def test_depth_and_normal_of_a_tilted_plane_match_the_closed_form(back: bool) -> None:
    """The plane n . p = c in the camera's frame, which every ray r meets at depth c / (n . r)."""
    normal, c = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8]), -2.0
    corners = [[x, y, (c - normal[0] * x - normal[1] * y) / normal[2]] for x, y in ((-9, -9), (9, -9), (9, 5), (-9, 5))]
    mesh = quad(CAMERA, corners[::-1] if back else corners)
    picture = seen(Scene(parts=(Part(mesh=mesh, material=GRAY, instance=7),), camera=CAMERA))
    depth = c / (pixel_rays(picture.camera, SIZE, SIZE) @ normal)
    hit = picture.instance == 7
    assert hit.mean() > 0.9
    assert np.abs(picture.depth - depth)[hit].max() < 1e-3 * 0.1
    assert degrees_apart(picture.normal, normal)[hit].max() < 0.01
    assert not picture.depth[~hit].any()
    assert not picture.normal[~hit].any()


def test_depth_normal_and_outline_of_a_sphere_match_the_closed_form() -> None:
    centre, radius = np.array([0.2, -0.1, 2.5]), 0.7
    mesh = sphere(in_world(CAMERA, centre), radius)
    picture = seen(Scene(parts=(Part(mesh=mesh, material=GRAY, instance=3),), camera=CAMERA))
    rays = pixel_rays(picture.camera, SIZE, SIZE)
    # |t r - c|^2 = R^2
    square, half = (rays**2).sum(axis=2), rays @ centre
    discriminant = half**2 - square * (centre @ centre - radius**2)
    depth = (half - np.sqrt(np.maximum(discriminant, 0))) / square
    normal = (depth[..., None] * rays - centre) / radius
    nearest = np.linalg.norm(np.cross(rays, centre), axis=2) / np.sqrt(square)  # distance from the ray to the centre
    tie = np.abs(nearest - radius) < 1e-4
    assert tie.mean() < 0.005
    assert np.array_equal((picture.instance == 3)[~tie], (discriminant > 0)[~tie])
    steep = (discriminant > 0) & (-(normal * rays).sum(axis=2) / np.sqrt(square) > 0.2)
    assert steep.mean() > 0.05
    assert np.abs(picture.depth - depth)[steep].max() < 1e-3 * 0.5
    assert degrees_apart(picture.normal, normal)[steep].max() < 0.1


def test_the_picture_is_taken_by_the_camera_of_the_labels() -> None:
    """A lamp off the middle: a camera that were mirrored, shifted or rolled the other way would show it elsewhere."""
    lamp = quad(CAMERA, [[-0.9, -0.8, 2.0], [-0.9, 0.2, 2.0], [-0.1, 0.2, 2.0], [-0.1, -0.8, 2.0]])
    ahead = CAMERA.position - lamp.points[0]
    lamp = lamp if lamp.normals[0] @ ahead > 0 else replace(lamp, normals=-lamp.normals, faces=lamp.faces[:, ::-1])
    part = Part(mesh=lamp, material=GRAY, instance=2, radiance=(3.0, 2.0, 1.0))
    picture = seen(Scene(parts=(part, Part(mesh=backdrop(), material=GRAY, instance=1)), camera=CAMERA))
    rays = pixel_rays(picture.camera, SIZE, SIZE)
    x, y = 2 * rays[..., 0], 2 * rays[..., 1]
    margin = 2 * 0.6 / picture.camera.fx  # of a pixel that lies wholly inside or outside
    inside = (x > -0.9 + margin) & (x < -0.1 - margin) & (y > -0.8 + margin) & (y < 0.2 - margin)
    outside = (x < -0.9 - margin) | (x > -0.1 + margin) | (y < -0.8 - margin) | (y > 0.2 + margin)
    assert np.allclose(picture.samples[inside], (3.0, 2.0, 1.0), rtol=1e-4)
    assert picture.samples[outside].max() < 0.9
    assert (picture.instance[inside] == 2).all()
    assert (picture.instance[outside] != 2).all()


def backdrop() -> Mesh:
    return quad(CAMERA, [[-20.0, -20.0, 6.0], [-20.0, 20.0, 6.0], [20.0, 20.0, 6.0], [20.0, -20.0, 6.0]])


def test_a_texture_lies_the_right_way_up_and_does_not_bleed() -> None:
    """Four colours in four quarters, beside other materials in the same atlas."""
    colours = np.array([[[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], [[0.1, 0.1, 0.8], [0.7, 0.7, 0.1]]], dtype=np.float32)
    chart = Material(texture=colours.repeat(8, axis=0).repeat(8, axis=1), density=16.0)
    mesh = quad(CAMERA, [[-1.0, -1.0, 2.0], [1.0, -1.0, 2.0], [1.0, 1.0, 2.0], [-1.0, 1.0, 2.0]])
    others = [replace(GRAY, texture=np.full((k, 5 * k, 3), 0.3, dtype=np.float32)) for k in (3, 70, 9)]
    parts = [Part(mesh=backdrop(), material=material, instance=1) for material in others]
    parts.insert(1, Part(mesh=mesh, material=chart, instance=2))
    picture = seen(Scene(parts=tuple(parts), camera=CAMERA))
    rays = 2 * pixel_rays(picture.camera, SIZE, SIZE)
    margin = 2 * 0.6 / picture.camera.fx
    off = np.abs(rays[..., :2])
    clear = (off > margin + 1 / 16).all(axis=2) & (off < 1 - margin).all(axis=2)  # a texel's blend apart in the middle
    expected = colours[(rays[..., 1] > 0).astype(int), (rays[..., 0] > 0).astype(int)]
    assert clear.sum() > 500
    assert np.abs(picture.albedo - expected)[clear].max() < 0.01


def test_a_lamp_lights_a_matt_floor_as_the_integral_says() -> None:
    """Irradiance under the middle of a parallel square lamp, by the form factor of a point to a rectangle."""
    side, height, radiance, albedo = 1.0, 1.0, 5.0, 0.5
    camera = Camera.looking((0.0, 0.0, 0.5), yaw=0.0, pitch=-np.pi / 2, fov=4.0)

    def level(z: float, half: float, flip: bool) -> Mesh:
        corners = np.array([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]])
        return Mesh(
            points=corners[::-1] if flip else corners,
            normals=np.tile([0.0, 0.0, -1.0 if flip else 1.0], (4, 1)),
            uv=corners[:, :2],
            faces=np.array([[0, 1, 2], [0, 2, 3]]),
        )

    floor = replace(GRAY, texture=np.full((2, 2, 3), albedo, dtype=np.float32))
    parts = (
        Part(mesh=level(0.0, 50.0, False), material=floor, instance=1),
        Part(mesh=level(height, side / 2, True), material=GRAY, instance=2, radiance=(radiance, radiance, radiance)),
    )
    picture = trace(Scene(parts=parts, camera=camera), size=16, spp=256)
    x = side / 2 / height
    form_factor = 4 * 2 / (2 * np.pi) * (x / np.sqrt(1 + x**2)) * np.arctan(x / np.sqrt(1 + x**2))
    # The material reflects a little more than a matt one: its gloss adds a few per cent.
    assert picture.samples.mean() == pytest.approx(radiance * form_factor * albedo, rel=0.15)


def test_normals_of_a_room_are_those_of_its_depth() -> None:
    """Back-projected depth has its own normals: on flat surfaces they agree with the stored ones."""
    errors, fraction = [], []
    for index in range(3):
        picture = seen(build_room(5, index))
        points = pixel_rays(picture.camera, SIZE, SIZE) * picture.depth[..., None]
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        geometric = np.cross(down, across)
        middle = picture.normal[1:-1, 1:-1]
        flat = np.ones(middle.shape[:2], dtype=bool)
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            around = slice(dy, SIZE - 2 + dy), slice(dx, SIZE - 2 + dx)
            flat &= np.abs(picture.normal[around] - middle).max(axis=2) < 1e-3
            off = ((points[around] - points[1:-1, 1:-1]) * middle).sum(axis=2)
            flat &= np.abs(off) < 0.003
        errors.append(degrees_apart(geometric, middle)[flat])
        fraction.append(flat.mean())
    assert np.mean(fraction) > 0.3
    assert np.percentile(np.concatenate(errors), 99) < 1.0


def test_normals_of_a_room_are_unit_vectors_that_face_the_camera() -> None:
    picture = seen(build_room(5, 3))
    rays = pixel_rays(picture.camera, SIZE, SIZE)
    assert (picture.depth > 0).all()
    assert (picture.instance > 0).all()
    assert np.abs(np.linalg.norm(picture.normal, axis=2) - 1).max() < 1e-5
    assert ((picture.normal * rays).sum(axis=2) < 0).all()


def test_what_was_rendered_before_leaves_no_trace() -> None:
    one, other = build_room(6, 0), build_room(6, 1)
    first = trace(one, size=SIZE, spp=SPP, seed=5)
    trace(other, size=SIZE, spp=SPP, seed=5)
    again = trace(one, size=SIZE, spp=SPP, seed=5)
    for name in ("samples", "albedo", "depth", "normal", "instance"):
        assert np.array_equal(getattr(first, name), getattr(again, name), equal_nan=True), name
    assert not np.array_equal(first.samples, trace(one, size=SIZE, spp=SPP, seed=6).samples, equal_nan=True)


def test_scalar_mitsuba_gives_the_same_labels(tmp_path: Path) -> None:
    """Another implementation of the same rays: its own tree over the triangles instead of Embree's."""
    assert_same_labels(labels_by("scalar_rgb", tmp_path), seen(build_room(5, 0)))


def test_the_paths_of_a_pixel_start_in_a_square_grid_inside_it() -> None:
    """A texture of vertical stripes, each as wide as half a pixel: of four paths, two start on either colour."""
    level = Camera.looking((0.0, 0.0, 0.0), yaw=0.0, fov=90.0)
    columns = np.zeros((4, 64, 3), dtype=np.float32)
    columns[:, ::2] = (0.8, 0.1, 0.1)
    columns[:, 1::2] = (0.1, 0.1, 0.8)
    points = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [1.0, -1.0, 1.0]])
    screen = Mesh(
        points=points,
        normals=np.tile([-1.0, 0.0, 0.0], (4, 1)),
        uv=np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]),
        faces=np.array([[0, 1, 2], [0, 2, 3]]),
    )
    part = Part(mesh=screen, material=Material(texture=columns, density=64.0), instance=1)
    picture = trace(Scene(parts=(part,), camera=level), size=32, spp=4)
    assert picture.samples.shape == (32, 32, 4, 3)
    mixed = np.array([0.45, 0.1, 0.45])
    # Bilinear lookup blurs the stripes; their mean stays.
    assert np.abs(picture.albedo.mean(axis=0) - mixed).max() < 0.1
    with pytest.raises(ValueError, match="square"):
        trace(Scene(parts=(part,), camera=level), size=32, spp=8)


def test_lights_of_more_radiances_than_there_are_kinds_are_refused() -> None:
    parts = [Part(mesh=backdrop(), material=GRAY, instance=1, radiance=(float(k), 0.0, 0.0)) for k in range(1, 5)]
    surface = Part(mesh=backdrop(), material=GRAY, instance=2)
    with pytest.raises(ValueError, match="this one has 4"):
        seen(Scene(parts=(surface, *parts), camera=CAMERA))


def test_the_newest_llvm_that_works_is_found(tmp_path: Path) -> None:
    def library(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    for name in ("libLLVM-14.so.1", "x86_64/libLLVM-15.so", "llvm-16/lib/libLLVM.so.16", "libLLVM.so", "libLLVMFoo.so"):
        library(name)
    assert find_llvm([tmp_path]) is None
    older = library("x86_64/libLLVM-17.so.1")
    assert find_llvm([tmp_path / "none", tmp_path]) == older
    newer = library("llvm-19/lib/libLLVM.so.19.1")
    assert find_llvm([tmp_path]) == newer
