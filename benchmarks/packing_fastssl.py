"""Our side of `packing.py`: four-plane samples packed by `fastssl.shards.pack`.

    python packing_fastssl.py DATA SAMPLES WORKERS OUT [--size 256]

It is a script of its own because every worker process loads it once more.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastssl.batch import Intrinsics, Record
from fastssl.shards import Domain, pack
from fastssl.sources.images import read_image, read_plane


@dataclass(frozen=True)
class FourPlanes:
    """What `four_planes.write_four_planes` wrote; the files are used over and over until `samples` are reached."""

    path: Path
    samples: int
    files: int
    layout: str = "four planes"
    domain: Domain = "synthetic"
    labelled: bool = True
    licence: str = "CC0-1.0"
    subset: str | None = None

    def references(self) -> Iterator[str]:
        return (f"{number:06d}" for number in range(self.samples))

    def key(self, reference: str) -> str:
        return reference

    def read(self, reference: str) -> Record:
        name = f"{self.path}/{int(reference) % self.files:05d}"
        camera = json.loads(Path(f"{name}.json").read_bytes())["camera"]
        return Record(
            key=reference,
            image=read_image(Path(f"{name}_rgb.jpg")),
            depth=read_plane(Path(f"{name}_depth.png"), "I;16"),
            normal=read_plane(Path(f"{name}_normal.png"), "RGB"),
            instance=read_plane(Path(f"{name}_instance.png"), "I;16"),
            camera=Intrinsics(**camera),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("samples", type=int)
    parser.add_argument("workers", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=256)
    given = parser.parse_args()
    source = FourPlanes(given.data, given.samples, sum(1 for _ in given.data.glob("*.json")))
    pack(source, given.out, size=given.size, workers=given.workers)


if __name__ == "__main__":
    main()
