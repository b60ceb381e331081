"""The interface of a dataset on disk, as packing needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from fastssl.batch import Record
from fastssl.shards.manifest import DomainName, Selection
from fastssl.shards.passed import PassedOver
from fastssl.shards.split import key_place


class Source(Protocol):
    """A dataset on disk. It travels to worker processes, so it pickles."""

    @property
    def layout(self) -> str:
        """Name of the way in which the files lie."""

    @property
    def domain(self) -> DomainName: ...

    @property
    def labelled(self) -> bool:
        """Its records have depth, normal, instance (or edge) and camera."""

    @property
    def path(self) -> Path: ...

    @property
    def licence(self) -> str: ...

    @property
    def subset(self) -> str | None:
        """The split that was asked for; None = all there is."""

    def references(self) -> Iterator[str]:
        """Arguments for `read`, one per sample: streamed, cheap, and in the same order every time."""

    def key(self, reference: str) -> str:
        """The sample's key, from its reference alone."""

    def read(self, reference: str) -> Record:
        """One sample.

        Raises:
            DataError: it cannot be used; the message is its line in the quarantine list.
        """


@runtime_checkable
class Counting(Protocol):
    """A source that tells what of its folder is no part of any sample."""

    def passed_over(self) -> Mapping[str, PassedOver]:
        """The entries that are passed over, by reason; takes a walk through the folder."""


@runtime_checkable
class Numbering(Protocol):
    """A source that numbers classes by their names."""

    @property
    def classes(self) -> Mapping[str, int]:
        """The number of each class by its name."""


def selected(source: Source, selection: Selection) -> Iterator[str]:
    """The source's references that the selection leaves, in their order."""
    low, high = selection.part
    references = source.references()
    if (low, high) != (0.0, 1.0):
        references = (reference for reference in references if low <= key_place(source.key(reference)) < high)
    return islice(references, selection.limit)
