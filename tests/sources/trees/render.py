"""Rooms of noise as `fastssl render` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastssl.batch import Intrinsics, Record
from fastssl.sources.render import RenderRun, write_room, write_run

HEIGHT, WIDTH = 20, 30
RUN = RenderRun(seed=1, size=32, spp=4, variant="llvm_ad_rgb", mitsuba="3.9.1", fastssl="0.1.0")


def record(key: str, seed: int = 0) -> Record:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(HEIGHT, WIDTH, 3))
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    depth = rng.uniform(0.5, 60, (HEIGHT, WIDTH))
    normal[2:4], depth[3:5] = 0, 0
    return Record(
        key=key,
        image=rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8),
        depth=depth.astype(np.float32),
        normal=normal.astype(np.float32),
        instance=rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.int32),
        camera=Intrinsics(fx=40.1, fy=41.7, cx=15.3, cy=9.9),
    )


def write_tree(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_run(folder, RUN)
    for seed, key in enumerate(("room_b", "room_a", "room_c")):
        write_room(folder, record(key, seed))
    return folder
