"""Ways to store the targets: bytes and errors of a sample, and the time that one core takes to unpack it.

    python benchmarks/target_codec.py [--scenes N] [--rooms N]

The scenes are rooms with boxes and spheres, cast analytically at 256 x 256, with errors against the exact planes; the
rooms are those of shards/sample, rendered at 192 x 192, whose planes are in whole numbers already. Sizes are exact;
times are medians of the processor's time. Needs imagecodecs, which fastssl itself does not; writes
results/label_codec.json and prints its tables.

"to planes" is from packed bytes to the planes' whole numbers: LZ4 and compiled running sums, or imagecodecs' decoder.
"loaded" is all that the loader does with a sample on the CPU, which for any way but `raw` and `lz4` would be its planes
and what `raw` takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import imagecodecs
import lz4.block
import numpy as np
from conditions import write_result
from four_planes import cast_room
from numba import njit
from numpy.typing import NDArray

from fastssl.geometry import edge_of
from fastssl.loader.plan import Views
from fastssl.loader.targets import ThreadedTargets
from fastssl.shards import ShardSet, TargetLayout
from fastssl.shards.codec import (
    LZ4_LEVEL,
    StoredTargets,
    TargetCodec,
    compressed,
    pack_targets,
    quantised,
    unpack_targets,
)

SIDE, INPUT = 256, 227
SAMPLE = Path(__file__).resolve().parent.parent / "shards" / "sample"
REPEATS, BATCH = 9, 32
LEVELS = (0, 3, 4, 6, 8, 9, 12)
Array = NDArray[Any]
Packed = Sequence[bytes | bytearray]


class Scene(NamedTuple):
    """What is to be stored."""

    depth: Array
    """(H, W) metres."""
    normal: Array
    """(H, W, 3) unit vectors."""
    planes: StoredTargets
    """The same in a shard's whole numbers."""


class Way(NamedTuple):
    """One way to store a sample."""

    name: str
    gpu: str
    """What unpacks it on a GPU."""
    pack: Callable[[Scene], Packed]
    unpack: Callable[[Packed, int], tuple[Array, Array]]
    """Packed bytes and the image's side to millimetres (H, W) and what stands for normals (H, W, any)."""
    to_normal: Callable[[Array], Array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--rooms", type=int, default=200)
    arguments = parser.parse_args()
    scenes = [cast_scene(seed) for seed in range(arguments.scenes)]
    rooms = rendered_rooms(arguments.rooms)
    result = {
        "ways": [measured(way, scenes, rooms) for way in WAYS],
        "normals": [sphere_errors(name, *code) for name, code in NORMAL_CODES.items()],
        "contours_kib": edge_sizes(scenes, rooms),
        "levels": [measured_level(level, scenes, rooms) for level in LEVELS],
        "loaded": [loaded(codec, scenes, rooms) for codec in ("lz4", "raw")],
    }
    for name, rows in result.items():
        print(f"\n{name}\n\n{markdown(rows)}")
    print(f"\nwritten to {write_result('label_codec', result)}")


# What is stored


def cast_scene(seed: int) -> Scene:
    room = cast_room(seed, SIDE, SIDE)
    return Scene(room.depth, room.normal, quantised(room.depth, room.normal, edge_of(room.instance)))


def rendered_rooms(limit: int) -> list[Scene]:
    rooms = []
    for name in ("render_train", "render_val"):
        shards = ShardSet(SAMPLE / name)
        for index in range(len(shards)):
            block = shards.member(index, shards.target_member)
            rooms.append(unpack_targets(block, *shards.image_size, shards.target_codec))
    return [Scene(planes.millimetres / 1000, from_codes(planes.normal), planes) for planes in rooms[:limit]]


# Normals


def to_codes(normal: Array) -> Array:
    return quantised(np.ones(normal.shape[:-1]), normal, np.zeros(normal.shape[:-1], bool)).normal


def from_codes(codes: Array) -> Array:
    normal = codes / 127.5 - 1
    return cast("Array", normal / np.linalg.norm(normal, axis=-1, keepdims=True))


def to_octahedral(bits: int, normal: Array) -> Array:
    """Each unit vector as two numbers of so many bits: of the four nearest pairs the one with the least error."""
    largest = 2**bits - 1
    flat = normal / np.abs(normal).sum(axis=-1, keepdims=True)
    x, y, z = np.moveaxis(flat, -1, 0)
    behind = z < 0
    folded = np.stack([np.where(behind, (1 - abs(y)) * sign(x), x), np.where(behind, (1 - abs(x)) * sign(y), y)], -1)
    low = np.floor((folded + 1) / 2 * largest).clip(0, largest - 1)
    pairs = np.stack([low + np.array([i, j]) for i in (0, 1) for j in (0, 1)])
    best = (from_octahedral(bits, pairs) * normal).sum(axis=-1).argmax(axis=0)
    chosen: Array = np.take_along_axis(pairs, best[None, ..., None], axis=0)[0]
    return chosen.astype(np.uint8 if bits == 8 else np.uint16)


def from_octahedral(bits: int, codes: Array) -> Array:
    x, y = np.moveaxis(codes / (2**bits - 1) * 2 - 1, -1, 0)
    z = 1 - abs(x) - abs(y)
    behind = z < 0
    x, y = np.where(behind, (1 - abs(y)) * sign(x), x), np.where(behind, (1 - abs(x)) * sign(y), y)
    normal = np.stack([x, y, z], axis=-1)
    return cast("Array", normal / np.linalg.norm(normal, axis=-1, keepdims=True))


def sign(x: Array) -> Array:
    return np.where(x >= 0, 1, -1)


NORMAL_CODES: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "3 x 8 bits": (to_codes, from_codes),
    "octahedral, 2 x 8 bits": (partial(to_octahedral, 8), partial(from_octahedral, 8)),
    "octahedral, 2 x 12 bits": (partial(to_octahedral, 12), partial(from_octahedral, 12)),
}


