"""Light transport and ray casting by Mitsuba 3: the one place that knows it.

Mitsuba's camera looks along +Z with X to the *left* and Y up, so its X and Y are the negatives of ours.

One scene per image size is loaded and then only filled with other vertices, textures and lights. Loading a scene
per room would compile its kernels anew each time, at twice the cost of rendering it.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics
from fastssl.errors import UsageError
from fastssl.geometry import pixel_rays
from fastssl.render.scene import Material, Mesh, Part, Scene, joined

_DEPTH = 4
"""Surfaces on a path, the light included; more of them cost more than they show."""
_ATTRIBUTES = ("roughness", "metallic")
_MATERIAL = {
    "type": "principled",
    "specular": 0.5,
    **{name: {"type": "mesh_attribute", "name": f"vertex_{name}"} for name in _ATTRIBUTES},
}
_LIGHT_SLOTS = 3
_LIGHT_FACES = 4096
"""Every light mesh is filled up to a multiple of this, since the number of faces is compiled into the kernels."""
_ATLAS_WIDTH = 1024
_OLDEST_LLVM = 17
"""LLVM 15 and 16 abort the process."""
_LIBRARIES = (Path(sys.prefix) / "lib", Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """What one camera sees: light with noise, and labels without."""

    samples: NDArray[np.float32]
    """(H, W, S, 3) linear RGB radiance along each path; now and then the reflectance model makes one NaN."""
    albedo: NDArray[np.float32]
    """(H, W, 3) reflectance, averaged over the starts of the same paths; 0 on lights."""
    depth: NDArray[np.float32]
    """(H, W) metres through the pixel's centre, 0 where the ray leaves the scene."""
    normal: NDArray[np.float32]
    """(H, W, 3) at the same point."""
    instance: NDArray[np.int32]
    """(H, W) at the same point, 0 where the ray leaves the scene."""
    camera: Intrinsics


def trace(scene: Scene, *, size: int, spp: int, seed: int = 0) -> Picture:
    """Renders a scene with `spp` paths per pixel, and casts one ray through every pixel's centre for the labels.

    The same arguments give the same picture on one machine, whatever was rendered before.

    Raises:
        ValueError: `spp` is not a square number, for each pixel is divided into as many squares; or the lights have
            more different radiances than a scene can have.
    """
    side = math.isqrt(spp)
    if side**2 != spp:
        raise ValueError(f"spp must be a square number, not {spp}")
    mi = _mitsuba()
    surfaces = _surfaces([part for part in scene.parts if part.radiance is None])
    lights = _lights([part for part in scene.parts if part.radiance is not None])
    meshes = [surfaces.mesh, *(light.mesh for light in lights)]
    stage, params = _stage(size * side, _sizes(mi, meshes), surfaces.atlas.shape if _is_scalar(mi) else (2, 2, 3))
    _set_surfaces(params, surfaces)
    _set_lights(mi, params, lights)
    _set_camera(mi, params, scene)
    params.update()
    # The same seed starts the paths of both at the same points.
    radiance, albedo = (
        np.array(mi.render(stage, integrator=integrator, spp=1, seed=seed), dtype=np.float32)
        .reshape(size, side, size, side, -1)
        .transpose(0, 2, 1, 3, 4)
        .reshape(size, size, spp, -1)
        for integrator in _integrators()
    )
    depth, normal, instance = _labels(mi, scene, size)
    return Picture(
        samples=radiance,
        albedo=albedo[..., -3:].mean(axis=2),
        depth=depth,
        normal=normal,
        instance=instance,
        camera=scene.camera.intrinsics(size),
    )


def start(variant: str | None = None) -> str:
    """Chooses how Mitsuba computes, once per process, and returns the variant's name.

    Without an argument that is `cuda_ad_rgb` where there is a GPU that can trace rays, else `llvm_ad_rgb` where there
    is an LLVM library that works (DRJIT_LIBLLVM_PATH can name one), else `scalar_rgb`. A variant that the process has
    set already is kept.

    Raises:
        UsageError: Mitsuba has no such variant.
    """
    import mitsuba as mi

    if mi.variant() is None:
        library = os.environ.get("DRJIT_LIBLLVM_PATH") or find_llvm(_LIBRARIES)
        if library is not None:
            os.environ["DRJIT_LIBLLVM_PATH"] = str(library)
        chosen = variant or _best_variant(library is not None)
        if chosen not in mi.variants():
            raise UsageError("Mitsuba has no such variant", seen=chosen, expected=", ".join(mi.variants()))
        mi.set_variant(chosen)
    return str(mi.variant())


def version() -> str:
    """Mitsuba's."""
    return str(_mitsuba().__version__)


def limit_threads(count: int) -> None:
    """Makes this process use so many processors for rendering."""
    import drjit

    drjit.set_thread_count(count)


