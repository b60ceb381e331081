"""The plan of a packing: all that its bytes depend on but the source's files."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import lz4
import numpy as np
import PIL
import simplejpeg
from pydantic import ValidationError

import fastssl
from fastssl.errors import UsageError
from fastssl.files import escaped
from fastssl.shards.codec import LZ4_LEVEL, LabelCodec
from fastssl.shards.manifest import Domain, Settings
from fastssl.shards.source import Numbering, Source
from fastssl.shards.statistics import Count, Part


class Identity(Part):
    """What the manifest says about where the data came from."""

    domain: Domain
    layout: str
    source: str
    licence: str


class Plan(Part):
    """All that the bytes depend on, except the source's files."""

    format: Literal["fastssl-packing-1"] = "fastssl-packing-1"
    source: Identity
    settings: Settings
    labelled: bool
    versions: dict[str, str]
    classes: dict[str, Count] | None = None


def plan_of(source: Source, settings: Settings, licence: str | None) -> Plan:
    """The plan for packing a source.

    Args:
        licence: of the images; the source's own if None.
    """
    return Plan(
        source=_identity(source, licence),
        settings=settings,
        labelled=source.labelled,
        versions=software_versions(),
        classes=_class_numbers(source),
    )


def packing_settings(
    source: Source,
    size: int,
    samples_per_shard: int,
    jpeg_quality: int,
    label_codec: LabelCodec,
    part: tuple[float, float],
    limit: int | None,
    *,
    lz4_level: int = LZ4_LEVEL,
) -> Settings:
    """The settings of a packing; the arguments are those of `pack`.

    Raises:
        UsageError: one is out of range.
    """
    values = {
        "size": size,
        "jpeg_quality": jpeg_quality,
        "label_codec": label_codec,
        "lz4_level": lz4_level,
        "samples_per_shard": samples_per_shard,
        "selection": {"subset": source.subset, "part": part, "limit": limit},
    }
    try:
        return Settings.model_validate(values)
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        name = ".".join(str(place) for place in error["loc"])
        raise UsageError(
            "a packing setting is out of range", where=name, seen=error["input"], expected=error["msg"]
        ) from None


def _class_numbers(source: Source) -> dict[str, int] | None:
    return {escaped(name): number for name, number in source.classes.items()} if isinstance(source, Numbering) else None


def _identity(source: Source, licence: str | None) -> Identity:
    return Identity(
        domain=source.domain,
        layout=source.layout,
        source=escaped(source.path.resolve().name),
        licence=source.licence if licence is None else licence,
    )


def software_versions() -> dict[str, str]:
    """Versions of the packages that the bytes depend on; of plug-ins only where they are installed."""
    plugins = {}
    with suppress(PackageNotFoundError):
        plugins["pillow-heif"] = version("pillow-heif")
    return plugins | {
        "fastssl": fastssl.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "simplejpeg": simplejpeg.__version__,
        "lz4": lz4.__version__,
        "liblz4": lz4.library_version_string(),
    }
