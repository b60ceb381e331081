"""Ways to store the label planes: bytes per sample and milliseconds to pack and unpack, on one CPU core.

    python benchmarks/label_codec.py [--scenes N]

The scenes are rooms with boxes and spheres, cast analytically at 256 x 256. Sizes are exact; times are medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lz4.block
import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Intrinsics
from fastssl.geometry import contours, pixel_rays
from fastssl.shards import undo_differences

SIDE = 256
Array = NDArray[Any]


def rotation(pitch: float, yaw: float) -> Array:
    cp, sp, cy, sy = np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw)
    turn: Array = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return turn


def hit_box(origin: Array, rays: Array, half: Array, *, inside: bool) -> tuple[Array, Array]:
    """Ray parameter and normal where each ray enters (or, from inside, leaves) a box about zero."""
    with np.errstate(divide="ignore"):
        planes = np.sort(np.stack([(-half - origin) / rays, (half - origin) / rays]), axis=0)
    enter, leave = planes[0].max(-1), planes[1].min(-1)
    at = leave if inside else np.where((enter < leave) & (enter > 1e-6), enter, np.inf)
    axis = planes[1].argmin(-1) if inside else planes[0].argmax(-1)
    normal = np.zeros_like(rays)
    np.put_along_axis(normal, axis[..., None], -np.sign(np.take_along_axis(rays, axis[..., None], -1)), -1)
    return at, normal


def hit_sphere(origin: Array, rays: Array, radius: float) -> tuple[Array, Array]:
    a, b, c = (rays * rays).sum(-1), (rays * origin).sum(-1), (origin * origin).sum() - radius**2
    root = b * b - a * c
    at = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    at[at < 1e-6] = np.inf
    with np.errstate(invalid="ignore"):
        return at, (origin + rays * at[..., None]) / radius


def scene(seed: int) -> tuple[Array, Array, Array]:
    """Depth, normal and edge of a furnished room, seen from near a wall towards its middle."""
    rng = np.random.default_rng(seed)
    focal = rng.uniform(0.65, 0.95) * SIDE
    towards = rng.uniform(0, 2 * np.pi)
    to_world = rotation(-rng.uniform(0, 0.45), towards + rng.uniform(-0.5, 0.5))
    rays = pixel_rays(Intrinsics(fx=focal, fy=focal, cx=SIDE / 2, cy=SIDE / 2), SIDE, SIDE) @ to_world.T
    room = np.array([rng.uniform(2, 3), 1.4, rng.uniform(2, 3)])
    eye = np.array([-0.8 * room[0] * np.sin(towards), -0.1, -0.8 * room[2] * np.cos(towards)])
    depth, normal = hit_box(eye, rays, room, inside=True)
    # Walls, floor and ceiling are objects of their own.
    instance = np.rint(normal @ [1, 2, 3]).astype(int)
    for number in range(10, 10 + rng.integers(15, 40)):
        half = rng.uniform(0.05, 0.5, 3)
        lift = rng.choice([0, rng.uniform(0, 1.2)])
        centre = np.array([rng.uniform(-1, 1) * room[0], 1.4 - half[1] - lift, rng.uniform(-1, 1) * room[2]])
        if np.hypot(*(centre - eye)[[0, 2]]) < 0.9:
            continue
        turn = rotation(0, rng.choice([0, rng.uniform(0, np.pi)]))
        if rng.random() < 0.3:
            at, facing = hit_sphere(eye - centre, rays, half[1])
        else:
            at, facing = hit_box((eye - centre) @ turn, rays @ turn, half, inside=False)
            facing = facing @ turn.T
        nearer = at < depth
        depth, instance = np.where(nearer, at, depth), np.where(nearer, number, instance)
        normal = np.where(nearer[..., None], facing, normal)
    return depth, normal @ to_world, contours(instance)


def stored(scenes: Iterable[tuple[Array, Array, Array]]) -> list[tuple[Array, Array, Array]]:
    return [
        (
            np.rint(depth * 1000).astype(np.uint16),
            np.rint(127.5 * (normal + 1)).clip(1, 255).astype(np.uint8).transpose(2, 0, 1).copy(),
            np.packbits(edge, axis=1),
        )
        for depth, normal, edge in scenes
    ]


def rows(plane: Array) -> Array:
    difference = plane.copy()
    difference[..., 1:, :] -= plane[..., :-1, :]
    return difference


def columns(plane: Array) -> Array:
    difference = plane.copy()
    difference[..., 1:] -= plane[..., :-1]
    return difference


def undo_columns(plane: Array) -> None:
    np.cumsum(plane, axis=-1, dtype=plane.dtype, out=plane)


def byte_planes(plane: Array) -> Array:
    return plane.view(np.uint8).reshape(-1, plane.itemsize).T.copy()


def compressed(content: bytes, level: int = 9) -> bytes:
    block: bytes = lz4.block.compress(content, mode="high_compression", compression=level, store_size=False)
    return block


def kib(blocks: Iterable[bytes]) -> float:
    return float(np.mean([len(block) for block in blocks])) / 1024


def ms(work: Callable[[Any], object], items: list[Any], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for item in items:
            work(item)
        times.append((time.perf_counter() - start) / len(items))
    return float(np.median(times)) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=24)
    planes = stored(scene(seed) for seed in range(parser.parse_args().scenes))
    ways: dict[str, Callable[[Array], Array]] = {
        "none": lambda plane: plane,
        "columns": columns,
        "rows": rows,
        "both": lambda plane: columns(rows(plane)),
    }
    print("KiB at level 9     depth  as byte planes  normal  interleaved")
    for name, way in ways.items():
        depth = kib(compressed(way(sample[0]).tobytes()) for sample in planes)
        split = kib(compressed(byte_planes(way(sample[0])).tobytes()) for sample in planes)
        normal = kib(compressed(way(sample[1]).tobytes()) for sample in planes)
        mixed = kib(compressed(way(sample[1]).transpose(1, 2, 0).tobytes()) for sample in planes)
        print(f"  {name:14} {depth:8.1f} {split:15.1f} {normal:7.1f} {mixed:12.1f}")
    for name, undo in (("columns", undo_columns), ("rows", undo_differences)):
        depth, normal = (ms(undo, [sample[plane].copy() for sample in planes]) for plane in (0, 1))
        print(f"undoing {name}: depth {depth:.3f} ms, normal {normal:.3f} ms")
    sizes = [plane.nbytes for plane in planes[0]]
    for name, way in (("columns", columns), ("rows", rows)):
        parts = [[way(sample[0]).tobytes(), way(sample[1]).tobytes(), sample[2].tobytes()] for sample in planes]
        one = [compressed(b"".join(part)) for part in parts]
        three = [[compressed(plane) for plane in part] for part in parts]
        inflate_one = ms(lambda block: lz4.block.decompress(block, uncompressed_size=sum(sizes)), one)
        inflate_three = ms(
            lambda blocks: [lz4.block.decompress(b, uncompressed_size=n) for b, n in zip(blocks, sizes, strict=True)],
            three,
        )
        total = kib(b"".join(blocks) for blocks in three)
        print(f"{name}, one block: {kib(one):.1f} KiB, inflated in {inflate_one:.3f} ms")
        print(f"{name}, three blocks: {total:.1f} KiB, inflated in {inflate_three:.3f} ms")
    whole = [
        b"".join([rows(depth).tobytes(), rows(normal).tobytes(), edge.tobytes()]) for depth, normal, edge in planes
    ]
    for level in (3, 4, 6, 8, 9, 12):
        blocks = [compressed(content, level) for content in whole]
        pack = ms(partial(compressed, level=level), whole[:8], repeats=1)
        inflate = ms(lambda block: lz4.block.decompress(block, uncompressed_size=sum(sizes)), blocks)
        print(
            f"rows, one block, level {level}: {kib(blocks):.1f} KiB, {pack:.1f} ms to pack, {inflate:.3f} ms to inflate"
        )


if __name__ == "__main__":
    main()
