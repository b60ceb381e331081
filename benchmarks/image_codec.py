"""Images as JPEGs or as pixels in LZ4: bytes of a sample, and the processor's time to pack and to load it.

    python benchmarks/image_codec.py [--samples 500] [--repeats 7] [--rooms FOLDER] [--data DIR]

The samples are the analytic rooms of `four_planes`, 320 x 240, stretched to 256 x 256 and seen through windows of 227
pixels; and with --rooms the rooms that `fastssl render` left in a folder, at the size that they have, and seen through
as large a part of it. They are packed in each way by one process, then loaded on the CPU by the loader as it is, two
threads and batches of 64: images alone and with all planes through windows that are cut out, and images alone through
windows that are resized. All ways are measured in turns. Times are the processor's, of all threads together, so that
other programs count for little; rates are of the clock, and tell what the machine had to give. Results go to
`results/image_codec.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from conditions import write_result
from four_planes import FourPlanesSource, write_four_planes

from fastssl.batch import PLANES, Target
from fastssl.config import AugmentConfig, DataConfig
from fastssl.loader import Batches, LoaderOptions, RankSlice, ViewSettings, endless_plan, load_batches, open_mixture
from fastssl.shards import PackChoices, Source, pack
from fastssl.sources import open_source

SIDE, PART = 256, 227 / 256
BATCH, WARM_UP, STEPS = 64, 4, 12
WAYS: dict[str, PackChoices] = {
    "JPEG, quality 95": {},
    "LZ4": {"image_codec": "lz4"},
    "LZ4, level 9": {"image_codec": "lz4", "lz4_level": 9},
}
SEEN: dict[str, tuple[tuple[float, float], tuple[Target, ...]]] = {
    "images": ((PART, PART), ()),
    "all planes": ((PART, PART), PLANES),
    "images, resized": ((0.6, 1.0), ()),
}
"""Windows, as a part of the image's side, and targets."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rooms", type=Path)
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "fastssl-image-codec")
    arguments = parser.parse_args()
    files = arguments.data / "source"
    write_four_planes(files, arguments.samples, processes=len(os.sched_getaffinity(0)))
    datasets: dict[str, tuple[Source, int]] = {"analytic": (FourPlanesSource(files), SIDE)}
    if arguments.rooms is not None:
        rooms = open_source(arguments.rooms, "render")
        datasets["rendered"] = (rooms, len(rooms.read(next(rooms.references())).image))
    result = {}
    for name, (source, size) in datasets.items():
        with tempfile.TemporaryDirectory(dir=arguments.data) as folder:
            result[name] = measured(source, size, arguments.samples, arguments.repeats, Path(folder))
        print(table(name, result[name]))
    load, _, _ = os.getloadavg()
    values = {"samples": arguments.samples, "repeats": arguments.repeats, "load": load, "datasets": result}
    print(f"\nwritten to {write_result('image_codec', values)}")


def measured(source: Source, size: int, samples: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Facts about each way of storing a dataset."""
    packing: PackChoices = {"size": size, "limit": samples}
    found: dict[str, Any] = {"size": size, "ways": {}}
    pack(source, folder / "first", **(packing | {"limit": 8}))  # something is compiled meanwhile
    for way, choices in WAYS.items():
        begun = time.process_time()
        manifest = pack(source, folder / way, **(packing | choices))
        seconds = time.process_time() - begun
        sizes = manifest.statistics.member_bytes
        image = sizes[manifest.settings.images.member]
        found["ways"][way] = {
            "image_bytes": image.total / image.count,
            "sample_bytes": sum(entry.bytes for entry in manifest.shards) / manifest.samples,
            "pack_core_ms": 1000 * seconds / manifest.samples,
        }
    for seen in SEEN:
        loaders = {way: batches(folder / way, size, seen) for way in WAYS}
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for turn in range(repeats + 1):
            for way, loader in loaders.items():
                spent = spent_on(loader, WARM_UP if turn == 0 else STEPS)
                times[way] += [spent] * (turn > 0)
        for way, loader in loaders.items():
            loader.close()
            core, clock = zip(*times[way], strict=True)
            found["ways"][way][seen] = {
                "core_ms": 1000 * statistics.median(core),
                "core_ms_range": [1000 * min(core), 1000 * max(core)],
                "samples_per_s": 1 / statistics.median(clock),
            }
    return found


def batches(shards: Path, size: int, seen: str) -> Batches:
    window, targets = SEEN[seen]
    samples = open_mixture(shards)
    data = DataConfig(size=round(PART * size), gray="off", window=window)
    settings = ViewSettings(data=data, augment=AugmentConfig(), stored=samples.image_size)
    plan = endless_plan(settings, RankSlice(order=samples.order(seed=0, stream=0), batch_size=BATCH))
    return load_batches(samples, plan, LoaderOptions(device=torch.device("cpu"), threads=2), targets)


def spent_on(loader: Iterator[object], steps: int) -> tuple[float, float]:
    """Seconds a sample, of the processor and of the clock.

    What the loader makes ahead was made in the turn before, and as much is made for the next.
    """
    core, clock = time.process_time(), time.perf_counter()
    for _ in range(steps):
        next(loader)
    num = steps * BATCH
    return (time.process_time() - core) / num, (time.perf_counter() - clock) / num


def table(name: str, found: dict[str, Any]) -> str:
    lines = [
        f"\n{name}, {found['size']} x {found['size']}",
        f"{'':18}{'image kB':>10}{'sample kB':>11}{'pack ms':>9}" + "".join(f"{seen + ' ms':>21}" for seen in SEEN),
    ]
    for way, facts in found["ways"].items():
        times = "".join(f"{facts[seen]['core_ms']:13.3f} ({facts[seen]['samples_per_s']:5.0f})" for seen in SEEN)
        sizes = f"{facts['image_bytes'] / 1e3:10.1f}{facts['sample_bytes'] / 1e3:11.1f}"
        lines.append(f"{way:18}{sizes}{facts['pack_core_ms']:9.2f}{times}")
    return "\n".join([*lines, "ms of the processor a sample; in brackets samples/s of the clock"])


if __name__ == "__main__":
    main()