def degrees(a: Array, b: Array) -> Array:
    return cast("Array", np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(axis=-1))))


def sphere_errors(name: str, to: Callable[[Array], Array], back: Callable[[Array], Array]) -> dict[str, object]:
    normal = np.random.default_rng(0).normal(size=(1000, 500, 3))
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    error = degrees(normal, back(to(normal)))
    return {"normals of the whole sphere as": name, "worst degrees": error.max(), "mean": error.mean()}


# Packing


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Planes in one LZ4 block."""

    in_bytes: bool = False
    """Depth as two planes, low and high bytes, instead of one of words."""
    interleaved: bool = False
    """Normals as (H, W, numbers) instead of (numbers, H, W)."""
    down: bool = False
    across: bool = False
    """Differences between rows, and within rows."""
    octahedral: int = 0
    """Bits of each of two numbers for a normal; 0 = three codes of 8 bits."""

    @property
    def numbers(self) -> int:
        """Of a normal."""
        return 2 if self.octahedral else 3

    def pack(self, scene: Scene) -> Packed:
        side = len(scene.depth)
        normal = to_octahedral(self.octahedral, scene.normal) if self.octahedral else scene.planes.normal
        raw = bytearray(2 * side * side + normal.nbytes)
        stored_depth, stored_normal = self.views(raw, side)
        millimetres = scene.planes.millimetres
        stored_depth[:] = [millimetres & 255, millimetres >> 8] if self.in_bytes else [millimetres]
        if self.interleaved:
            stored_normal[0] = normal.reshape(side, -1)
        else:
            stored_normal[:] = np.moveaxis(normal, -1, 0)
        for plane in (stored_depth, stored_normal):
            step = len(plane[0, 0]) // side
            if self.down:
                plane[:, 1:] -= plane[:, :-1].copy()
            if self.across:
                plane[..., step:] -= plane[..., :-step].copy()
        return [lz4_block(bytes(raw) + edge_bits(scene).tobytes())]

    def unpack(self, blocks: Packed, side: int) -> tuple[Array, Array]:
        most = (2 + 2 * self.numbers) * side * side + side * side
        raw = lz4.block.decompress(blocks[0], uncompressed_size=most, return_bytearray=True)
        depth, normal = self.views(raw, side)
        undo(depth, self.down, self.across * 1)
        undo(normal, self.down, self.across * (normal.shape[2] // side))
        millimetres = joined(depth) if self.in_bytes else depth[0]
        return millimetres, normal.reshape(side, side, -1) if self.interleaved else np.moveaxis(normal, 0, -1)

    def views(self, raw: bytearray, side: int) -> tuple[Array, Array]:
        """Depth and normals in their bytes, (planes, H, numbers of a row) each."""
        depth = np.frombuffer(raw, np.uint8 if self.in_bytes else np.uint16, 2 * side * side >> (not self.in_bytes))
        kind = np.uint16 if self.octahedral > 8 else np.uint8
        normal = np.frombuffer(raw, kind, self.numbers * side * side, offset=2 * side * side)
        return depth.reshape(-1, side, side), normal.reshape((1, side, -1) if self.interleaved else (-1, side, side))


def undo_in_python(planes: Array, down: bool, step: int) -> None:
    """Running sums in place, down the columns and along the rows in steps; step 0 = not along the rows."""
    for plane in planes:
        for y in range(plane.shape[0]):
            row, above = plane[y], plane[y - 1]
            for x in range(step, len(row) * (step > 0)):
                row[x] += row[x - step]
            for x in range(len(row) * (down and y > 0)):
                row[x] += above[x]


undo = cast("Callable[[Array, bool, int], None]", njit(cache=True)(undo_in_python))


def joined(depth: Array) -> Array:
    return cast("Array", depth[0] + np.uint16(256) * depth[1])


def lz4_block(content: bytes | Array, level: int = LZ4_LEVEL) -> bytes:
    return compressed(np.frombuffer(content, np.uint8), "lz4", level)


def edge_bits(scene: Scene) -> Array:
    return np.packbits(scene.planes.edge, axis=1)


def pack_images(
    encode_depth: Callable[[Array], bytes | bytearray],
    encode_normal: Callable[[Array], bytes | bytearray],
    scene: Scene,
) -> Packed:
    """Depth and normals as images, contours as elsewhere."""
    edge = lz4_block(edge_bits(scene))
    return [encode_depth(scene.planes.millimetres), encode_normal(scene.planes.normal), edge]


def unpack_images(decode: Callable[[bytes | bytearray], Array], blocks: Packed, side: int) -> tuple[Array, Array]:
    lz4.block.decompress(blocks[2], uncompressed_size=side * -(-side // 8))
    return decode(blocks[0]), decode(blocks[1])


def unpack_raw(blocks: Packed, side: int) -> tuple[Array, Array]:
    planes = unpack_targets(np.frombuffer(blocks[0], np.uint8), side, side, "raw")
    return planes.millimetres, planes.normal


INFLATE = "one batched call"


def in_lz4(name: str, **arrangement: Any) -> Way:
    chosen = Arrangement(**arrangement)
    to_normal = partial(from_octahedral, chosen.octahedral) if chosen.octahedral else from_codes
    return Way(f"LZ4, {name}", INFLATE, chosen.pack, chosen.unpack, to_normal)


def as_images(
    name: str,
    gpu: str,
    encode: Callable[..., bytes | bytearray],
    decode: Callable[[bytes | bytearray], Array],
    **options: Any,
) -> Way:
    encoder = partial(encode, **options)
    return Way(name, gpu, partial(pack_images, encoder, encoder), partial(unpack_images, decode), from_codes)


WAYS = [
    Way("raw", "copy", lambda scene: [pack_targets(scene.planes, "raw")], unpack_raw, from_codes),
    in_lz4("values"),
    in_lz4("differences within rows", across=True),
    in_lz4("between rows", down=True),
    in_lz4("between rows and within", down=True, across=True),
    in_lz4("between rows, depth in bytes", down=True, in_bytes=True),
    in_lz4("between rows, depth in bytes, normals interleaved (`lz4`)", down=True, in_bytes=True, interleaved=True),
    in_lz4("the same within rows", across=True, in_bytes=True, interleaved=True),
    in_lz4("the same between rows and within", down=True, across=True, in_bytes=True, interleaved=True),
    in_lz4("as `lz4`, normals octahedral 2 x 8", down=True, in_bytes=True, interleaved=True, octahedral=8),
    in_lz4("as `lz4`, normals octahedral 2 x 12", down=True, in_bytes=True, interleaved=True, octahedral=12),
    as_images("HT-J2K", "nvJPEG2000", imagecodecs.htj2k_encode, imagecodecs.htj2k_decode, reversible=True),
    as_images(
        "JPEG 2000", "nvJPEG2000", imagecodecs.jpeg2k_encode, imagecodecs.jpeg2k_decode, level=0, reversible=True
    ),
    as_images(
        "TIFF, deflate, differences",
        "nvTIFF?",
        imagecodecs.tiff_encode,
        imagecodecs.tiff_decode,
        compression="deflate",
        predictor=2,
    ),
    as_images(
        "TIFF, LZW, differences",
        "nvTIFF?",
        imagecodecs.tiff_encode,
        imagecodecs.tiff_decode,
        compression="lzw",
        predictor=2,
    ),
    as_images("PNG", "no", imagecodecs.png_encode, imagecodecs.png_decode),
]


# Measuring


def measured(way: Way, scenes: Sequence[Scene], rooms: Sequence[Scene]) -> dict[str, object]:
    """A row of the table: sizes and times for both kinds of planes, errors against the exact ones."""
    packed = [way.pack(scene) for scene in scenes]
    errors = [scene_errors(way, scene, blocks) for scene, blocks in zip(scenes, packed, strict=True)]
    worst, mean = np.max(errors, axis=0), np.mean(errors, axis=0)
    rendered = [way.pack(room) for room in rooms]
    return {
        "way": way.name,
        "KiB": kib(packed),
        "KiB rendered": kib(rendered),
        "ms to planes": milliseconds(lambda blocks: way.unpack(blocks, SIDE), packed),
        "ms rendered": milliseconds(lambda blocks: way.unpack(blocks, len(rooms[0].depth)), rendered[:BATCH]),
        "worst mm": worst[0],
        "mean mm": mean[1],
        "worst degrees": worst[2],
        "mean degrees": mean[3],
        "GPU": way.gpu,
    }


def scene_errors(way: Way, scene: Scene, blocks: Packed) -> tuple[float, float, float, float]:
    """Largest and mean error of depth in mm and of normals in degrees."""
    millimetres, codes = way.unpack(blocks, SIDE)
    depth, angle = abs(millimetres - 1000 * scene.depth), degrees(scene.normal, way.to_normal(codes))
    return depth.max(), depth.mean(), angle.max(), angle.mean()


def edge_sizes(scenes: Sequence[Scene], rooms: Sequence[Scene]) -> list[dict[str, object]]:
    forms: dict[str, Callable[[Scene], Array]] = {"bits": edge_bits, "bytes": lambda scene: scene.planes.edge}
    return [
        {
            "contours as": name,
            "KiB": kib([[lz4_block(form(s).tobytes())] for s in scenes]),
            "rendered": kib([[lz4_block(form(s).tobytes())] for s in rooms]),
        }
        for name, form in forms.items()
    ]


def measured_level(level: int, scenes: Sequence[Scene], rooms: Sequence[Scene]) -> dict[str, object]:
    """Sizes and times of the block of codec `lz4` at a level of compression."""
    row: dict[str, object] = {"level": level}
    for name, samples in (("", scenes), (" rendered", rooms[:BATCH])):
        side = len(samples[0].depth)
        size = TargetLayout(side, side).num_bytes
        blocks = [lz4.block.decompress(pack_targets(s.planes), uncompressed_size=size) for s in samples]
        packed = [[lz4_block(block, level)] for block in blocks]
        row |= {
            f"KiB{name}": kib(packed),
            f"ms to pack{name}": milliseconds(partial(lz4_block, level=level), blocks[:8], repeats=3),
            f"ms to inflate{name}": milliseconds(partial(inflated, size), packed),
        }
    return row


def inflated(size: int, blocks: Packed) -> bytes:
    block: bytes = lz4.block.decompress(blocks[0], uncompressed_size=size)
    return block


def loaded(codec: TargetCodec, scenes: Sequence[Scene], rooms: Sequence[Scene]) -> dict[str, object]:
    """Milliseconds of the processor for a sample's targets in the loader, with one thread."""
    row: dict[str, object] = {"codec": codec}
    for name, samples, smallest, largest, size in (
        ("whole image", scenes, 1.0, 1.0, SIDE),
        (f"window of {INPUT}", scenes, INPUT / SIDE, INPUT / SIDE, INPUT),
        (f"0.7 to 1 seen in {INPUT}", scenes, 0.7, 1.0, INPUT),
        ("rendered, whole", rooms, 1.0, 1.0, len(rooms[0].depth)),
    ):
        layout = TargetLayout(*samples[0].depth.shape)
        packed = [np.frombuffer(pack_targets(scene.planes, codec), np.uint8) for scene in samples]
        batch = [packed[i % len(packed)] for i in range(BATCH)]
        row[name] = loaded_in(batch, layout, windows(layout.height, smallest, largest), size, codec)
    return row


