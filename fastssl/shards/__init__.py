"""Packed datasets: WebDataset shards with DALI indexes and a manifest (shards/README.md describes the format)."""

from fastssl.shards.codec import LabelLayout, Plane, decode_labels, encode_labels, inflate, undo_differences
from fastssl.shards.decode import decode_sample, read_samples
from fastssl.shards.estimate import Estimate, estimate
from fastssl.shards.manifest import JPEG, LABEL, LABELS, MANIFEST, QUARANTINE, Domain, Manifest, read_manifest
from fastssl.shards.passed import PassedOver, Tally
from fastssl.shards.reader import Room, ShardSet, StoredSample
from fastssl.shards.resume import STATE
from fastssl.shards.settings import PackChoices
from fastssl.shards.source import Source
from fastssl.shards.split import key_place, parse_split
from fastssl.shards.tar import KEY_BYTES
from fastssl.shards.writer import pack

__all__ = [
    "JPEG",
    "KEY_BYTES",
    "LABEL",
    "LABELS",
    "MANIFEST",
    "QUARANTINE",
    "STATE",
    "Domain",
    "Estimate",
    "LabelLayout",
    "Manifest",
    "PackChoices",
    "PassedOver",
    "Plane",
    "Room",
    "ShardSet",
    "Source",
    "StoredSample",
    "Tally",
    "decode_labels",
    "decode_sample",
    "encode_labels",
    "estimate",
    "inflate",
    "key_place",
    "pack",
    "parse_split",
    "read_manifest",
    "read_samples",
    "undo_differences",
]
