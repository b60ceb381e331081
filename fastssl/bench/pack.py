"""What packing takes on this machine: each step of a sample by itself, and a packing as it is."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastssl.batch import Record
from fastssl.bench.rates import num_cores, processor_name
from fastssl.errors import DataError
from fastssl.files import complete_or_absent
from fastssl.shards import Source, pack
from fastssl.shards.archive import ShardFile
from fastssl.shards.codec import TargetLayout, compressed, inflate, target_block, unpack_targets
from fastssl.shards.encode import Encoder, Members
from fastssl.shards.image_codec import decoded_as_loaded
from fastssl.shards.manifest import TARGET_MEMBERS, Settings
from fastssl.shards.resample import stretched
from fastssl.shards.settings import PackChoices, packing_settings
from fastssl.shards.writer import Progress
from fastssl.telemetry import Advance

Step = Literal["reading", "image", "targets", "proof", "rest", "writing"]
_WORDS: dict[Step, str] = {
    "reading": "reading the source",
    "image": "resizing and encoding the image",
    "targets": "compressing the target planes",
    "proof": "decoding both again, for proof",
    "rest": "resizing the target planes, contours and statistics",
    "writing": "writing the shard",
}
_TRIED = 16
"""Samples whose steps are measured."""
_SHARDS_EACH = 4
"""Of every worker, so that the first of them, which holds the start of its process, can be left out."""
_WELL_USED = 0.7
"""Of the rate that the steps allow."""

_T = TypeVar("_T")
_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackReport:
    """All figures of a packing."""

    processor: str
    cores: int
    load: float
    """Programs that wanted a core, mean of the minute before."""
    layout: str
    size: int
    """Side of the packed images in pixels."""
    workers: int
    samples: int
    """That were packed."""
    unusable: int
    samples_per_s: float
    megabytes_per_s: float
    bytes_per_sample: float
    """Of the shards."""
    step_ms: dict[Step, float]
    """Of one sample on one core; medians."""

    @property
    def limited_by(self) -> Step:
        """The step that takes longest."""
        return max(self.step_ms, key=lambda step: self.step_ms[step])


def measure_packing(
    source: Source, *, size: int = 256, workers: int = 1, limit: int = 256, progress: Advance | None = None
) -> PackReport:
    """Pack some samples into a temporary folder that is removed again.

    Args:
        size: side of the packed images in pixels.
        workers: processes; what they take to start is left out.
        limit: so many samples at most, from the first.
        progress: called after each shard.

    Raises:
        UsageError: an argument is out of range.
        DataError: the source has no samples, or none that can be used.
    """
    load, _, _ = os.getloadavg()
    references = list(islice(source.references(), limit))
    choices: PackChoices = {
        "size": size,
        "samples_per_shard": max(1, len(references) // (_SHARDS_EACH * workers)),
        "limit": limit,
    }
    settings = packing_settings(source, **choices)
    with tempfile.TemporaryDirectory(prefix="fastssl-bench-") as folder:
        steps = _steps(source, settings, references[:: max(1, len(references) // _TRIED)], Path(folder))
        events: list[tuple[float, Progress]] = []

        def note(now: Progress) -> None:
            events.append((time.perf_counter(), now))
            if progress is not None:
                progress(now.references, len(references))

        started = time.perf_counter()
        manifest = pack(source, Path(folder) / "shards", workers=workers, max_bad=limit, progress=note, **choices)
    samples, num_bytes, seconds = _steady(started, events, workers)
    return PackReport(
        processor=processor_name(),
        cores=num_cores(),
        load=load,
        layout=source.layout,
        size=size,
        workers=workers,
        samples=manifest.samples,
        unusable=manifest.quarantined,
        samples_per_s=samples / seconds,
        megabytes_per_s=num_bytes / seconds / 1e6,
        bytes_per_sample=sum(shard.bytes for shard in manifest.shards) / manifest.samples,
        step_ms=steps,
    )


def _steps(source: Source, settings: Settings, references: Sequence[str], folder: Path) -> dict[Step, float]:
    """Milliseconds of each step, on one thread of this process."""
    encoder = Encoder(settings, source.labelled)
    times, packed = list[dict[Step, float]](), list[tuple[str, Members]]()
    for reference in (*references[:1], *references):  # the first one twice, because something is compiled meanwhile
        try:
            reading, record = _timed(source.read, reference)
            encoding, (members, _) = _timed(encoder.members, record, reference)
        except DataError:
            continue  # the packing counts it
        parts = _encoding(record, dict(members), settings)
        times.append({"reading": reading, **parts, "rest": max(encoding - sum(parts.values()), 0)})
        packed.append((record.key, members))
    if not packed:
        return dict.fromkeys(_WORDS, 0.0)  # the packing says why
    writing, _ = _timed(_write, dict(packed), folder / "steps.tar")
    times = times[1:] or times
    means: dict[Step, float] = {step: statistics.median(time[step] for time in times) for step in times[0]}
    return {step: 1000 * seconds for step, seconds in (means | {"writing": writing / len(dict(packed))}).items()}


def _encoding(record: Record, members: dict[str, bytes], settings: Settings) -> dict[Step, float]:
    """Seconds for a sample's image, its target block, and the decoding of both."""
    size, codec = settings.size, settings.target_codec
    image, stored = _timed(_stored_image, record.image, settings)
    proof, _ = _timed(decoded_as_loaded, settings.images, stored, (size, size))
    if TARGET_MEMBERS[codec] not in members:
        return {"image": image, "targets": 0.0, "proof": proof}
    member = members[TARGET_MEMBERS[codec]]
    laying, block = _timed(target_block, unpack_targets(member, size, size, codec), codec)
    compressing, _ = _timed(compressed, block, codec, settings.lz4_level)
    inflating, _ = _timed(inflate, member, TargetLayout(size, size), block, codec)
    return {"image": image, "targets": laying + compressing, "proof": proof + inflating}


