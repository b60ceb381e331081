"""The peers of `packing.py`: the same samples written by webdataset, litdata and MosaicML Streaming.

    PEERS/bin/python packing_peers.py {webdataset,litdata,mosaic} {opencv,pillow} DATA SAMPLES WORKERS OUT

It runs in an environment of its own (`packing.py` says how to make one). Each peer gets its sample as encoded bytes,
which is the fastest that it takes, and adds no compression or checksums. `opencv` is the fastest common way to decode
and encode in Python, with the PNG settings that are fastest of those that compress; `pillow` is what a plain script
does, with Pillow's defaults.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE, QUALITY, PER_SHARD = 256, 95, 1000
Members = dict[str, bytes]
Encode = Callable[[Path, int], Members]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=WRITERS)
    parser.add_argument("images", choices=ENCODERS)
    parser.add_argument("data", type=Path)
    parser.add_argument("samples", type=int)
    parser.add_argument("workers", type=int)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    WRITERS[given.peer](ENCODERS[given.images], given.data, given.samples, given.out, given.workers)


def by_opencv(data: Path, number: int) -> Members:
    """Lanczos stays Pillow's: OpenCV's does not widen its filter when it makes an image smaller."""
    image = Image.fromarray(_read(data, number, "rgb.jpg"))
    square = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    depth, normal, instance = (
        cv2.resize(_read(data, number, f"{name}.png"), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST_EXACT)
        for name in ("depth", "normal", "instance")
    )
    return {
        "jpg": cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes(),
        "depth.png": cv2.imencode(".png", depth)[1].tobytes(),
        "normal.png": cv2.imencode(".png", normal)[1].tobytes(),
        "edge.png": cv2.imencode(".png", edge_of(instance))[1].tobytes(),
    }


def by_pillow(data: Path, number: int) -> Members:
    image = Image.open(_path(data, number, "rgb.jpg")).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    depth, normal, instance = (
        Image.open(_path(data, number, f"{name}.png")).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        for name in ("depth", "normal", "instance")
    )
    return {
        "jpg": _saved(image, "JPEG", quality=QUALITY),
        "depth.png": _saved(depth, "PNG"),
        "normal.png": _saved(normal, "PNG"),
        "edge.png": _saved(Image.fromarray(edge_of(np.asarray(instance))), "PNG"),
    }


def edge_of(instance: NDArray[Any]) -> NDArray[np.uint8]:
    edge = np.zeros(instance.shape, np.uint8)
    edge[:, :-1] = instance[:, :-1] != instance[:, 1:]
    edge[:-1] |= instance[:-1] != instance[1:]
    return edge * np.uint8(255)


def _path(data: Path, number: int, plane: str) -> str:
    return f"{data}/{number % _files(data):05d}_{plane}"


@cache
def _files(data: Path) -> int:
    """Samples whose files are there; they are used over and over, as fastssl's side does."""
    return sum(1 for _ in data.glob("*.json"))


def _read(data: Path, number: int, plane: str) -> NDArray[Any]:
    pixels: NDArray[Any] | None = cv2.imread(_path(data, number, plane), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise FileNotFoundError(_path(data, number, plane))
    return pixels


def _saved(image: Image.Image, kind: str, **settings: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def write_webdataset(encode: Encode, data: Path, samples: int, out: Path, workers: int) -> None:
    """Each process writes shards of its own."""
    import webdataset

    _in_processes(partial(_webdataset_shards, webdataset.ShardWriter, encode, data, out), samples, workers)


def _webdataset_shards(writer: Any, encode: Encode, data: Path, out: Path, worker: int, numbers: range) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with writer(str(out / f"{worker}-%06d.tar"), maxcount=PER_SHARD, verbose=0) as sink:
        for number in numbers:
            sink.write({"__key__": f"{number:06d}", **encode(data, number)})


def write_litdata(encode: Encode, data: Path, samples: int, out: Path, workers: int) -> None:
    """By litdata's own worker processes."""
    import litdata

    litdata.optimize(
        fn=partial(encode, data),
        inputs=list(range(samples)),
        output_dir=str(out),
        num_workers=workers,
        chunk_bytes="64MB",
        reorder_files=False,
        start_method="fork",
    )


def write_mosaic(encode: Encode, data: Path, samples: int, out: Path, workers: int) -> None:
    """Each process writes a folder of its own, and their indexes are merged."""
    from streaming import MDSWriter
    from streaming.base.util import merge_index

    _in_processes(partial(_mosaic_shards, MDSWriter, encode, data, out), samples, workers)
    merge_index(str(out), keep_local=True)


def _mosaic_shards(writer: Any, encode: Encode, data: Path, out: Path, worker: int, numbers: range) -> None:
    columns = dict.fromkeys(("jpg", "depth.png", "normal.png", "edge.png"), "bytes")
    with writer(out=str(out / str(worker)), columns=columns) as sink:
        for number in numbers:
            sink.write(encode(data, number))


def _in_processes(work: Callable[[int, range], None], samples: int, workers: int) -> None:
    bounds = [samples * worker // workers for worker in range(workers + 1)]
    processes = [
        multiprocessing.Process(target=work, args=(worker, range(bounds[worker], bounds[worker + 1])))
        for worker in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a process failed: {[process.exitcode for process in processes]}")


ENCODERS: dict[str, Encode] = {"opencv": by_opencv, "pillow": by_pillow}
WRITERS = {"webdataset": write_webdataset, "litdata": write_litdata, "mosaic": write_mosaic}

if __name__ == "__main__":
    main()
