"""Packing: any source of records into shards.

One shard is one task. Its bytes depend on its references and the settings alone, so any number of workers writes the
same dataset; and as only a bounded number of tasks is under way, memory does not grow with the number of samples.

A packing that was interrupted, in whatever way, continues from what `fastssl.shards.resume` keeps of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Unpack

from fastssl.errors import DataError, FastsslError, MachineError, UsageError
from fastssl.faults import is_gone, machine_faults_named, patiently
from fastssl.files import escaped
from fastssl.shards.archive import ShardFile
from fastssl.shards.encode import Encoder, Members
from fastssl.shards.index import beside
from fastssl.shards.manifest import (
    CLASS_INDEX,
    MANIFEST,
    QUARANTINE,
    Manifest,
    Selection,
    ShardEntry,
    manifest_bytes,
    members,
)
from fastssl.shards.output import Output
from fastssl.shards.passed import PassedOver
from fastssl.shards.plan import Plan, plan_of
from fastssl.shards.resume import STATE, ShardRecord, begin, claim, finished_shard, listing_digest, write_record
from fastssl.shards.settings import PackChoices, packing_settings
from fastssl.shards.source import Counting, Source, selected
from fastssl.shards.statistics import Statistics
from fastssl.shards.workers import check_main_guard, in_order, numbered_chunks

log = logging.getLogger(__name__)

_MERGED_AT_ONCE = 256
"""Statistics of samples that are kept apart before they are merged into one."""
_PAUSE_S = 0.1
"""Pause before a listed file that is not there is looked for once more."""
_CONTINUE = "then continue with --resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The progress of a packing."""

    references: int
    """References that are done, packed or left out, counting those of an earlier, interrupted packing."""
    total: int | None
    """Number of all references; None while they are still being counted."""
    samples: int
    num_bytes: int
    quarantined: int


def pack(
    source: Source,
    out: str | Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    licence: str | None = None,
    max_bad: int = 100,
    resume: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **choices: Unpack[PackChoices],
) -> Manifest:
    """Pack a dataset into shards of squares of one size.

    How an image becomes a sample is described at `fastssl.shards.encode.Encoder`. Each sample is decoded once before it
    goes into a shard; one that cannot be read or decoded goes into the quarantine list instead.

    Args:
        out: folder, or an address that fsspec understands, such as ``s3://bucket/rooms``.
        workers: processes; the bytes do not depend on their number.
        ray: address of a Ray cluster that does the work instead (``auto`` for the one this machine belongs to).
        licence: of the images; the source's own if None.
        max_bad: unusable samples that are left out and listed in `quarantine.jsonl`, before packing stops.
        resume: continue what an interrupted packing left in `out`; nothing to do if it is complete.
        progress: called after each shard.
        choices: the fields of `fastssl.shards.PackChoices`, as ``size=256``.

    Raises:
        UsageError: `out` holds something already, which is left untouched; an argument is out of range; or `resume`
            with other settings than before.
        DataError: the source has no samples, more than `max_bad` of them cannot be used, or it changed since the
            packing was interrupted.
        DeviceError: a worker died, the disk is full, or a file system failed for longer than a few tries. What is
            finished can be continued.
    """
    check_main_guard()
    _check(source, workers=(workers, 1), max_bad=(max_bad, 0))
    settings = packing_settings(source, **choices)
    plan = plan_of(source, settings, licence)
    output = Output(str(out))
    with machine_faults_named(hint=_CONTINUE):
        complete = claim(output, plan, resume=resume)
        if complete is not None:
            return complete
        packing = _Packing(source, output, Encoder(settings, source.labelled), max_bad, resume, source.path.exists())
        if next(packing.references(), None) is None:
            raise _no_samples(source, settings.selection)
        with output.alone():
            begin(output, plan, resume=resume)
            passed_over = _in_background(source.passed_over) if isinstance(source, Counting) else None
            with closing(_pack_all(packing, workers, ray, progress)) as records:
                return _finish(packing, plan, records, passed_over)


