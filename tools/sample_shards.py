"""Make the sample shards again: render the rooms, cut the photographs, pack both.

    python tools/sample_shards.py shards/sample

It needs what `sample_photos.py` needs and the `render` extra; with LLVM 17 or newer it takes about ten minutes on two
cores. The folder's five datasets are replaced, and its ATTRIBUTION.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fastssl.render import render_rooms
from fastssl.shards import pack
from fastssl.sources import RenderSource
from fastssl.sources.classes import ClassesSource

ROOMS = {"render_train": (300, 1), "render_val": (100, 2)}
"""Number of rooms and seed."""
PHOTOS = ("real_train", "real_val", "retrieval")
SIZE, JPEG_QUALITY, LZ4_LEVEL = 148, 88, 12
"""Side of the packed images in pixels; these keep the five datasets together below 16 MiB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the sample shards")
    parser.add_argument("--work", type=Path, help="keep the images here; rooms that are complete there are not redone")
    arguments = parser.parse_args()
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as temporary:
        work: Path = arguments.work or Path(temporary)
        photos = work / "photos"
        if not photos.exists():
            subprocess.run([sys.executable, str(Path(__file__).with_name("sample_photos.py")), str(photos)], check=True)
        for name, (count, seed) in ROOMS.items():
            render_rooms(work / name, count=count, seed=seed, size=256, workers=workers)
            source, out = RenderSource(work / name), fresh(arguments.out / name)
            pack(source, out, size=SIZE, jpeg_quality=JPEG_QUALITY, lz4_level=LZ4_LEVEL, max_bad=0)
        licence = "see ATTRIBUTION.md"
        for name in PHOTOS:
            crops = ClassesSource(photos / name, licence=licence)
            pack(crops, fresh(arguments.out / name), size=SIZE, jpeg_quality=JPEG_QUALITY, max_bad=0)
        shutil.copyfile(photos / "ATTRIBUTION.md", arguments.out / "ATTRIBUTION.md")
    num_bytes = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{num_bytes / 2**20:.1f} MiB in {arguments.out}")


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


if __name__ == "__main__":
    main()
