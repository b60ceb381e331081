"""The choices that a caller has for a packing, their defaults, and the settings that they make."""

from __future__ import annotations

from typing import TypedDict, Unpack

from pydantic import ValidationError

from fastssl.errors import UsageError
from fastssl.shards.codec import LZ4_LEVEL, TargetCodec
from fastssl.shards.image_codec import JPEG_QUALITY, ImageCodecName
from fastssl.shards.manifest import Settings
from fastssl.shards.source import Source


class PackChoices(TypedDict, total=False):
    """Keyword arguments that decide what is packed and how; one that is left out has its value in `DEFAULTS`."""

    size: int
    """Side of the packed squares in pixels."""
    samples_per_shard: int
    image_codec: ImageCodecName
    """`jpeg`, or `lz4` for pixels without loss in about five times the bytes, which take less time to load."""
    jpeg_quality: int | None
    """None = 95; of JPEGs alone."""
    target_codec: TargetCodec
    """`lz4`, or `raw` for targets that need no decoding and take six times the bytes."""
    lz4_level: int
    """0 packs fastest; from 1 to 12 targets take fewer bytes and longer to pack (at 3 an eighth fewer in all, for
    a third more time), and inflate no slower. The same goes for images of codec `lz4`."""
    part: tuple[float, float]
    """Only samples whose `fastssl.shards.key_place` is from the first number to below the second."""
    limit: int | None
    """Only so many references, from the first."""


DEFAULTS: PackChoices = {
    "size": 256,
    "samples_per_shard": 1000,
    "image_codec": "jpeg",
    "jpeg_quality": None,
    "target_codec": "lz4",
    "lz4_level": LZ4_LEVEL,
    "part": (0.0, 1.0),
    "limit": None,
}


def packing_settings(source: Source, **choices: Unpack[PackChoices]) -> Settings:
    """The settings for packing a source.

    Raises:
        UsageError: a value is out of range, or does not go with the others.
    """
    unknown = choices.keys() - DEFAULTS.keys()
    if unknown:
        raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
    values = dict(DEFAULTS | choices)
    selection = {"subset": source.subset, "part": values.pop("part"), "limit": values.pop("limit")}
    if values["image_codec"] == "jpeg":
        quality = JPEG_QUALITY if values["jpeg_quality"] is None else values["jpeg_quality"]
        values |= {"jpeg_quality": quality, "jpeg_subsampling": "4:2:0"}
    elif values["jpeg_quality"] is not None:
        raise UsageError(
            "only JPEGs have a quality",
            where="jpeg_quality",
            seen=f"{values['jpeg_quality']} for images of codec {values['image_codec']}",
            hint="leave it out, or pack JPEGs",
        )
    try:
        return Settings.model_validate({**values, "selection": selection})
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        name = ".".join(str(place) for place in error["loc"])
        raise UsageError(
            "a packing setting is out of range", where=name, seen=error["input"], expected=error["msg"]
        ) from None
