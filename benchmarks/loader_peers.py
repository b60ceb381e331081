"""The loaders that `loaders.py` compares, each written as a user who knows its library would.

    python benchmarks/loader_peers.py LOADER DATA SAMPLES FORM

runs one of them in this process and answers requests on its standard input (`loader_protocol.py`); `loaders.py` starts
it. LOADER is a name of `LOADERS`, FORM `source` or `resized`. All give the same five tensors per batch, see `Batch`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader_data import CROP, PER_TAR, STRETCHED, Array, Files, View, Views, resized_files, source_files
from loader_protocol import Settings, serve
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torch.utils.dlpack import from_dlpack

from fastssl.batch import IMAGE_MEAN

Batch = Sequence[Any]
"""image (N, 3, 227, 227), channels-last where that is cheaper, RGB / 255 minus the mean; depth (N, 1, 227, 227) metres;
normal (N, 3, 227, 227) unit vectors or 0; edge (N, 1, 227, 227), all float32; valid (N, 1, 227, 227) bool."""

# As large as the image, because NumPy is slow along an axis of three.
_MEAN = np.broadcast_to(IMAGE_MEAN, (CROP, CROP, 3)).copy()


class Decoder:
    """JPEG and PNG streams to tensors of one sample, for the peers whose samples are made by Python functions.

    Args:
        codecs: `opencv`, or `fast`: simplejpeg and imagecodecs, which take 15 % less time for these four files.
        resized: the files are already 256 x 256, and the last one holds contours.
    """

    def __init__(self, codecs: str, *, resized: bool) -> None:
        self.codecs, self.resized = codecs, resized

    def __call__(self, streams: Sequence[bytes], view: View) -> tuple[Tensor, ...]:
        """The tensors of a batch without its first axis; the image still (227, 227, 3)."""
        import cv2

        cv2.setNumThreads(0)
        image, depth, codes, last = self._decoded(streams)
        if not self.resized:
            size, exact = (STRETCHED, STRETCHED), cv2.INTER_NEAREST_EXACT
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
            depth, codes, last = (cv2.resize(plane, size, interpolation=exact) for plane in (depth, codes, last))
        rows, columns = slice(view.top, view.top + CROP), slice(view.left, view.left + CROP)
        edge = last[rows, columns] if self.resized else _window_edge(last, view)
        image, depth, codes = image[rows, columns], depth[rows, columns], codes[rows, columns]
        if view.flip:
            image, depth, codes, edge = (cv2.flip(plane, 1) for plane in (image, depth, codes, edge))
        # `split` is eight times as fast on an array without gaps.
        normal, known = _unit_vectors(cv2.split(np.ascontiguousarray(codes)), flip=view.flip)
        colours = np.multiply(image, np.float32(1 / 255), dtype=np.float32)
        colours -= _MEAN
        planes = (
            colours,
            np.multiply(depth, np.float32(1e-3), dtype=np.float32)[None],
            normal,
            edge.astype(np.float32)[None],
            (known & (depth > 0))[None],
        )
        return tuple(torch.from_numpy(plane) for plane in planes)

    def _decoded(self, streams: Sequence[bytes]) -> list[Array]:
        """RGB, depth, normal codes (RGB) and the last plane."""
        if self.codecs == "fast":
            import imagecodecs
            import simplejpeg

            return [simplejpeg.decode_jpeg(streams[0]), *(imagecodecs.png_decode(stream) for stream in streams[1:])]
        import cv2

        flags = (cv2.IMREAD_COLOR_RGB, cv2.IMREAD_UNCHANGED, cv2.IMREAD_COLOR_RGB, cv2.IMREAD_UNCHANGED)
        decoded = (cv2.imdecode(np.frombuffer(s, np.uint8), flag) for s, flag in zip(streams, flags, strict=True))
        return [plane for plane in decoded if plane is not None]


def _window_edge(instance: Array, view: View) -> Array:
    """Contours in the window, (227, 227) uint8; what lies beside the window still counts as a neighbour."""
    bottom, right = min(view.top + CROP + 1, STRETCHED), min(view.left + CROP + 1, STRETCHED)
    seen = instance[view.top : bottom, view.left : right]
    edge = np.zeros((CROP, CROP), bool)
    across, down = seen[:CROP, :-1] != seen[:CROP, 1:], seen[:-1, :CROP] != seen[1:, :CROP]
    edge[:, : across.shape[1]] = across
    edge[: down.shape[0]] |= down
    return edge.view(np.uint8)


def _unit_vectors(codes: Sequence[Array], *, flip: bool) -> tuple[Array, Array]:
    """(3, H, W) unit vectors or 0, and (H, W) where they are known, of the three planes of codes."""
    normal = np.empty((3, CROP, CROP), np.float32)
    for axis, plane in zip(normal, codes, strict=True):
        np.multiply(plane, np.float32(1 / 127.5), out=axis, dtype=np.float32)
    normal -= np.float32(1)
    x, y, z = normal
    known = (codes[0] | codes[1] | codes[2]) > 0
    scale = x * x
    scale += y * y
    scale += z * z
    np.sqrt(scale, out=scale)
    np.divide(known, scale, out=scale)
    normal *= scale
    if flip:
        np.negative(x, out=x)
    return normal, known


def _channels_last(batch: Sequence[Tensor]) -> Batch:
    image, *planes = batch
    return [image.permute(0, 3, 1, 2), *planes]


class FileDataset(Dataset[tuple[Tensor, ...]]):
    """Samples of loose files; an index is a view."""

    def __init__(self, files: Files, decode: Decoder) -> None:
        self.files, self.decode = files, decode

    def __getitem__(self, view: View) -> tuple[Tensor, ...]:
        return self.decode([path.read_bytes() for path in self.files.paths(view.sample)], view)


class _Batches(Sampler[list[View]]):
    """The endless batch sampler: without epochs there is no pause between them."""

    def __init__(self, views: Views, batch: int) -> None:
        self.views, self.batch = views, batch

    def __iter__(self) -> Iterator[list[View]]:
        views = iter(self.views)
        while True:
            yield list(islice(views, self.batch))


def torch_batches(files: Files, views: Views, batch: int, workers: int, codecs: str) -> Iterator[Batch]:
    """torch's DataLoader: a map-style data set, samples decoded in worker processes."""
    loader = DataLoader(
        FileDataset(files, Decoder(codecs, resized=files.resized)),
        batch_sampler=_Batches(views, batch),
        **_in_processes(workers),
    )
    return map(_channels_last, loader)