def _best_variant(has_llvm: bool) -> str:
    if _has_ray_tracing_gpu():
        return "cuda_ad_rgb"
    return "llvm_ad_rgb" if has_llvm else "scalar_rgb"


def _has_ray_tracing_gpu() -> bool:
    """A CUDA device and OptiX, which some containers lack."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        ctypes.CDLL("libnvoptix.so.1")
    except OSError:
        return False
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def find_llvm(folders: Iterable[Path]) -> Path | None:
    """The newest LLVM library that works in folders or directly below them, whatever it is called there."""
    found: dict[int, Path] = {}
    for folder in folders:
        for pattern in ("libLLVM*.so*", "*/libLLVM*.so*", "llvm*/lib/libLLVM*.so*"):
            for path in folder.glob(pattern):
                match = re.fullmatch(r"libLLVM(?:-|\.so\.)(\d+).*", path.name)
                if match and int(match[1]) >= _OLDEST_LLVM:
                    found.setdefault(int(match[1]), path)
    return found[max(found)] if found else None


def _mitsuba() -> Any:
    start()
    import mitsuba

    return mitsuba


def _is_scalar(mi: Any) -> bool:
    return str(mi.variant()).startswith("scalar")


def _sizes(mi: Any, meshes: list[Mesh]) -> tuple[tuple[int, int], ...]:
    """Vertices and faces to load meshes with: any, except in scalar variants, whose arrays keep their length."""
    return tuple((len(mesh.points), len(mesh.faces)) if _is_scalar(mi) else (3, 1) for mesh in meshes)


@lru_cache(maxsize=4)
def _stage(size: int, meshes: tuple[tuple[int, int], ...], atlas: tuple[int, ...]) -> tuple[Any, Any]:
    """A scene of one mesh with every surface, one mesh per kind of light, and a camera; and its parameters."""
    mi = _mitsuba()
    content = {"type": "scene", "sensor": _sensor(size)}
    surface = _MATERIAL | {
        "base_color": {
            "type": "bitmap",
            "bitmap": mi.Bitmap(np.zeros(atlas, dtype=np.float32)),
            "raw": True,
            "wrap_mode": "clamp",
        }
    }
    content["surfaces"] = _blank(mi, meshes[0], {"type": "twosided", "nested": surface}, attributes=_ATTRIBUTES)
    for slot, mesh in enumerate(meshes[1:]):
        light = {"type": "area", "radiance": {"type": "rgb", "value": [1.0, 1.0, 1.0]}, "sampling_weight": 1.0}
        content[f"light{slot}"] = _blank(mi, mesh, {"type": "diffuse", "reflectance": 0.0}, emitter=light)
    scene = mi.load_dict(content)
    return scene, mi.traverse(scene)


@lru_cache(maxsize=1)
def _integrators() -> tuple[Any, Any]:
    """One for the light of a path, one for the reflectance where it starts."""
    mi = _mitsuba()
    path = {"type": "path", "max_depth": _DEPTH, "rr_depth": _DEPTH}
    return mi.load_dict(path), mi.load_dict({"type": "aov", "aovs": "albedo:albedo"})


def _sensor(size: int) -> dict[str, Any]:
    film = {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgb", "rfilter": {"type": "box"}}
    return {"type": "perspective", "near_clip": 0.01, "film": film, "sampler": {"type": "independent"}}


def _blank(
    mi: Any,
    size: tuple[int, int],
    bsdf: dict[str, Any],
    *,
    emitter: dict[str, Any] | None = None,
    attributes: tuple[str, ...] = (),
) -> Any:
    """A mesh of `size` (vertices, faces), to be filled."""
    vertices, faces = size
    properties = mi.Properties()
    properties["bsdf"] = mi.load_dict(bsdf)
    if emitter is not None:
        properties["emitter"] = mi.load_dict(emitter)
    mesh = mi.Mesh("mesh", vertices, faces, has_vertex_normals=True, has_vertex_texcoords=True, props=properties)
    for name in attributes:
        mesh.add_attribute(f"vertex_{name}", 1, np.zeros(vertices, dtype=np.float32))
    params = mi.traverse(mesh)
    # No mesh may lack area, not even before it is filled.
    params["vertex_positions"] = np.resize(np.eye(3, dtype=np.float32), 3 * vertices)
    params["vertex_normals"] = np.resize(np.array([0, 0, 1], dtype=np.float32), 3 * vertices)
    params["faces"] = np.resize(np.arange(3, dtype=np.uint32), 3 * faces)
    params.update()
    return mesh


def _set_mesh(params: Any, name: str, mesh: Mesh) -> None:
    params[f"{name}.vertex_positions"] = mesh.points.astype(np.float32).ravel()
    params[f"{name}.vertex_normals"] = mesh.normals.astype(np.float32).ravel()
    params[f"{name}.vertex_texcoords"] = mesh.uv.astype(np.float32).ravel()
    params[f"{name}.faces"] = mesh.faces.astype(np.uint32).ravel()


@dataclass(frozen=True, slots=True, eq=False)
class _Surfaces:
    """All surfaces as one mesh, whose texture coordinates point into one atlas."""

    mesh: Mesh
    atlas: NDArray[np.float32]
    attributes: dict[str, NDArray[np.float32]]
    """Values of each vertex, by name."""


def _surfaces(parts: list[Part]) -> _Surfaces:
    materials = {id(part.material): part.material for part in parts}
    atlas, corners = _pack([material.texture for material in materials.values()])
    where = dict(zip(materials, corners, strict=True))
    meshes = [_mapped(part.mesh, part.material, where[id(part.material)], atlas.shape[:2]) for part in parts]
    sizes = [len(mesh.points) for mesh in meshes]
    attributes = {
        name: np.repeat(np.array([getattr(part.material, name) for part in parts], dtype=np.float32), sizes)
        for name in _ATTRIBUTES
    }
    return _Surfaces(joined(meshes), atlas, attributes)


def _set_surfaces(params: Any, surfaces: _Surfaces) -> None:
    _set_mesh(params, "surfaces", surfaces.mesh)
    for name, values in surfaces.attributes.items():
        params[f"surfaces.vertex_{name}"] = values
    texture = "surfaces.bsdf.brdf_0.base_color.data"
    params[texture] = type(params[texture])(surfaces.atlas)


def _pack(textures: list[NDArray[np.float32]]) -> tuple[NDArray[np.float32], list[tuple[int, int]]]:
    """Textures in one image, on shelves from the tallest to the lowest; and where (x, y) each one went."""
    corners = [(0, 0)] * len(textures)
    x = y = shelf = 0
    for k in sorted(range(len(textures)), key=lambda k: -textures[k].shape[0]):
        height, width, _ = textures[k].shape
        if x + width > _ATLAS_WIDTH:
            x, y, shelf = 0, y + shelf, 0
        corners[k] = (x, y)
        x, shelf = x + width, max(shelf, height)
    atlas = np.zeros((y + shelf, _ATLAS_WIDTH, 3), dtype=np.float32)
    for texture, (x, y) in zip(textures, corners, strict=True):
        atlas[y : y + texture.shape[0], x : x + texture.shape[1]] = texture
    return atlas, corners


def _mapped(mesh: Mesh, material: Material, corner: tuple[int, int], shape: tuple[int, int]) -> Mesh:
    """The mesh with texture coordinates in the atlas, half a texel inside its texture to keep its neighbours out."""
    room = np.array(material.texture.shape[1::-1]) - 1.0
    texel = (mesh.uv - mesh.uv.min(axis=0)) * material.density
    texel *= np.minimum(1.0, room / np.maximum(texel.max(axis=0), 1e-9))
    return replace(mesh, uv=(texel + 0.5 + corner) / np.array(shape[::-1]))


@dataclass(frozen=True, slots=True, eq=False)
class _Light:
    mesh: Mesh
    radiance: tuple[float, float, float]
    weight: float
    """Fraction of the shadow rays."""


def _lights(parts: list[Part]) -> list[_Light]:
    """One per slot: lights of equal radiance share a mesh, and get shadow rays by their power."""
    kinds = list(dict.fromkeys(part.radiance for part in parts if part.radiance is not None))
    if len(kinds) > _LIGHT_SLOTS:
        raise ValueError(f"a scene can have lights of {_LIGHT_SLOTS} radiances, this one has {len(kinds)}")
    lights = []
    for radiance in kinds:
        meshes = [part.mesh for part in parts if part.radiance == radiance]
        power = sum(radiance) * sum(_area(mesh) for mesh in meshes)
        lights.append(_Light(_padded(meshes), radiance, max(power, 1e-6)))
    unused = _Light(_padded([]), (0.0, 0.0, 0.0), 1e-6)
    return lights + [unused] * (_LIGHT_SLOTS - len(lights))


def _set_lights(mi: Any, params: Any, lights: list[_Light]) -> None:
    for slot, light in enumerate(lights):
        _set_mesh(params, f"light{slot}", light.mesh)
        params[f"light{slot}.emitter.radiance.value"] = mi.Color3f(*light.radiance)
        params[f"light{slot}.emitter.sampling_weight"] = light.weight


def _area(mesh: Mesh) -> float:
    a, b, c = (mesh.points[mesh.faces[:, k]] for k in range(3))
    return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def _padded(meshes: list[Mesh]) -> Mesh:
    """One mesh with a multiple of `_LIGHT_FACES` faces: below the scene, a speck (no mesh may lack area) and points."""
    depth = min((mesh.points[:, 2].min() for mesh in meshes), default=0.0) - 20.0
    speck = Mesh(
        points=np.array([[0.0, 0.0, depth], [0.0, 1e-3, depth], [1e-3, 0.0, depth]]),
        normals=np.tile([0.0, 0.0, -1.0], (3, 1)),
        uv=np.zeros((3, 2)),
        faces=np.array([[0, 1, 2]]),
    )
    mesh = joined([speck, *meshes])
    missing = -len(mesh.faces) % _LIGHT_FACES
    return replace(mesh, faces=np.concatenate([mesh.faces, np.zeros((missing, 3), dtype=np.int64)]))


def _set_camera(mi: Any, params: Any, scene: Scene) -> None:
    to_world = np.eye(4)
    to_world[:3, :3] = (scene.camera.rotation * [[-1.0], [-1.0], [1.0]]).T
    to_world[:3, 3] = scene.camera.position
    params["sensor.to_world"] = mi.Transform4f(mi.ScalarTransform4f(to_world))
    params["sensor.x_fov"] = float(scene.camera.fov)


def _labels(mi: Any, scene: Scene, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]]:
    """Depth, normal and instance of the first surface on the ray through each pixel's centre."""
    rays = pixel_rays(scene.camera.intrinsics(size), size, size).reshape(-1, 3)
    ahead = rays @ scene.camera.rotation
    distance, face, weight = _cast(mi, scene.mesh, scene.camera.position, ahead)
    hit = np.isfinite(distance)
    # Where nothing was hit, Mitsuba leaves face and weight as they were in memory.
    face, weight = np.where(hit, face, 0), np.where(hit[:, None], weight, 0)
    corners = scene.mesh.faces[face]
    weights = np.stack([1 - weight.sum(axis=1), weight[:, 0], weight[:, 1]], axis=1)
    smooth = np.einsum("nk,nkc->nc", weights, scene.mesh.normals[corners])
    a, b, c = (scene.mesh.points[corners[:, k]] for k in range(3))
    normal = _facing(smooth, np.cross(b - a, c - a), ahead) @ scene.camera.rotation.T
    return (
        np.where(hit, distance, 0).astype(np.float32).reshape(size, size),
        np.where(hit[:, None], normal, 0).astype(np.float32).reshape(size, size, 3),
        np.where(hit, scene.instance[face], 0).astype(np.int32).reshape(size, size),
    )