@dataclass(frozen=True, slots=True)
class _Packing:
    """Facts that all shards share; goes to the workers."""

    source: Source
    output: Output
    encoder: Encoder
    max_bad: int
    resume: bool
    source_is_there: bool
    """The source's folder exists when the packing begins, as that of every dataset on disk does."""

    def references(self) -> Iterator[str]:
        return selected(self.source, self.encoder.settings.selection)

    def shard(self, task: tuple[int, list[str]]) -> ShardRecord:
        """Write one shard, its index and checksums, and last its record; or find that an earlier packing did."""
        number, references = task
        finished = finished_shard(self.output, self.source.path, number, references) if self.resume else None
        if finished is not None:
            return finished
        packed = _Shard()
        samples = self._samples(references, packed)
        first = next(samples, None)
        entry, companions = None, dict[str, bytes]()
        if first is not None:
            entry, companions = self._write_archive(f"{number:06d}.tar", first, samples, packed)
        record = ShardRecord(
            number=number,
            references=len(references),
            listing=listing_digest(references),
            entry=entry,
            companions={name: hashlib.sha256(content).hexdigest() for name, content in companions.items()},
            statistics=packed.statistics,
            quarantined=packed.quarantined,
        )
        write_record(self.output, record)
        return record

    def _write_archive(
        self, name: str, first: tuple[str, Members], rest: Iterator[tuple[str, Members]], packed: _Shard
    ) -> tuple[ShardEntry, dict[str, bytes]]:
        """The archive's entry, and what was written beside it, by its name."""
        with self.output.write(name) as file:
            shard = ShardFile(file)
            shard.add(*first)
            for sample in rest:
                shard.add(*sample)
            shard.finish()
            # First what describes it, so that an archive under its final name always has its index.
            companions = {beside(name, suffix): content for suffix, content in shard.companions().items()}
            for companion, content in companions.items():
                with self.output.write(companion) as file_beside:
                    file_beside.write(content)
        entry = ShardEntry(name=name, samples=shard.samples, bytes=shard.num_bytes, sha256=shard.sha256)
        return entry, companions

    def _samples(self, references: list[str], packed: _Shard) -> Iterator[tuple[str, Members]]:
        for reference in references:
            try:
                key, content, statistics = self._encoded(reference)
            except DataError as error:
                if self.source_is_there and not self.source.path.exists():
                    raise MachineError(
                        "the dataset is gone while it is being packed",
                        where=self.source.path,
                        hint=f"bring it back (is it mounted?), {_CONTINUE}",
                    ) from error
                if self.max_bad == 0:
                    raise
                packed.quarantined.append((escaped(reference), _reason(error, self.source.path)))
                continue
            packed.add(statistics)
            yield key, content

    def _encoded(self, reference: str) -> tuple[str, Members, Statistics]:
        """One sample.

        Raises:
            DataError: what its files hold cannot be used.
            MachineError: the machine failed, and after a few tries still does; that says nothing about the sample.
        """

        def encoded() -> tuple[str, Members, Statistics]:
            record = self.source.read(reference)
            return record.key, *self.encoder.members(record, reference)

        where = f"{self.source.path}/{reference}"
        try:
            return patiently(encoded, where=where, hint=_CONTINUE)
        except DataError as error:
            if not is_gone(error):
                raise
        time.sleep(_PAUSE_S)
        return patiently(encoded, where=where, hint=_CONTINUE)


class _Shard:
    """Statistics and unusable samples, which gather while a shard is written."""

    def __init__(self) -> None:
        self._statistics: list[Statistics] = []
        self.quarantined: list[tuple[str, str]] = []

    def add(self, statistics: Statistics) -> None:
        """Add one more sample's."""
        self._statistics.append(statistics)
        if len(self._statistics) == _MERGED_AT_ONCE:
            self._statistics = [self.statistics]

    @property
    def statistics(self) -> Statistics:
        return Statistics().merged(*self._statistics)


def _check(source: Source, **values: tuple[int, int]) -> None:
    if not hasattr(source, "references"):
        hint = f"give fastssl.open_source({str(source)!r})" if isinstance(source, str | PathLike) else None
        raise UsageError("this is no source", seen=repr(source), expected="a source of samples", hint=hint)
    for name, (value, low) in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < low:
            expected = f"a whole number, {low} or more"
            raise UsageError("a packing setting is out of range", where=name, seen=repr(value), expected=expected)


def _pack_all(
    packing: _Packing, workers: int, ray: str | None, progress: Callable[[Progress], None] | None
) -> Generator[ShardRecord, None, None]:
    """The records of all shards, in their order."""
    tasks = numbered_chunks(packing.references(), packing.encoder.settings.samples_per_shard)
    total = _Total(packing.references) if progress is not None else None
    references = samples = num_bytes = quarantined = 0
    with closing(in_order(packing.shard, tasks, workers=workers, ray=ray)) as records:
        for record in records:
            references += record.references
            quarantined += len(record.quarantined)
            if record.entry is not None:
                samples += record.entry.samples
                num_bytes += record.entry.bytes
            if progress is not None and total is not None:
                progress(
                    Progress(
                        references=references,
                        total=total.count,
                        samples=samples,
                        num_bytes=num_bytes,
                        quarantined=quarantined,
                    )
                )
            yield record


class _Total:
    """A count of the references by a thread, while the first of them are packed already."""

    def __init__(self, references: Callable[[], Iterator[str]]) -> None:
        self.count: int | None = None
        self._references = references
        # A daemon: the count is a convenience, and nothing waits for it.
        threading.Thread(target=self._run, name="fastssl-count", daemon=True).start()

    def _run(self) -> None:
        try:
            self.count = sum(1 for _ in self._references())
        except (FastsslError, OSError, MemoryError):
            return  # the packing itself meets and reports it


