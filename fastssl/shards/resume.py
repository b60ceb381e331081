"""Continuing a packing that was interrupted, in whatever way.

While a packing is under way the folder ``.packing`` of the output holds its plan, and one record per finished shard
with all that the manifest needs of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from fastssl.errors import DataError, UsageError
from fastssl.faults import is_gone
from fastssl.shards.index import CHECKSUMS, INDEX, beside
from fastssl.shards.manifest import MANIFEST, Manifest, ShardEntry, parse_manifest
from fastssl.shards.output import Output
from fastssl.shards.plan import Identity, Plan
from fastssl.shards.statistics import Count, Part, Statistics

log = logging.getLogger(__name__)

STATE = ".packing"
"""Folder in the output with the plan and the records of the finished shards, while a packing is under way."""

_PLAN = f"{STATE}/plan.json"
_LISTED_CLASSES = 5


class ShardRecord(Part):
    """Facts about a finished shard that its files do not hold."""

    number: Count
    references: Count
    listing: str
    """Digest of the references, so that a source that changed is noticed."""
    entry: ShardEntry | None
    """None: not one of its samples could be used, and there is no such shard."""
    companions: dict[str, str]
    """SHA-256 of the files beside the archive, by their names."""
    statistics: Statistics
    quarantined: list[tuple[str, str]]
    """Reference and reason."""


def finished_shard(output: Output, source: Path, number: int, references: list[str]) -> ShardRecord | None:
    """The record of a shard that an earlier packing finished and that is still whole.

    Raises:
        DataError: it was packed from other references.
    """
    content = output.read(_record_name(number))
    if content is None:
        return None
    try:
        record = ShardRecord.model_validate_json(content)
    except ValidationError:
        log.warning("%s/%s is damaged; its shard is packed again", output, _record_name(number))
        return None
    if record.listing != listing_digest(references):
        raise DataError(
            "the dataset has changed since its packing was interrupted",
            where=f"{source}: {references[0]} to {references[-1]}",
            hint="pack it into another folder, from the beginning",
        )
    return record if record.entry is None or _is_whole(output, record, record.entry) else None


def _is_whole(output: Output, record: ShardRecord, entry: ShardEntry) -> bool:
    """All files of a shard are there as they were written; of a store's archive, the size is compared alone."""
    is_damaged = output.size(entry.name) != entry.bytes or output.sha256(entry.name) not in (None, entry.sha256)
    damaged = [entry.name] if is_damaged else []
    for name, sha256 in record.companions.items():
        content = _content(output, name)
        if content is None or hashlib.sha256(content).hexdigest() != sha256:
            damaged.append(name)
    if damaged:
        log.warning("%s: %s missing or damaged; the shard is packed again", output, ", ".join(damaged))
    return not damaged


def _content(output: Output, name: str) -> bytes | None:
    """A file's content; None where there is no file of that name, or something that is no file."""
    try:
        return output.read(name)
    except OSError as error:
        if not is_gone(error):
            raise
        return None


def write_record(output: Output, record: ShardRecord) -> None:
    """Note that a shard is finished; to be called when all of its files are there."""
    with output.write(_record_name(record.number)) as file:
        file.write(record.model_dump_json().encode() + b"\n")


def _record_name(number: int) -> str:
    return f"{STATE}/{number:06d}.json"


def listing_digest(references: list[str]) -> str:
    """Digest of the references that a shard is packed from."""
    digest = hashlib.blake2b(digest_size=16)
    for reference in references:
        digest.update(os.fsencode(reference) + b"\0")
    return digest.hexdigest()


def claim(output: Output, plan: Plan, *, resume: bool) -> Manifest | None:
    """Make sure that the output is free, or holds what `resume` may continue; its manifest if it is complete."""
    names = output.names()
    if not names:
        return None
    if MANIFEST not in names and STATE not in names:
        raise UsageError(
            "an output folder that already holds something cannot be packed into",
            where=str(output),
            seen=names[0],
            expected="an empty folder, or none",
            hint="choose another folder",
        )
    if not resume:
        if MANIFEST not in names:
            with output.alone():
                pass  # an error tells of a packing that is still at it
        state = "a packed dataset" if MANIFEST in names else "a packing that was interrupted"
        raise UsageError(
            f"the output folder already holds {state}",
            where=str(output),
            hint="choose another folder, or continue it with --resume",
        )
    return _claim_again(output, plan, complete=MANIFEST in names)


