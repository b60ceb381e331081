"""Our side of `packing.py`: four-plane samples packed by `fastssl.shards.pack`.

    python packing_fastssl.py DATA SAMPLES WORKERS OUT [--size 256]

It is a script of its own because every worker process loads it once more.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from four_planes import FourPlanesSource

from fastssl.shards import pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("samples", type=int)
    parser.add_argument("workers", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=256)
    given = parser.parse_args()
    pack(FourPlanesSource(given.data, given.samples), given.out, size=given.size, workers=given.workers)


if __name__ == "__main__":
    main()
