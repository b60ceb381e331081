"""Packed datasets: WebDataset shards with DALI indexes and a manifest (shards/README.md describes the format)."""

from fastssl.shards.codec import Plane, TargetLayout, decode_targets, encode_targets, inflate, undo_differences
from fastssl.shards.decode import decode_sample, read_samples
from fastssl.shards.estimate import Estimate, estimate
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
