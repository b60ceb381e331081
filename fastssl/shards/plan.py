"""The plan of a packing: all that its bytes depend on but the source's files."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import lz4
import numpy as np
import PIL
import simplejpeg

import fastssl
from fastssl.files import escaped
from fastssl.shards.manifest import DomainName, Settings
from fastssl.shards.source import Numbering, Source
from fastssl.shards.statistics import Count, Part


class Identity(Part):
    """The origin of the data, as the manifest has it."""

    domain: DomainName
    layout: str
    source: str
    licence: str


class Plan(Part):
    """The plan of a packing: all that the bytes depend on, except the source's files."""

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