def webdataset_batches(files: Files, views: Views, batch: int, workers: int, codecs: str) -> Iterator[Batch]:
    """webdataset: tars of JPEG and PNG members, read and decoded in a WebLoader's workers."""
    import webdataset

    tars = sorted(str(path) for path in files.tars.glob("*.tar"))
    decode = partial(_decode_member_dict, files.planes, Decoder(codecs, resized=files.resized), views)
    if views.fixed:
        dataset = webdataset.WebDataset(tars[:1], shardshuffle=False).map(decode)
        workers = min(workers, 1)
    else:
        dataset = webdataset.WebDataset(tars, resampled=True).shuffle(PER_TAR).map(decode)
    loader = webdataset.WebLoader(
        dataset.batched(batch, collation_fn=default_collate),
        batch_size=None,
        **_in_processes(workers),
    )
    return map(_channels_last, loader)


def _in_processes(workers: int) -> dict[str, Any]:
    """The DataLoader's options; 0 workers = this process."""
    if not workers:
        return {"num_workers": 0}
    spawned = {"persistent_workers": True, "multiprocessing_context": "spawn"}
    return {"num_workers": workers, "prefetch_factor": 2, **spawned}


def _decode_member_dict(
    planes: Sequence[str], decode: Decoder, views: Views, sample: dict[str, Any]
) -> tuple[Tensor, ...]:
    return decode([sample[plane] for plane in planes], views.draw(0))


