"""Proof that a packed dataset is whole: every file, every byte of the archives, every sample.

Not covered, because nothing else in a dataset implies it: in the manifest the values of layout, source, licence,
versions, settings.lz4_level, settings.selection.subset and statistics.camera, and the words of every `meaning`; in the
quarantine list the words of references and reasons.
"""

from __future__ import annotations

import json
import os
import re
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import simplejpeg

from fastssl.addresses import is_remote, local_path
from fastssl.errors import ShardError
from fastssl.files import PARTIAL
from fastssl.shards.fetch import RemoteFiles
from fastssl.shards.index import CHECKSUMS, INDEX, beside, salvaged_index
from fastssl.shards.local import LocalFolder
from fastssl.shards.manifest import MANIFEST, QUARANTINE, Manifest, ShardEntry, manifest_bytes
from fastssl.shards.proof import (
    HASH_BYTES,
    Content,
    Fault,
    Faults,
    ShardFindings,
    ShardProof,
    content_of,
    held,
    key_hash,
    unusable,
)
from fastssl.shards.resume import STATE
from fastssl.shards.statistics import Statistics
from fastssl.shards.store import StoredFiles
from fastssl.shards.workers import in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Result of checking a packed dataset."""

    samples: int
    """Samples that were found in the archives."""
    shards: int
    """Archives that were there to be read."""
    num_bytes: int
    """Size of these archives."""
    faults: list[Fault]
    """Faults of the whole dataset, then in the order of the shards; of each at most `fastssl.shards.proof.LISTED`."""
    unlisted: dict[str, int]
    """Number of further faults, by shard; those of the dataset as a whole count for the manifest."""
    names_checked: bool
    """Files that nothing promises were looked for; False for a store that does not list its files."""

    @property
    def num_faults(self) -> int:
        return len(self.faults) + sum(self.unlisted.values())


def verify(
    path: str | os.PathLike[str], *, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Check a packed dataset against its manifest and against itself, and decode every sample.

    Reads every archive once. A damaged shard does not keep the others from being checked. Memory grows by eight bytes
    per sample, for the proof that no key comes twice.

    Args:
        path: folder of the dataset, or the address of one that fsspec knows. Each remote shard is fetched as it is
            in the store, past any cache, and looked at in a temporary copy.
        workers: processes that check shards side by side.
        progress: called after each shard with the number of samples that are done, and of all.

    Raises:
        DataError: there is no manifest, or it is not valid, so that nothing says what the other files should be; or a
            store that does not answer.
        MachineError: the file system does not give a file. That is no fault of the dataset.
        DeviceError: a worker died.
    """
    files: StoredFiles = RemoteFiles(os.fspath(path)) if is_remote(path) else LocalFolder(local_path(path))
    manifest, names = files.manifest(), files.names()
    whole = Faults(MANIFEST)
    if names is not None:
        _check_names(names, manifest, whole)
    _check_manifest(content_of(files, MANIFEST), manifest, whole)
    _check_quarantine(content_of(files, QUARANTINE), manifest, whole)
    found, done = _Found(manifest), 0
    proof = ShardProof(files, manifest.height, manifest.width, tuple(manifest.members), manifest.settings)
    with closing(in_order(proof.findings, manifest.shards, workers=workers)) as results:
        for entry, findings in zip(manifest.shards, results, strict=True):
            found.add(entry, findings)
            done += entry.samples
            if progress is not None:
                progress(done, manifest.samples)
    _check_keys(files, manifest, found.hashes, whole)
    if not found.faults:
        _check_statistics(manifest, found.statistics, whole)
    unlisted = Counter({MANIFEST: whole.num_unlisted}) + found.unlisted
    return Report(
        samples=found.samples,
        shards=found.shards,
        num_bytes=found.num_bytes,
        faults=[*whole.listed, *found.faults],
        unlisted=dict(unlisted),
        names_checked=names is not None,
    )


class _Found:
    """The findings of all shards together."""

    def __init__(self, manifest: Manifest) -> None:
        self._owners = {entry.sha256: entry.name for entry in manifest.shards}
        self.faults: list[Fault] = []
        self.unlisted = Counter[str]()
        self.statistics = Statistics()
        self.hashes = array("Q")
        self.samples = self.shards = self.num_bytes = 0

    def add(self, entry: ShardEntry, findings: ShardFindings) -> None:
        self.samples += len(findings.hashes) // HASH_BYTES
        if findings.num_bytes is not None:
            self.shards += 1
            self.num_bytes += findings.num_bytes
        owner = self._owners.get(findings.sha256, entry.name)
        if findings.sha256 != entry.sha256 and owner != entry.name:
            # All else that is wrong follows from this.
            self.faults.append(Fault(file=entry.name, what="the file is another shard of the dataset", seen=owner))
            return
        self.faults += findings.faults.listed
        self.unlisted[entry.name] += findings.faults.num_unlisted
        self.statistics = self.statistics.merged(findings.statistics)
        self.hashes.frombytes(findings.hashes)