def loaded_in(batch: list[Array], layout: TargetLayout, views: Views, size: int, codec: TargetCodec) -> float:
    with ThreadPoolExecutor(1) as pool:
        targets = ThreadedTargets(layout, size, pool, 1, codec)
        return milliseconds(lambda blocks: targets.submit(blocks, views).result(), [batch]) / len(batch)


def windows(side: int, smallest: float, largest: float) -> Views:
    """Random windows of a batch, every other one mirrored."""
    rng = np.random.default_rng(0)
    length = np.rint(rng.uniform(smallest, largest, BATCH) * side).astype(np.int64)
    top, left = ((rng.random(BATCH) * (side - length + 1)).astype(np.int64) for _ in range(2))
    return Views(
        position=np.arange(BATCH),
        top=top,
        left=left,
        height=length,
        width=length,
        flip=np.arange(BATCH) % 2 == 1,
        channel=np.zeros(BATCH, np.int64),
        colour=np.zeros((BATCH, 4), np.float32),
        blur=np.zeros(BATCH, np.float32),
    )


def kib(samples: Iterable[Packed]) -> float:
    return float(np.mean([sum(len(block) for block in blocks) for blocks in samples])) / 1024


def milliseconds(work: Callable[[Any], object], items: Sequence[Any], repeats: int = REPEATS) -> float:
    """Per item, median; the processor's time of all threads, so that other processes count little."""
    work(items[0])
    times = []
    for _ in range(repeats):
        started = time.process_time()
        for item in items:
            work(item)
        times.append((time.process_time() - started) / len(items))
    return statistics.median(times) * 1e3


def markdown(rows: Sequence[dict[str, object]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