def _claim_again(output: Output, plan: Plan, *, complete: bool) -> Manifest | None:
    if complete:
        manifest = parse_manifest(output.read(MANIFEST) or b"", f"{output}/{MANIFEST}")
        before = Plan(
            source=Identity(**{name: getattr(manifest, name) for name in Identity.model_fields}),
            settings=manifest.settings,
            labelled=manifest.statistics.camera is not None,
            versions=manifest.versions,
            classes=manifest.classes,
        )
    else:
        manifest = None
        # Without a plan it was killed between making the folder and writing the plan: nothing was packed yet.
        before = _read_plan(output) or plan
    _check_same(plan, before, output)
    _check_classes(plan, before, output)
    if manifest is not None:
        _check_sizes(output, manifest)
    if manifest is not None and STATE in output.names():
        with output.alone():
            output.remove_partial()
            output.remove(STATE)
    return manifest


def _check_sizes(output: Output, manifest: Manifest) -> None:
    """A glance at what is called complete: no file is missing, and no archive has another size.

    Raises:
        DataError: one is not as it was packed.
    """
    for entry in manifest.shards:
        for name in (entry.name, *(beside(entry.name, suffix) for suffix in (INDEX, CHECKSUMS))):
            size = output.size(name)
            if size is None or (name == entry.name and size != entry.bytes):
                raise DataError(
                    "the packed dataset is complete, but no longer whole",
                    where=f"{output}/{name}",
                    seen="no such file" if size is None else f"{size} bytes",
                    expected=f"{entry.bytes} bytes" if name == entry.name else "the file",
                    hint="look at it with fastssl verify, then pack it again into another folder",
                )


def begin(output: Output, plan: Plan, *, resume: bool) -> None:
    """Leave the plan in the output, which nobody else writes to now."""
    if resume:
        output.remove_partial()
    elif output.names():
        raise UsageError("another packing began to write into the output folder", where=str(output))
    if not resume or output.read(_PLAN) is None:
        with output.write(_PLAN) as file:
            file.write(plan.model_dump_json(by_alias=True).encode() + b"\n")


def _read_plan(output: Output) -> Plan | None:
    content = output.read(_PLAN)
    if content is None:
        return None
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        raise UsageError(
            "the plan of the packing that was interrupted is damaged, or of another version",
            where=f"{output}/{_PLAN}",
            seen=error.errors(include_url=False)[0]["msg"],
            hint="remove the output folder, and pack again from the beginning",
        ) from error


def _check_classes(plan: Plan, before: Plan, output: Output) -> None:
    """Refuse other numbers of classes; a dataset that was packed before they were noted is not doubted."""
    if before.classes is None or plan.classes == before.classes:
        return
    now = plan.classes or {}
    names = sorted(name for name in now.keys() | before.classes.keys() if now.get(name) != before.classes.get(name))
    raise DataError(
        "the classes are not those that the packing was begun with",
        where=str(output),
        seen=_table(now, names),
        expected=_table(before.classes, names),
        hint="bring the folders of classes back to what they were, or pack into another folder from the beginning",
    )


def _table(classes: Mapping[str, int], names: list[str]) -> str:
    shown = ", ".join(f"{name} {classes.get(name, 'not there')}" for name in names[:_LISTED_CLASSES])
    return shown + (f" and {len(names) - _LISTED_CLASSES} more" if len(names) > _LISTED_CLASSES else "")


def _check_same(plan: Plan, before: Plan, output: Output) -> None:
    wanted, there = _chosen(plan), _chosen(before)
    for name in dict.fromkeys([*wanted, *there]):
        if wanted.get(name) != there.get(name):
            raise UsageError(
                "the packing was begun with other settings",
                where=f"{output}: {name}",
                seen=wanted.get(name),
                expected=there.get(name),
                hint="continue it with the settings that it was begun with, or choose another folder",
            )


def _chosen(plan: Plan) -> dict[str, object]:
    """The values of a plan by their names; the codec of images comes first, as others follow from it."""
    codec = {"settings.image_codec": plan.settings.image_codec}  # which a dump leaves out where it is JPEG
    return codec | _flat(plan.model_dump(exclude={"classes"}))


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        flat |= inner
    return flat