def spdl_batches(files: Files, views: Views, batch: int, workers: int, codecs: str) -> Iterator[Batch]:
    """spdl: a pipeline of threads; the decoders release the interpreter lock.

    spdl's own image decoding is FFmpeg's, which takes twice as long as these for each of the four files.
    """
    from spdl.pipeline import PipelineBuilder

    decode = Decoder(codecs, resized=files.resized)

    def load(view: View) -> tuple[Tensor, ...]:
        return decode([path.read_bytes() for path in files.paths(view.sample)], view)

    builder: Any = PipelineBuilder()
    pipeline = (
        builder.add_source(views)
        .pipe(load, concurrency=workers, output_order="input" if views.fixed else "completion")
        .aggregate(batch)
        .pipe(default_collate)
        .add_sink(4)
        .build(num_threads=workers + 1)
    )
    with pipeline.auto_stop():
        yield from map(_channels_last, pipeline.get_iterator())


def dali_batches(files: Files, views: Views, batch: int, workers: int) -> Iterator[Batch]:
    """A plain DALI graph on the CPU: file readers, image decoders, one window for all planes."""
    from loader_dali import file_graph

    torch.set_num_threads(1)  # DALI's own threads keep both cores busy
    pipeline = file_graph(files, views, batch, workers)
    while True:
        image, depth, codes, last, flip = (from_dlpack(output.as_tensor()) for output in pipeline.run())
        edge = last if files.resized else batch_edge(last[..., 0], flip)
        yield [image.permute(0, 3, 1, 2), *planes_of_batch(depth, codes, edge, flip)]


def batch_edge(instance: Tensor, flip: Tensor) -> Tensor:
    """Contours (N, 227, 227) bool, flipped, of instances (N, 228, 228) uint16, not flipped; 0xFFFF beyond the image."""
    names = instance.view(torch.int16)
    for last, before in ((names[:, :, -1], names[:, :, -2]), (names[:, -1], names[:, -2])):
        last.copy_(torch.where(last == -1, before, last))
    here = names[:, :CROP, :CROP]
    edge = (here != names[:, :CROP, 1:]) | (here != names[:, 1:, :CROP])
    return torch.where(flip[:, None, None] > 0, edge.flip(2), edge)


def planes_of_batch(depth: Tensor, codes: Tensor, edge: Tensor, flip: Tensor) -> Batch:
    """Depth (N, S, S, 1) uint16 mm, codes (N, S, S, 3) uint8, edge (N, S, S[, 1]) and flip (N,), in units."""
    normal = codes.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    normal.mul_(1 / 127.5).sub_(1)
    x, y, z = normal.unbind(1)
    known = (codes[..., 0] | codes[..., 1] | codes[..., 2]) > 0
    normal.mul_((x * x).addcmul_(y, y).addcmul_(z, z).rsqrt_().mul_(known)[:, None])
    x.mul_(1 - 2 * flip[:, None, None])
    metres = depth.view(len(depth), 1, CROP, CROP).to(torch.float32).mul_(1e-3)
    return [metres, normal, edge.view_as(metres).to(torch.float32), known[:, None] & (metres > 0)]


def dali_decode_batches(shards: Path, views: Views, batch: int, workers: int) -> Iterator[Batch]:
    """The floor by DALI: only the decoding of our packed JPEGs."""
    from loader_dali import decode_graph

    pipeline = decode_graph(_packed_jpegs(shards, views), batch, workers)
    while True:
        yield [from_dlpack(output.as_tensor()) for output in pipeline.run()]


def turbo_decode_batches(
    shards: Path, views: Views, batch: int, workers: int, *, writes: bool = False
) -> Iterator[Batch]:
    """The floor by libjpeg-turbo: only the decoding of our packed JPEGs, in threads.

    With `writes` each thread also fills new tensors of the size of a batch's once, as fast as the memory takes it.
    """
    import simplejpeg

    streams = _packed_jpegs(shards, views)

    def decode(part: list[Array]) -> list[Tensor]:
        decoded = [torch.from_numpy(simplejpeg.decode_jpeg(stream)) for stream in part]
        if not writes:
            return decoded
        written = [torch.full((len(part), channels, CROP, CROP), 1.0) for channels in (3, 1, 3, 1)]
        return [*decoded, *written, torch.full((len(part), 1, CROP, CROP), True)]

    with ThreadPoolExecutor(workers) as pool:
        pending = deque[Future[list[Tensor]]]()
        while True:
            while len(pending) <= workers:
                pending.append(pool.submit(decode, list(islice(streams, batch))))
            yield [pending.popleft().result()]


