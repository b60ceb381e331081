"""Packing: any source of records into shards.

One shard is one task. Its bytes depend on its references and the settings alone, so any number of workers writes the
same dataset; and as only a bounded number of tasks is under way, memory does not grow with the number of samples.
"""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import lz4
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

import fastssl
from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError, DeviceError, UsageError
from fastssl.files import complete_or_absent
from fastssl.geometry import contours, resized_camera
from fastssl.shards.codec import LZ4_LEVEL, encode_labels
from fastssl.shards.manifest import (
    JPEG,
    LABEL,
    LABELS,
    MANIFEST,
    QUARANTINE,
    Camera,
    CameraRange,
    Domain,
    Manifest,
    MemberBytes,
    Settings,
    ShardEntry,
    manifest_bytes,
    members,
)
from fastssl.shards.tar import ShardFile

log = logging.getLogger(__name__)

Members = list[tuple[str, bytes]]


class Source(Protocol):
    """A dataset on disk.

    It travels to worker processes, so it pickles. One that also has a length gives `progress` a total.
    """

    @property
    def layout(self) -> str:
        """Name of the way in which the files lie."""

    @property
    def domain(self) -> Domain: ...

    @property
    def path(self) -> Path: ...

    @property
    def licence(self) -> str: ...

    def references(self) -> Iterator[str]:
        """What `read` takes, one per sample: streamed, cheap, and in the same order every time."""

    def read(self, reference: str) -> Record:
        """One sample.

        Raises:
            DataError: it cannot be used; the error names the file and the reason.
        """