def _facing(smooth: NDArray[np.float64], flat: NDArray[np.float64], ahead: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit shading normals on the seen side; at the outline of a smooth solid they are bent until they face the eye."""
    ahead = ahead / np.linalg.norm(ahead, axis=1, keepdims=True)
    side = np.where(_dot(flat, ahead) > 0, -1.0, 1.0)
    normal = smooth * side * np.where(_dot(smooth, flat) < 0, -1.0, 1.0)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    normal -= np.maximum(_dot(normal, ahead) + 1e-3, 0.0) * ahead
    unit: NDArray[np.float64] = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return unit


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = np.einsum("nc,nc->n", a, b)[:, None]
    return product


def _cast(
    mi: Any, mesh: Mesh, origin: NDArray[np.float64], ahead: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """First hits of rays: (N,) multiples of `ahead`, infinite for a miss, (N,) faces and (N, 2) barycentric weights."""
    scene, params = _target(*_sizes(mi, [mesh]))
    _set_mesh(params, "target", mesh)
    params.update()
    if "scalar" not in mi.variant():
        start_points = np.broadcast_to(origin[:, None], ahead.T.shape).astype(np.float32)
        ray = mi.Ray3f(mi.Point3f(start_points), mi.Vector3f(ahead.T.astype(np.float32)))
        hit = scene.ray_intersect_preliminary(ray, coherent=True)
        return np.array(hit.t, dtype=np.float64), np.array(hit.prim_index, dtype=np.int64), np.array(hit.prim_uv).T
    eye = origin.tolist()
    hits = [scene.ray_intersect_preliminary(mi.Ray3f(eye, direction)) for direction in ahead.tolist()]
    return (
        np.array([hit.t for hit in hits]),
        np.array([hit.prim_index for hit in hits], dtype=np.int64),
        np.array([[hit.prim_uv.x, hit.prim_uv.y] for hit in hits]),
    )


@lru_cache(maxsize=4)
def _target(size: tuple[int, int]) -> tuple[Any, Any]:
    """A scene of one mesh without a surface, for casting rays at."""
    mi = _mitsuba()
    scene = mi.load_dict({"type": "scene", "target": _blank(mi, size, {"type": "diffuse"})})
    return scene, mi.traverse(scene)