def _stored_image(image: NDArray[np.uint8], settings: Settings) -> bytes:
    return settings.images.encode(np.ascontiguousarray(stretched(image, settings.size)))


def _write(samples: Mapping[str, Members], path: Path) -> None:
    with complete_or_absent(path) as file:
        shard = ShardFile(file)
        for key, members in samples.items():
            shard.add(key, members)
        shard.finish()


def _timed(work: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> tuple[float, _T]:
    started = time.perf_counter()
    result = work(*arguments, **options)
    return time.perf_counter() - started, result


def _steady(started: float, events: Sequence[tuple[float, Progress]], workers: int) -> tuple[int, int, float]:
    """Samples, their bytes and the seconds that they took, from when every worker had made a shard."""
    last, end = events[-1]
    if len(events) <= workers:
        return end.samples, end.num_bytes, last - started
    first, begin = events[workers - 1]
    return end.samples - begin.samples, end.num_bytes - begin.num_bytes, last - first


def packing_table(report: PackReport) -> str:
    """All figures as lines that fit 100 columns, each ending in a line break."""
    lines = [
        f"{report.processor}, {report.cores} cores, {_workers(report)}; layout {report.layout}, "
        f"{report.size} x {report.size}",
        "",
        *(f"{words:52} {report.step_ms[step]:9.2f} ms" for step, words in _WORDS.items()),
        "",
        f"{'samples packed':52} {report.samples:9,} ({report.unusable} unusable)",
        f"{'rate':52} {report.samples_per_s:9,.1f} samples/s",
        f"{'':52} {report.megabytes_per_s:9,.1f} MB/s",
        f"{'size':52} {report.bytes_per_sample / 1000:9,.1f} KB a sample",
    ]
    return "".join(f"{line}\n" for line in lines)


def packing_verdict(report: PackReport) -> tuple[str, ...]:
    """What the figures mean, a sentence each."""
    step, cores, workers = report.limited_by, report.cores, report.workers
    total = sum(report.step_ms.values())
    second = sorted(report.step_ms, key=lambda name: report.step_ms[name])[-2]
    used = report.samples_per_s * total / 1000 / workers
    sentences = [
        f"Packing is limited by {_WORDS[step]}: {report.step_ms[step]:.1f} of the {total:.1f} ms that a sample takes "
        f"({report.step_ms[step] / total:.0%}). Next comes {_WORDS[second]} ({report.step_ms[second] / total:.0%}).",
        f"The rate is {used:.0%} of what these times allow {_workers(report)}.",
    ]
    if workers < cores:
        sentences.append(f"This machine has {cores} cores: --workers {cores} uses them.")
    elif used < _WELL_USED:
        sentences.append("The rest is waiting: for the disk, or for other programs that use the cores.")
    sentences += {
        "reading": ["The time is the source's: faster storage helps, or fewer bytes to read."],
        "image": [f"It grows with the images of the source and with --size, {report.size} now."],
        "writing": ["It is the time of the folder for temporary files; a faster disk for OUT helps."],
    }.get(step, [])
    if report.load > report.cores / 4:
        sentences.append(f"Take this with care: in the minute before, {report.load:.1f} programs wanted a core.")
    return tuple(sentences)


def _workers(report: PackReport) -> str:
    return "1 worker" if report.workers == 1 else f"{report.workers} workers"
