"""Format of one file of a sample, in the machine-readable words of `manifest.json`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastssl.shards.statistics import Count, Part

Positive = Annotated[int, Field(ge=1)]


class PlaneFormat(Part):
    """One array inside an inflated block."""

    name: str
    offset: Count
    """First byte in the inflated block."""
    dtype: Literal["uint8", "bits"]
    shape: list[Positive]
    """Numbers of elements; for bits of pixels, each row starting a new byte with its highest bit, the rest 0."""
    differences: Literal["rows", "none"]
    """rows: every row of the image but the first holds the difference to the row above, modulo 256."""
    meaning: str


class MemberFormat(Part):
    """One file of a sample."""

    codec: Literal["jpeg", "sized-lz4-block", "lz4-block", "none", "ascii-integer"]
    meaning: str
    inflated_bytes: Positive | None = None
    planes: list[PlaneFormat] | None = None
