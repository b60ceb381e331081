"""What every layout checks when a dataset is opened."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fastssl.errors import DataError, UsageError
from fastssl.shards import Source


def checked_subset(layout: str, subset: str | None, known: Collection[str]) -> str | None:
    """The subset, if the layout has it.

    Raises:
        UsageError: it does not; names those that it has.
    """
    if subset is None or subset in known:
        return subset
    expected = f"one of: {', '.join(known)}" if known else "no subset: this layout has none"
    raise UsageError(f"the layout {layout} has no such subset", seen=subset, expected=expected)


def first_reference(source: Source, samples: str, *, expected: str, hint: str | None = None) -> str:
    """The first of a source's references.

    Args:
        samples: what the dataset has, as in "frames of Hypersim".
        expected: where in the tree they would be.
        hint: what to do if there are none.

    Raises:
        DataError: the folder, or the subset that was asked for, holds none.
    """
    first = next(source.references(), None)
    if first is None:
        subset = f", subset {source.subset}" if source.subset else ""
        raise DataError(f"the folder holds no {samples}{subset}", where=source.path, expected=expected, hint=hint)
    return first


def whole_path(path: Path) -> Path:
    """The path from the root on, with a name and a folder above it, whichever way it was given; links stay."""
    return path.resolve() if ".." in path.parts else path.absolute()
