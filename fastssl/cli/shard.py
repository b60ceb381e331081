"""`fastssl shard`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fastssl.cli.options import AsJson, Workers, home, path_of
from fastssl.cli.output import print_json, say, say_facts
from fastssl.errors import one_line
from fastssl.telemetry import progress_bar

if TYPE_CHECKING:
    from fastssl.shards import Manifest, PackChoices, PassedOver


def shard(
    source: Annotated[Path, typer.Argument(parser=path_of, help="Dataset to pack.")],
    out: Annotated[
        str,
        typer.Argument(parser=home, help="New or empty folder for the shards, or an address as s3://bucket/rooms."),
    ],
    layout: Annotated[str | None, typer.Option(help="How the dataset is laid out; found out where it can be.")] = None,
    subset: Annotated[str | None, typer.Option(help="A split that the dataset has, such as train.")] = None,
    size: Annotated[int, typer.Option(help="Side of the packed images in pixels.", min=16)] = 256,
    workers: Workers = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster that does the work instead.")] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    image_codec: Annotated[
        Literal["jpeg", "lz4"],
        typer.Option(help="lz4: pixels without loss, faster to load, about five times the bytes."),
    ] = "jpeg",
    jpeg_quality: Annotated[int | None, typer.Option(help="95 if not given.", min=1, max=100)] = None,
    target_codec: Annotated[Literal["lz4", "raw"], typer.Option(help="raw: nothing to decode, more bytes.")] = "lz4",
    lz4_level: Annotated[int, typer.Option(help="0 packs fastest; from 1 to 12 fewer bytes.", min=0, max=12)] = 0,
    licence: Annotated[str | None, typer.Option(help="For the manifest; the layout's own if not given.")] = None,
    max_bad: Annotated[int, typer.Option(help="Unusable samples to leave out and list before giving up.", min=0)] = 100,
    split: Annotated[str | None, typer.Option(help="Folders below OUT, by the keys: train=0.95,val=0.05.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many samples, from the first.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a packing that was interrupted.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List, try a few samples, and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pack a dataset into WebDataset shards."""
    from fastssl.shards import estimate, pack, parse_split
    from fastssl.sources import open_source

    opened = open_source(source, layout, subset=subset)
    whole = {out: (0.0, 1.0)}
    parts = whole if split is None else {f"{out}/{name}": part for name, part in parse_split(split).items()}
    choices: PackChoices = {
        "size": size,
        "samples_per_shard": samples_per_shard,
        "image_codec": image_codec,
        "jpeg_quality": jpeg_quality,
        "target_codec": target_codec,
        "lz4_level": lz4_level,
        "limit": limit,
    }
    results: dict[str, dict[str, Any]] = {}
    try:
        for target, part in parts.items():
            choices["part"] = part
            if dry_run:
                guess = estimate(opened, **choices)
                results[target] = {**asdict(guess), "passed_over": _plain(guess.passed_over)}
            else:
                started = time.perf_counter()
                with progress_bar("packing", unit="samples") as advance:
                    manifest = pack(
                        opened,
                        target,
                        workers=workers,
                        ray=ray,
                        licence=licence,
                        max_bad=max_bad,
                        resume=resume,
                        progress=lambda now: advance(now.references, now.total, f"{now.quarantined} unusable"),
                        **choices,
                    )
                results[target] = _packed_facts(manifest, time.perf_counter() - started)
            _say_packed(target, results[target])
    finally:  # what is packed is told, also where the next part of a split fails
        if as_json and results:
            print_json(results)


def _packed_facts(manifest: Manifest, seconds: float) -> dict[str, Any]:
    return {
        "layout": manifest.layout,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "unusable": manifest.quarantined,
        "seconds": round(seconds, 2),
        "samples_per_s": round(manifest.samples / seconds, 1),
        "classes": len(manifest.classes or ()) or manifest.statistics.classes,
        "passed_over": _plain(manifest.passed_over or {}),
    }


def _say_packed(target: str, facts: dict[str, Any]) -> None:
    passed = facts["passed_over"]
    say_facts(target, {**facts, "passed_over": sum(entry["count"] for entry in passed.values())})
    for reason, entry in passed.items():
        more = ", ..." if entry["count"] > len(entry["first"]) else ""
        say(f"    {entry['count']:,} {one_line(reason)}: {one_line(', '.join(entry['first']))}{more}")


def _plain(passed_over: Mapping[str, PassedOver]) -> dict[str, dict[str, Any]]:
    return {reason: entry.model_dump() for reason, entry in passed_over.items()}
