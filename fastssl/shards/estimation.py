"""An estimate of what a packing makes, from a few samples that are packed into memory."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Unpack

from fastssl.errors import DataError
from fastssl.faults import patiently
from fastssl.files import escaped
from fastssl.shards.encode import Encoder, Members
from fastssl.shards.passed import PassedOver
from fastssl.shards.settings import PackChoices, packing_settings
from fastssl.shards.source import Counting, Source, selected
from fastssl.shards.statistics import Statistics
from fastssl.shards.tar import BLOCK

_TRIED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The outcome of a dry run; numbers that rest on the few samples that were tried say so in their name."""

    layout: str
    domain: str
    labelled: bool
    licence: str
    samples: int
    shards: int
    estimated_bytes: int
    estimated_seconds: float
    """Time that one worker takes."""
    tried: int
    unusable: list[tuple[str, str]]
    """Reference and reason of each sample that was tried in vain."""
    keys: list[str]
    """Keys of the samples that were tried."""
    passed_over: dict[str, PassedOver]
    """Entries of the source that are no sample, by reason."""


def estimate(source: Source, **choices: Unpack[PackChoices]) -> Estimate:
    """List the whole source, pack some of its samples into memory, and write nothing.

    Args:
        choices: as for `pack`.

    Raises:
        UsageError: an argument is out of range.
        DataError: the source has no samples, or not one of those tried can be used.
    """
    settings = packing_settings(source, **choices)
    samples, chosen = _count_and_choose(selected(source, settings.selection))
    encoder = Encoder(settings, source.labelled)
    sizes, unusable = list[int](), list[tuple[str, str]]()
    started = time.perf_counter()
    for reference in chosen:
        try:
            content, _ = _tried(source, encoder, reference)
        except DataError as error:
            unusable.append((escaped(reference), str(error)))
            continue
        sizes.append(sum(BLOCK + math.ceil(len(member) / BLOCK) * BLOCK for _, member in content))
    if not sizes:
        why = unusable[0][1] if unusable else "it is empty"
        raise DataError("no sample of the dataset can be used", where=source.path, seen=why)
    seconds = (time.perf_counter() - started) / len(chosen)
    return Estimate(
        layout=source.layout,
        domain=source.domain,
        labelled=source.labelled,
        licence=source.licence,
        samples=samples,
        shards=math.ceil(samples / settings.samples_per_shard),
        estimated_bytes=round(samples * sum(sizes) / len(chosen)),
        estimated_seconds=float(f"{samples * seconds:.3g}"),
        tried=len(chosen),
        unusable=unusable,
        keys=[source.key(reference) for reference in chosen],
        passed_over=dict(source.passed_over()) if isinstance(source, Counting) else {},
    )


def _tried(source: Source, encoder: Encoder, reference: str) -> tuple[Members, Statistics]:
    return patiently(lambda: encoder.members(source.read(reference), reference), where=f"{source.path}/{reference}")


def _count_and_choose(references: Iterable[str]) -> tuple[int, list[str]]:
    """The number of references, and a few of them that are spread over all (a reservoir), in their order."""
    rng = random.Random(0)
    chosen: list[tuple[int, str]] = []
    count = 0
    for count, reference in enumerate(references, 1):
        if len(chosen) < _TRIED:
            chosen.append((count, reference))
        elif (place := rng.randrange(count)) < _TRIED:
            chosen[place] = (count, reference)
    return count, [reference for _, reference in sorted(chosen)]
