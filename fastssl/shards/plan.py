"""The plan of a packing: all that its bytes depend on but the source's files; and whether it may be continued."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import lz4
import numpy as np
import PIL
import simplejpeg
from pydantic import ValidationError

import fastssl
from fastssl.errors import DataError, UsageError
from fastssl.files import escaped
from fastssl.shards.codec import LZ4_LEVEL, LabelCodec
from fastssl.shards.manifest import MANIFEST, Domain, Manifest, Settings, parse_manifest
from fastssl.shards.output import Output
from fastssl.shards.source import Numbering, Source
from fastssl.shards.statistics import Count, Part

STATE = ".packing"
"""Folder in the output with the plan and the records of the finished shards, while a packing is under way."""

_PLAN = f"{STATE}/plan.json"
_LISTED_CLASSES = 5


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


def claim(output: Output, plan: Plan, *, resume: bool) -> Manifest | None:
    """Make sure that the output is free, or holds what `resume` may continue; its manifest if it is complete."""
    names = output.names()
    if not names:
        return None
    if MANIFEST not in names and STATE not in names:
        raise UsageError(
            "an output folder that already holds something cannot be packed into",
            where=str(output),
            seen=names[0],
            expected="an empty folder, or none",
            do="choose another folder, or remove this one",
        )
    if not resume:
        if MANIFEST not in names:
            with output.alone():
                pass  # an error tells of a packing that is still at it
        state = "a packed dataset" if MANIFEST in names else "a packing that was interrupted"
        raise UsageError(
            f"the output folder already holds {state}",
            where=str(output),
            do="choose another folder, or continue it with --resume",
        )
    return _claim_again(output, plan, complete=MANIFEST in names)


def _claim_again(output: Output, plan: Plan, *, complete: bool) -> Manifest | None:
    if complete:
        manifest = parse_manifest(output.read(MANIFEST) or b"", f"{output}/{MANIFEST}")
        before = Plan(
            source=Identity(**{name: getattr(manifest, name) for name in Identity.model_fields}),
            settings=manifest.settings,
            labelled=manifest.statistics.camera is not None,
            versions=manifest.versions,
            classes=manifest.classes,
        )
    else:
        manifest = None
        # Without a plan it was killed between making the folder and writing the plan: nothing was packed yet.
        before = _read_plan(output) or plan
    _check_same(plan, before, output)
    _check_classes(plan, before, output)
    if manifest is not None and STATE in output.names():
        with output.alone():
            output.remove_partial()
            output.remove(STATE)
    return manifest


def begin(output: Output, plan: Plan, *, resume: bool) -> None:
    """Leave the plan in the output, which nobody else writes to now."""
    if resume:
        output.remove_partial()
    elif output.names():
        raise UsageError("another packing began to write into the output folder", where=str(output))
    if not resume or output.read(_PLAN) is None:
        with output.write(_PLAN) as file:
            file.write(plan.model_dump_json().encode() + b"\n")


def _read_plan(output: Output) -> Plan | None:
    content = output.read(_PLAN)
    if content is None:
        return None
    try:
        return Plan.model_validate_json(content)
    except ValidationError as error:
        raise UsageError(
            "the plan of the packing that was interrupted is damaged, or of another version",
            where=f"{output}/{_PLAN}",
            seen=error.errors(include_url=False)[0]["msg"],
            do="remove the output folder, and pack again from the beginning",
        ) from error


def _check_classes(plan: Plan, before: Plan, output: Output) -> None:
    """Refuse other numbers of classes; a dataset that was packed before they were noted is not doubted."""
    if before.classes is None or plan.classes == before.classes:
        return
    now = plan.classes or {}
    names = sorted(name for name in now.keys() | before.classes.keys() if now.get(name) != before.classes.get(name))
    raise DataError(
        "the classes are not those that the packing was begun with",
        where=str(output),
        seen=_table(now, names),
        expected=_table(before.classes, names),
        do="bring the folders of classes back to what they were, or pack into another folder from the beginning",
    )


def _table(classes: Mapping[str, int], names: list[str]) -> str:
    shown = ", ".join(f"{name} {classes.get(name, 'not there')}" for name in names[:_LISTED_CLASSES])
    return shown + (f" and {len(names) - _LISTED_CLASSES} more" if len(names) > _LISTED_CLASSES else "")


def _check_same(plan: Plan, before: Plan, output: Output) -> None:
    wanted, there = (_flat(values.model_dump(exclude={"classes"})) for values in (plan, before))
    for name in wanted.keys() | there.keys():
        if wanted.get(name) != there.get(name):
            raise UsageError(
                "the packing was begun with other settings",
                where=f"{output}: {name}",
                seen=wanted.get(name),
                expected=there.get(name),
                do="continue it with the settings that it was begun with, or choose another folder",
            )


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        inner = _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        flat |= inner
    return flat