def _in_background(count: Callable[[], Mapping[str, PassedOver]]) -> Future[Mapping[str, PassedOver]]:
    """The walk through the source's folder, beside the packing."""
    result = Future[Mapping[str, PassedOver]]()

    def walk() -> None:
        try:
            result.set_result(count())
        except Exception as error:
            result.set_exception(error)

    threading.Thread(target=walk, name="fastssl-passed-over", daemon=True).start()
    return result


def _finish(
    packing: _Packing,
    plan: Plan,
    records: Iterable[ShardRecord],
    passed_over: Future[Mapping[str, PassedOver]] | None,
) -> Manifest:
    """Gather the records into quarantine list and manifest."""
    statistics, entries, num_quarantined = Statistics(), list[ShardEntry](), 0
    first_reason = ""
    with tempfile.TemporaryFile() as quarantine:
        for record in records:
            statistics = statistics.merged(record.statistics)
            if record.entry is not None:
                entries.append(record.entry)
            for reference, reason in record.quarantined:
                num_quarantined += 1
                first_reason = first_reason or reason
                if num_quarantined > packing.max_bad:
                    raise _too_many(packing, reference, reason)
                quarantine.write(_quarantine_line(reference, reason))
        if not entries:
            raise DataError("no image of the dataset can be used", where=packing.source.path, seen=first_reason)
        if num_quarantined:
            log.warning("%d images could not be used; %s/%s lists them", num_quarantined, packing.output, QUARANTINE)
            quarantine.seek(0)
            with packing.output.write(QUARANTINE) as file:
                shutil.copyfileobj(quarantine, file)
    _warn_of_unknown(statistics)
    passed = None if passed_over is None else dict(passed_over.result())
    manifest = _manifest(plan, statistics, entries, num_quarantined, passed)
    with packing.output.write(MANIFEST) as file:
        file.write(manifest_bytes(manifest))
    packing.output.remove(STATE)
    return manifest


def _warn_of_unknown(statistics: Statistics) -> None:
    """Tell of planes without a single known pixel: what is packed so teaches nothing."""
    for name, words in (
        ("depth", "no depth is known"),
        ("normal", "no normal is known"),
        ("edge", "no contour is there"),
    ):
        if name in statistics.planes and statistics.planes[name].known == 0:
            log.warning("%s in any sample: look whether the dataset's files are what its layout says", words)


def _no_samples(source: Source, selection: Selection) -> DataError:
    if next(source.references(), None) is None:
        return DataError("the dataset holds no samples", where=source.path)
    low, high = selection.part
    return DataError(
        "none of the dataset's samples falls into this part of the split",
        where=source.path,
        seen=f"no key whose place is from {low:g} to below {high:g}",
        hint="give the part a larger fraction, or leave the small dataset whole",
    )


def _too_many(packing: _Packing, reference: str, reason: str) -> DataError:
    return DataError(
        f"too many images cannot be used, {reference} is one more than allowed ({reason})",
        where=packing.source.path,
        seen=f"{packing.max_bad + 1} or more",
        expected=f"at most {packing.max_bad}",
        hint="allow more with --max-bad and --resume; or mend them, and pack into another folder from the beginning",
    )


def _manifest(
    plan: Plan,
    statistics: Statistics,
    shards: list[ShardEntry],
    quarantined: int,
    passed_over: dict[str, PassedOver] | None,
) -> Manifest:
    size = plan.settings.size
    formats = members(
        size,
        size,
        has_targets=plan.labelled,
        has_classes=CLASS_INDEX in statistics.member_bytes,
        settings=plan.settings,
    )
    in_order_of_members = {name: statistics.member_bytes[name] for name in formats}
    return Manifest(
        version=plan.settings.images.version,
        **plan.source.model_dump(),
        samples=sum(shard.samples for shard in shards),
        height=size,
        width=size,
        quarantined=quarantined,
        passed_over=passed_over,
        classes=plan.classes,
        members=formats,
        statistics=statistics.model_copy(update={"member_bytes": in_order_of_members}),
        settings=plan.settings,
        versions=plan.versions,
        shards=shards,
    )


def _reason(error: DataError, top: Path) -> str:
    """The line's reason: what happened, in which file below the source, and what was seen there."""
    where = "" if error.where is None else f" ({error.where})"
    seen = "" if error.seen is None else f": {error.seen}"
    # Nothing that is packed may depend on where the source lies.
    return escaped(f"{error.what}{where}{seen}".replace(f"{top}/", ""))


def _quarantine_line(reference: str, reason: str) -> bytes:
    return (json.dumps({"reference": reference, "reason": reason}) + "\n").encode("ascii")