def _packed_jpegs(shards: Path, views: Views) -> Iterator[Array]:
    from fastssl.shards import JPEG, ShardSet

    packed = ShardSet(shards)
    return (packed.member(view.sample, JPEG) for view in views)


def fastssl_batches(shards: Path, views: Views, batch: int, workers: int) -> Iterator[Batch]:
    """Ours, from packed shards."""
    from fastssl.batch import PLANES
    from fastssl.config import AugmentConfig, DataConfig
    from fastssl.loader import (
        LoaderOptions,
        Mixture,
        RankSlice,
        ViewSettings,
        centre_views,
        endless_plan,
        load_batches,
    )
    from fastssl.shards import ShardSet

    packed = Mixture([ShardSet(shards)])
    data = DataConfig(size=CROP, gray="off", window=(CROP / STRETCHED, CROP / STRETCHED))
    settings = ViewSettings(data=data, augment=AugmentConfig(), stored=packed.image_size)
    plan = endless_plan(settings, RankSlice(order=packed.order(seed=0, stream=0), batch_size=batch))
    if views.fixed:
        top, left, flip = (np.full(batch, value) for value in views.fixed)
        seen = replace(centre_views(settings, np.arange(batch)), top=top, left=left, flip=flip)
        plan = replace(plan, steps=cycle([(np.arange(batch), seen)]))
    options = LoaderOptions(device=torch.device("cpu"), threads=workers)
    for made in load_batches(packed, plan, options, PLANES):
        yield made.image, made.depth, made.normal, made.edge, made.valid


LOADERS: dict[str, tuple[Callable[..., Iterator[Batch]], tuple[str, ...]]] = {
    "torch": (torch_batches, ("cv2",)),
    "webdataset": (webdataset_batches, ("webdataset", "cv2")),
    "spdl": (spdl_batches, ("spdl.pipeline", "cv2")),
    "dali": (dali_batches, ()),
    "fastssl": (fastssl_batches, ()),
    "decode-turbo": (turbo_decode_batches, ("simplejpeg",)),
    "decode-write": (partial(turbo_decode_batches, writes=True), ("simplejpeg",)),
    "decode-dali": (dali_decode_batches, ()),
}
"""Each loader and the modules that it needs beside the project's own."""


FAST_CODECS = ("simplejpeg", "imagecodecs")


def missing_modules(name: str, codecs: str | None = None) -> list[str]:
    """The modules that a loader needs, with these codecs, and this Python does not have."""
    needed = LOADERS[name][1] + (FAST_CODECS if codecs == "fast" else ())
    return [module for module in needed if importlib.util.find_spec(module.partition(".")[0]) is None]


def open_loader(name: str, data: Path, samples: int, form: str, settings: Settings) -> Iterator[Batch]:
    """Endless batches of one loader.

    Args:
        name: of `LOADERS`.
        data: folder that `loader_data.prepare` filled.
        samples: number of samples in it.
        form: which files the peers read, `source` or `resized`; without a meaning for the others.
        settings: as in `loader_protocol`; what is not `fixed` goes to the loader's function.
    """
    files = resized_files(data, samples) if form == "resized" else source_files(data, samples)
    rest = {key: value for key, value in settings.items() if key != "fixed"}
    views = Views(samples, tuple(settings["fixed"]) if settings.get("fixed") else None)
    reads_files = name in ("torch", "webdataset", "spdl", "dali")
    return LOADERS[name][0](files if reads_files else data / "shards", views, **rest)


if __name__ == "__main__":
    loader, folder, count, kind = sys.argv[1:]
    serve(partial(open_loader, loader, Path(folder), int(count), kind))
