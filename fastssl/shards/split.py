"""Splits by the keys of the samples: the same sample always falls into the same one, whatever else there is."""

from __future__ import annotations

import hashlib
import math
import re

from fastssl.errors import UsageError

Interval = tuple[float, float]


def key_place(key: str) -> float:
    """A sample's place in 0..1, from its key alone: the first 53 bits of the key's BLAKE2b of 8 bytes, over 2^53."""
    digest = hashlib.blake2b(key.encode("ascii"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def parse_split(text: str) -> dict[str, Interval]:
    """Read ``train=0.95,val=0.05``: each name's interval of `key_place`, from its first number to below its second.

    Raises:
        UsageError: it reads otherwise, a name comes twice or is no folder's name, or the fractions do not add up to 1.
    """
    intervals: dict[str, Interval] = {}
    start = 0.0
    for item in text.split(","):
        match = re.fullmatch(r"\s*([0-9a-z_-]+)\s*=\s*([0-9.]+)\s*", item)
        fraction = _fraction(match.group(2)) if match else None
        if match is None or fraction is None or match.group(1) in intervals:
            raise UsageError(
                "a split cannot be read", where="--split", seen=text, expected="different names, as train=0.95,val=0.05"
            )
        intervals[match.group(1)] = (start, start + fraction)
        start += fraction
    if not math.isclose(start, 1.0, abs_tol=1e-9):
        raise UsageError("the fractions of a split do not add up to 1", where="--split", seen=text, expected=1)
    # Rounding must not lose the keys at the very end.
    last = next(reversed(intervals))
    intervals[last] = (intervals[last][0], 1.0)
    return intervals


def _fraction(text: str) -> float | None:
    try:
        fraction = float(text)
    except ValueError:
        return None
    return fraction if 0 < fraction <= 1 else None
