"""Entries of a source that are neither packed nor in the quarantine list: counted by reason, with a few names."""

from __future__ import annotations

import heapq
from typing import Annotated

from pydantic import Field

from fastssl.files import escaped
from fastssl.shards.statistics import Part

_NAMED = 3


class PassedOver(Part):
    """The entries that one reason kept out."""

    count: Annotated[int, Field(ge=1)]
    first: list[str]
    """The first three names, sorted; bytes that are not UTF-8 are escaped."""


class Tally:
    """A count of what is passed over, by reason; the result does not depend on the order in which it was added."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._names: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one entry.

        Args:
            reason: what is passed over, in the plural: "files ending in .txt".
            name: path of the entry below the source, or inside its archive.
        """
        self._counts[reason] = self._counts.get(reason, 0) + 1
        names = self._names.setdefault(reason, [])
        if len(names) < _NAMED or name < names[-1]:
            self._names[reason] = heapq.nsmallest(_NAMED, [*names, name])

    def result(self) -> dict[str, PassedOver]:
        """The entries that were passed over, by reason, sorted."""
        return {
            reason: PassedOver(count=count, first=[escaped(name) for name in self._names[reason]])
            for reason, count in sorted(self._counts.items())
        }
