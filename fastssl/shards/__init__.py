"""Packed datasets: WebDataset shards with DALI indexes and a manifest (shards/README.md describes the format).

Packing does not load what reading needs, nor the other way round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastssl.lazy import loader_of

if TYPE_CHECKING:
    from fastssl.shards.codec import Plane, TargetLayout, decode_targets, encode_targets, inflate, undo_differences
    from fastssl.shards.decode import decode_sample, read_samples
    from fastssl.shards.estimation import Estimate, estimate
    from fastssl.shards.image_codec import JPEG, ImageCodec
    from fastssl.shards.manifest import (
        CLASS_INDEX,
        MANIFEST,
        QUARANTINE,
        TARGETS,
        DomainName,
        Manifest,
        read_manifest,
    )
    from fastssl.shards.passed import PassedOver, Tally
    from fastssl.shards.reader import Allocate, ShardSet, StoredSample
    from fastssl.shards.resume import STATE
    from fastssl.shards.settings import PackChoices
    from fastssl.shards.source import Source
    from fastssl.shards.split import key_place, parse_split
    from fastssl.shards.tar import KEY_BYTES
    from fastssl.shards.writer import pack

__all__ = [
    "CLASS_INDEX",
    "JPEG",
    "KEY_BYTES",
    "MANIFEST",
    "QUARANTINE",
    "STATE",
    "TARGETS",
    "Allocate",
    "DomainName",
    "Estimate",
    "ImageCodec",
    "Manifest",
    "PackChoices",
    "PassedOver",
    "Plane",
    "ShardSet",
    "Source",
    "StoredSample",
    "Tally",
    "TargetLayout",
    "decode_sample",
    "decode_targets",
    "encode_targets",
    "estimate",
    "inflate",
    "key_place",
    "pack",
    "parse_split",
    "read_manifest",
    "read_samples",
    "undo_differences",
]

_HOMES = {
    "Plane": "fastssl.shards.codec",
    "TargetLayout": "fastssl.shards.codec",
    "decode_targets": "fastssl.shards.codec",
    "encode_targets": "fastssl.shards.codec",
    "inflate": "fastssl.shards.codec",
    "undo_differences": "fastssl.shards.codec",
    "decode_sample": "fastssl.shards.decode",
    "read_samples": "fastssl.shards.decode",
    "Estimate": "fastssl.shards.estimation",
    "estimate": "fastssl.shards.estimation",
    "JPEG": "fastssl.shards.image_codec",
    "ImageCodec": "fastssl.shards.image_codec",
    "CLASS_INDEX": "fastssl.shards.manifest",
    "MANIFEST": "fastssl.shards.manifest",
    "QUARANTINE": "fastssl.shards.manifest",
    "TARGETS": "fastssl.shards.manifest",
    "DomainName": "fastssl.shards.manifest",
    "Manifest": "fastssl.shards.manifest",
    "read_manifest": "fastssl.shards.manifest",
    "PassedOver": "fastssl.shards.passed",
    "Tally": "fastssl.shards.passed",
    "Allocate": "fastssl.shards.reader",
    "ShardSet": "fastssl.shards.reader",
    "StoredSample": "fastssl.shards.reader",
    "STATE": "fastssl.shards.resume",
    "PackChoices": "fastssl.shards.settings",
    "Source": "fastssl.shards.source",
    "key_place": "fastssl.shards.split",
    "parse_split": "fastssl.shards.split",
    "KEY_BYTES": "fastssl.shards.tar",
    "pack": "fastssl.shards.writer",
}

__getattr__ = loader_of(__name__, _HOMES)
