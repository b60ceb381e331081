"""Splits that a dataset has of its own."""

from __future__ import annotations

from collections.abc import Collection

from fastssl.errors import UsageError


def checked_subset(layout: str, subset: str | None, known: Collection[str]) -> str | None:
    """The subset, if the layout has it.

    Raises:
        UsageError: it does not; names those that it has.
    """
    if subset is None or subset in known:
        return subset
    expected = f"one of: {', '.join(known)}" if known else "no subset: this layout has none"
    raise UsageError(f"the layout {layout} has no such subset", seen=subset, expected=expected)