def pack(
    source: Source,
    out: Path,
    *,
    size: int = 256,
    workers: int = 1,
    samples_per_shard: int = 1000,
    jpeg_quality: int = 95,
    licence: str | None = None,
    max_bad: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Manifest:
    """Pack a dataset into shards of squares of `size` pixels.

    The whole image is stretched to the square (Lanczos; label planes by the nearest pixel, contours are taken from
    the stretched instance map), and the camera with it. Normals stay as they are: they belong to the camera's frame,
    which a stretched image shares. Each JPEG is decoded once before it goes into a shard.

    Args:
        workers: processes; the bytes do not depend on their number.
        licence: of the images; the source's own if None.
        max_bad: unusable images that are left out and listed in `quarantine.jsonl`, before packing stops.
        progress: called after each shard with the samples done and, where the source knows, their number.

    Raises:
        UsageError: `out` holds something already, which is left untouched, or an argument is out of range.
        DataError: the source has no samples, or more than `max_bad` of them cannot be used.
        DeviceError: a worker process died.
    """
    settings = _settings(size, workers, samples_per_shard, jpeg_quality, max_bad)
    references = source.references()
    first = next(references, None)
    if first is None:
        raise DataError("the dataset holds no samples", where=source.path)
    _claim(out)
    packing = _Packing(source, out, size, settings, max_bad)
    dataset, entries = _pack_all(packing, chain([first], references), workers, progress)
    if not entries:
        raise DataError("no image of the dataset can be used", where=source.path, seen=dataset.quarantined[0][1])
    manifest = _manifest(packing, licence, dataset, entries)
    if dataset.quarantined:
        log.warning("%d images could not be used; %s lists them", len(dataset.quarantined), out / QUARANTINE)
        with complete_or_absent(out / QUARANTINE) as file:
            file.writelines(_quarantine_line(*entry) for entry in dataset.quarantined)
    with complete_or_absent(out / MANIFEST) as file:
        file.write(manifest_bytes(manifest))
    return manifest


@dataclass(slots=True)
class _Tally:
    """What the manifest says about all samples together; of one sample, a shard, or the dataset."""

    member_bytes: dict[str, MemberBytes] = field(default_factory=dict)
    camera: CameraRange | None = None
    classes: int = 0
    quarantined: list[tuple[str, str]] = field(default_factory=list)
    """Reference and reason."""

    def merge(self, other: _Tally) -> None:
        for name, new in other.member_bytes.items():
            old = self.member_bytes.get(name)
            self.member_bytes[name] = new if old is None else _merged_bytes(old, new)
        if self.camera is None or other.camera is None:
            self.camera = self.camera or other.camera
        else:
            low, high = _columns(self.camera.min, other.camera.min), _columns(self.camera.max, other.camera.max)
            self.camera = CameraRange(
                min=Camera(**{name: min(pair) for name, pair in low.items()}),
                max=Camera(**{name: max(pair) for name, pair in high.items()}),
            )
        self.classes = max(self.classes, other.classes)
        self.quarantined += other.quarantined


@dataclass(frozen=True, slots=True)
class _Shard:
    entry: ShardEntry | None
    """None: not one of its images could be used, and there is no such shard."""
    tally: _Tally
    references: int


@dataclass(frozen=True, slots=True)
class _Packing:
    """What all shards have in common; goes to the workers."""

    source: Source
    out: Path
    size: int
    settings: Settings
    max_bad: int

    def shard(self, number: int, references: list[str]) -> _Shard:
        """Write one shard and its index."""
        tally = _Tally()
        samples = self._samples(references, tally)
        first = next(samples, None)
        if first is None:
            return _Shard(None, tally, len(references))
        archive = self.out / f"{number:06d}.tar"
        with complete_or_absent(archive) as file:
            shard = ShardFile(file)
            for key, content in chain([first], samples):
                shard.add(key, content)
            shard.finish()
            # First the index, so that an archive under its final name always has one.
            with complete_or_absent(archive.with_suffix(".idx")) as index:
                index.write(shard.index())
        entry = ShardEntry(name=archive.name, samples=shard.samples, bytes=shard.num_bytes, sha256=shard.sha256)
        return _Shard(entry, tally, len(references))

    def _samples(self, references: list[str], tally: _Tally) -> Iterator[tuple[str, Members]]:
        for reference in references:
            try:
                record = self.source.read(reference)
                content, sample = self._members(record, reference)
            except DataError as error:
                if self.max_bad == 0:
                    raise
                reason = error.what if error.seen is None else f"{error.what}: {error.seen}"
                tally.quarantined.append((reference, reason))
                continue
            tally.merge(sample)
            yield record.key, content

    def _members(self, record: Record, reference: str) -> tuple[Members, _Tally]:
        height, width = _checked_shape(record, self.source.domain, reference)
        tally = _Tally()
        content: Members = [(JPEG, _proven_jpeg(record.image, self.size, self.settings, reference))]
        if self.source.domain == "synthetic":
            # _checked_shape has seen that all planes are there.
            assert record.depth is not None
            assert record.normal is not None
            assert record.instance is not None
            assert record.camera is not None
            depth, normal, instance = (
                _nearest(plane, self.size) for plane in (record.depth, record.normal, record.instance)
            )
            content.append((LABELS, encode_labels(depth, normal, contours(instance))))
            camera = _camera(resized_camera(record.camera, self.size / width, self.size / height))
            tally.camera = CameraRange(min=camera, max=camera)
        if record.label is not None:
            content.append((LABEL, str(int(record.label)).encode("ascii")))
            tally.classes = int(record.label) + 1
        for name, member in content:
            count = len(member)
            tally.member_bytes[name] = MemberBytes(count=1, total=count, min=count, max=count)
        return content, tally


def _settings(size: int, workers: int, samples_per_shard: int, jpeg_quality: int, max_bad: int) -> Settings:
    ranges = {
        "size": (size, 1, 65500),  # JPEG's largest side
        "workers": (workers, 1, None),
        "samples_per_shard": (samples_per_shard, 1, None),
        "jpeg_quality": (jpeg_quality, 1, 100),
        "max_bad": (max_bad, 0, None),
    }
    for name, (value, low, high) in ranges.items():
        if value < low or (high is not None and value > high):
            expected = f"{low} to {high}" if high is not None else f"{low} or more"
            raise UsageError("a packing setting is out of range", where=name, seen=value, expected=expected)
    return Settings(jpeg_quality=jpeg_quality, lz4_level=LZ4_LEVEL, samples_per_shard=samples_per_shard)


def _claim(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = next(out.iterdir(), None)
    except OSError as error:
        raise UsageError("the output folder cannot be used", where=out, seen=error.strerror) from error
    if taken is not None:
        raise UsageError(
            "an output folder that already holds something cannot be packed into",
            where=out,
            seen=taken.name,
            expected="an empty folder, or none",
            do="choose another folder, or remove this one",
        )


def _pack_all(
    packing: _Packing,
    references: Iterator[str],
    workers: int,
    progress: Callable[[int, int | None], None] | None,
) -> tuple[_Tally, list[ShardEntry]]:
    dataset, entries, done = _Tally(), list[ShardEntry](), 0
    total = len(packing.source) if isinstance(packing.source, Sized) else None
    if total is not None:
        workers = max(1, min(workers, math.ceil(total / packing.settings.samples_per_shard)))
    with closing(_run(packing, references, workers)) as shards:
        for shard in shards:
            dataset.merge(shard.tally)
            _check_bad(dataset, packing.max_bad, packing.source)
            if shard.entry is not None:
                entries.append(shard.entry)
            done += shard.references
            if progress is not None:
                progress(done, total)
    return dataset, entries


def _check_bad(tally: _Tally, max_bad: int, source: Source) -> None:
    if len(tally.quarantined) > max_bad:
        reference, reason = tally.quarantined[max_bad]
        raise DataError(
            f"too many images cannot be used, {reference} is one more than allowed ({reason})",
            where=source.path,
            seen=f"{len(tally.quarantined)} or more",
            expected=f"at most {max_bad}",
            do="mend or remove them, or allow more with --max-bad",
        )


def _run(packing: _Packing, references: Iterator[str], workers: int) -> Generator[_Shard, None, None]:
    """All shards, in their order."""
    per_shard = packing.settings.samples_per_shard
    tasks = enumerate(iter(lambda: list(islice(references, per_shard)), []))
    if workers == 1:
        for number, chunk in tasks:
            yield packing.shard(number, chunk)
        return
    pending: deque[Future[_Shard]] = deque()
    # Spawned, because a fork would copy whatever threads and locks the caller holds.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_parent)
    try:
        for number, chunk in tasks:
            pending.append(pool.submit(packing.shard, number, chunk))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise DeviceError(
            "a packing worker ended unexpectedly",
            where=packing.out,
            do="it may have run out of memory: use fewer workers",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _manifest(packing: _Packing, licence: str | None, tally: _Tally, shards: list[ShardEntry]) -> Manifest:
    camera = tally.camera
    formats = members(packing.source.domain, packing.size, packing.size, has_classes=LABEL in tally.member_bytes)
    return Manifest(
        domain=packing.source.domain,
        layout=packing.source.layout,
        source=packing.source.path.resolve().name,
        licence=packing.source.licence if licence is None else licence,
        samples=sum(shard.samples for shard in shards),
        height=packing.size,
        width=packing.size,
        classes=tally.classes,
        camera=camera.min if camera is not None and camera.min == camera.max else camera,
        quarantined=len(tally.quarantined),
        members=formats,
        member_bytes={name: tally.member_bytes[name] for name in formats},
        settings=packing.settings,
        versions={
            "fastssl": fastssl.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "libjpeg-turbo": features.version_feature("libjpeg_turbo") or "none",
            "lz4": lz4.__version__,
            "liblz4": lz4.library_version_string(),
        },
        shards=shards,
    )


def _checked_shape(record: Record, domain: Domain, reference: str) -> tuple[int, int]:
    """Height and width of a record that is fit to be packed."""
    image = record.image
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError("an image is not RGB of 8 bits", where=reference, seen=f"{image.dtype} of shape {image.shape}")
    height, width = image.shape[:2]
    if record.label is not None and record.label < 0:
        raise DataError("a class number is negative", where=reference, seen=record.label, expected="0 or more")
    if domain == "synthetic":
        shapes = {"depth": (height, width), "normal": (height, width, 3), "instance": (height, width)}
        for name, expected in shapes.items():
            plane: NDArray[Any] | None = getattr(record, name)
            if plane is None or plane.shape != expected:
                seen = "none" if plane is None else f"shape {plane.shape}"
                raise DataError(
                    f"a synthetic sample has no usable {name}", where=reference, seen=seen, expected=expected
                )
        if record.camera is None:
            raise DataError("a synthetic sample has no camera", where=reference)
    return height, width


def _proven_jpeg(image: NDArray[np.uint8], size: int, settings: Settings, reference: str) -> bytes:
    squashed = Image.fromarray(image)
    if squashed.size != (size, size):
        squashed = squashed.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = BytesIO()
    squashed.save(buffer, "JPEG", quality=settings.jpeg_quality, subsampling=settings.jpeg_subsampling)
    try:
        with Image.open(buffer, formats=["JPEG"]) as proof:
            proof.load()
    except OSError as error:
        raise DataError("an image was packed but cannot be decoded", where=reference, seen=str(error)) from error
    return buffer.getvalue()


def _nearest(plane: NDArray[Any], size: int) -> NDArray[Any]:
    rows, columns = (((np.arange(size) + 0.5) * side / size).astype(np.intp) for side in plane.shape[:2])
    nearest: NDArray[Any] = plane[rows[:, None], columns[None, :]]
    return nearest


def _camera(camera: Intrinsics) -> Camera:
    return Camera(fx=float(camera.fx), fy=float(camera.fy), cx=float(camera.cx), cy=float(camera.cy))


def _columns(*cameras: Camera) -> dict[str, list[float]]:
    return {name: [getattr(camera, name) for camera in cameras] for name in Camera.model_fields}


def _merged_bytes(old: MemberBytes, new: MemberBytes) -> MemberBytes:
    return MemberBytes(
        count=old.count + new.count,
        total=old.total + new.total,
        min=min(old.min, new.min),
        max=max(old.max, new.max),
    )


def _quarantine_line(reference: str, reason: str) -> bytes:
    return (json.dumps({"reference": reference, "reason": reason}) + "\n").encode("ascii")