def _check_names(names: list[str], manifest: Manifest, faults: Faults) -> None:
    """Files that nothing promises. Those that are missing are noticed where they are read."""
    promised = {MANIFEST, QUARANTINE}
    for entry in manifest.shards:
        promised |= {entry.name, beside(entry.name, INDEX), beside(entry.name, CHECKSUMS)}
    for name in sorted(names):
        if name == STATE:
            faults.add("the state of a packing that was interrupted was left behind", file=name)
        elif name.endswith(PARTIAL):
            faults.add("what a killed process was writing was left behind", file=name)
        elif name not in promised:
            faults.add("the manifest promises no such file", file=name)


def _check_manifest(content: Content, manifest: Manifest, faults: Faults) -> None:
    """Compare its fields with each other, beyond what is checked whenever it is read."""
    if content != manifest_bytes(manifest):
        faults.add("the file is not written the way in which fastssl writes it")
    settings = manifest.settings
    if not manifest.height == manifest.width == settings.size:
        seen = f"{manifest.height} x {manifest.width}"
        faults.add("the image size is not the one that was asked for", seen=seen, expected=settings.size)
    references, limit = manifest.samples + manifest.quarantined, settings.selection.limit
    if limit is not None and references > limit:
        faults.add("there are more samples than were asked for", seen=references, expected=f"{limit} at most")
    _check_shard_numbers(manifest, faults)


def _check_shard_numbers(manifest: Manifest, faults: Faults) -> None:
    """Shard n was packed from the references from n times samples_per_shard on, of which some may be quarantined."""
    references, capacity = manifest.samples + manifest.quarantined, manifest.settings.samples_per_shard
    last = (references - 1) // capacity
    before = -1
    for entry in manifest.shards:
        number = int(entry.name[:-4]) if re.fullmatch(r"[0-9]{6,18}\.tar", entry.name) else -1
        if entry.name != f"{number:06d}.tar" or not before < number <= last:
            expected = f"a number from {before + 1} to {last}, in six digits"
            faults.add("a shard is out of order", seen=entry.name, expected=expected)
            continue
        before = number
        most = min(capacity, references - number * capacity)
        # Fewer than this are fine: what is missing is quarantined, and the sum is checked.
        if entry.samples > most:
            faults.add("a shard has more samples than it could", seen=entry.samples, expected=f"{most} at most")


def _check_quarantine(content: Content, manifest: Manifest, faults: Faults) -> None:
    """The list exists if there is anything to list, and each line is one that packing could have written."""
    if isinstance(content, FileNotFoundError):
        if manifest.quarantined:
            faults.add("the file is missing", file=QUARANTINE, expected=f"{manifest.quarantined} lines")
        return
    if isinstance(content, ShardError):
        faults.add(unusable(content), file=QUARANTINE)
        return
    count = start = 0
    for line in BytesIO(content):
        stop = start + len(line)
        if not _is_quarantine_line(line):
            what = "a line is not an image and the reason why it was left out"
            faults.add(what, file=QUARANTINE, span=(start, stop))
        count, start = count + 1, stop
    if count == 0 or count != manifest.quarantined:
        expected = manifest.quarantined or "no such file"
        faults.add("the number of lines is not the manifest's", file=QUARANTINE, seen=count, expected=expected)


def _is_quarantine_line(line: bytes) -> bool:
    try:
        values = json.loads(line)
    except ValueError:
        return False
    return (
        isinstance(values, dict)
        and list(values) == ["reference", "reason"]
        and all(isinstance(words, str) and words for words in values.values())
        and line == json.dumps(values).encode("ascii") + b"\n"
    )


def _check_keys(files: StoredFiles, manifest: Manifest, hashes: array[int], faults: Faults) -> None:
    """No key comes twice. Only where hashes are the same are the keys themselves looked at, in the indexes."""
    ordered = np.frombuffer(hashes, np.uint64)
    ordered.sort()
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not suspects:
        return
    places = defaultdict[str, list[str]](list)
    for entry in manifest.shards:
        for start, listed in salvaged_index(held(content_of(files, beside(entry.name, INDEX)))).items():
            if listed.column == 0 and int.from_bytes(key_hash(listed.key), sys.byteorder) in suspects:
                places[listed.key].append(f"{entry.name}, byte {start}")
    for key, (first, *others) in places.items():
        for other in others:
            faults.add("a key comes twice", file=other.partition(",")[0], key=key, seen=f"in {first} and in {other}")


def _check_statistics(manifest: Manifest, found: Statistics, faults: Faults) -> None:
    said, seen = (_flat(statistics.model_dump(exclude={"camera"})) for statistics in (manifest.statistics, found))
    # Another version of a lossy decoder may round colours differently.
    exact = manifest.settings.images.lossless or manifest.versions.get("simplejpeg") == simplejpeg.__version__
    for name in sorted(said.keys() | seen.keys()):
        if said.get(name) != seen.get(name) and (exact or not name.startswith("planes.image")):
            what = f"statistics.{name} is not that of the samples"
            faults.add(what, seen=said.get(name), expected=seen.get(name))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | None]:
    flat: dict[str, str | int | float | None] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value) if isinstance(value, list) else value
    return flat
