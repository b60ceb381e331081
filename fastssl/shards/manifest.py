"""`manifest.json`: the description of a packed dataset, by which a stranger can read it and a reader can check it.

It is written last: a folder with a manifest is complete. It holds no times and no absolute paths, so the same input and
settings give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from fastssl.errors import DataError
from fastssl.files import read_regular
from fastssl.shards.codec import TargetCodec, TargetLayout
from fastssl.shards.image_codec import IMAGE_CODECS, ImageCodec, ImageCodecName
from fastssl.shards.member_format import MemberFormat, PlaneFormat, Positive
from fastssl.shards.passed import PassedOver
from fastssl.shards.statistics import Count, Part, Statistics

MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"
FORMAT: Literal["fastssl-shards"] = "fastssl-shards"
VERSIONS = (2, 3)
"""Versions that are read; one is written where a dataset needs no later one."""

TARGETS = "labels.lz4"
TARGETS_RAW = "labels.raw"
CLASS_INDEX = "cls"

TARGET_MEMBERS: dict[TargetCodec, str] = {"lz4": TARGETS, "raw": TARGETS_RAW}
"""Name of the member with the targets, by their codec; shards say labels, as they always did."""

Fraction = Annotated[float, Field(ge=0, le=1)]
DomainName = Literal["synthetic", "real"]


class Selection(Part):
    """The samples of the source that were packed."""

    subset: str | None = None
    """A split that the source itself has."""
    part: tuple[Fraction, Fraction] = (0.0, 1.0)
    """Samples whose key's place (`fastssl.shards.split.key_place`) is from the first number to below the second."""
    limit: Positive | None = None
    """At most so many references, from the first."""


class Settings(Part):
    """The settings of a packing, as far as the bytes depend on them."""

    model_config = ConfigDict(populate_by_name=True)

    size: Annotated[int, Field(ge=1, le=65500)]  # JPEG's largest side
    """Height and width of every packed image."""
    fit: Literal["squash"] = "squash"
    """The whole image is stretched to the packed size; the aspect ratio is not kept."""
    filter: Literal["lanczos"] = "lanczos"
    """Filter of the image; targets take the nearest pixel."""
    image_codec: ImageCodecName = "jpeg"
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] | None = None
    jpeg_subsampling: Literal["4:2:0"] | None = None
    """Both of JPEGs, and of no other images."""
    target_codec: Annotated[TargetCodec, Field(alias="label_codec")] = "lz4"
    lz4_level: Annotated[int, Field(ge=0, le=12)]
    """Level of LZ4: 0 = the fast mode, 1 to 12 = high compression."""
    samples_per_shard: Positive
    selection: Selection = Selection()

    @property
    def images(self) -> ImageCodec:
        """The codec of the images, with these settings."""
        return IMAGE_CODECS[self.image_codec](self)

    @model_validator(mode="after")
    def _check(self) -> Settings:
        of_jpegs = [name for name in ("jpeg_quality", "jpeg_subsampling") if getattr(self, name) is not None]
        if len(of_jpegs) != (2 if self.image_codec == "jpeg" else 0):
            raise ValueError("jpeg_quality and jpeg_subsampling belong to images that are JPEGs, and to no others")
        return self

    @model_serializer(mode="wrap")
    def _as_ever(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the codec where it is JPEG, so that such a dataset has the bytes that it always had."""
        values: dict[str, Any] = dump(self)
        return {name: value for name, value in values.items() if (name, value) != ("image_codec", "jpeg")}


class ShardEntry(Part):
    """One archive."""

    name: Annotated[str, Field(pattern=r"^[0-9a-z_-]+\.tar$")]
    samples: Positive
    bytes: Positive
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Part):
    """A packed dataset."""

    format: Literal["fastssl-shards"] = FORMAT
    version: Literal[2, 3]
    domain: DomainName
    layout: str
    """Layout of the dataset that was packed."""
    source: str
    """Name of the folder that was packed, without its path."""
    licence: str
    samples: Positive
    height: Positive
    width: Positive
    quarantined: Count
    """Images left out because they could not be used; `quarantine.jsonl` lists them."""
    passed_over: dict[str, PassedOver] | None = None
    """Entries of the source that are no sample at all, by reason; left out where the source does not tell."""
    classes: dict[str, Count] | None = None
    """The number of each class by its name; left out where the source has no names for them."""
    members: dict[str, MemberFormat]
    """The files that make a sample, in order; the file name is the sample's key, a dot and this name."""
    statistics: Statistics
    settings: Settings
    versions: dict[str, str]
    """Versions of the software that determines the bytes."""
    shards: Annotated[list[ShardEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        total = sum(shard.samples for shard in self.shards)
        if total != self.samples:
            raise ValueError(f"samples is {self.samples}, but the shards hold {total}")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("two shards have the same name")
        if self.version != self.settings.images.version:
            raise ValueError(
                f"version is {self.version}, but the images' codec {self.settings.image_codec} has another"
            )
        has_targets = TARGET_MEMBERS[self.settings.target_codec] in self.members
        known = members(
            self.height,
            self.width,
            has_targets=has_targets,
            has_classes=CLASS_INDEX in self.members,
            settings=self.settings,
        )
        if _without_words(self.members) != _without_words(known):
            raise ValueError("members are not those of this version of the format")
        if (self.statistics.camera is not None) != has_targets:
            raise ValueError("a camera belongs to a dataset with targets, and to no other")
        return self


def members(
    height: int, width: int, *, has_targets: bool, has_classes: bool, settings: Settings
) -> dict[str, MemberFormat]:
    """The members of a sample, in their order in the shard."""
    images = settings.images
    formats = {images.member: images.member_format((height, width))}
    if has_targets:
        layout = TargetLayout(height, width)
        compressed = settings.target_codec == "lz4"
        formats[TARGET_MEMBERS[settings.target_codec]] = MemberFormat(
            codec="lz4-block" if compressed else "none",
            meaning=f"label planes, {'one raw LZ4 block without frame or size' if compressed else 'as they are'}",
            inflated_bytes=layout.num_bytes,
            planes=_planes(layout, "rows" if compressed else "none"),
        )
    if has_classes:
        formats[CLASS_INDEX] = MemberFormat(codec="ascii-integer", meaning="class; absent where a sample has none")
    return formats


def _without_words(formats: dict[str, MemberFormat]) -> list[tuple[str, dict[str, Any]]]:
    words: Any = {"meaning": True, "planes": {"__all__": {"meaning"}}}
    return [(name, member.model_dump(exclude=words)) for name, member in formats.items()]


def _planes(layout: TargetLayout, differences: Literal["rows", "none"]) -> list[PlaneFormat]:
    return [
        PlaneFormat(
            name="depth",
            offset=layout.depth.start,
            dtype="uint8",
            shape=list(layout.depth.shape),
            differences=differences,
            meaning="low bytes and high bytes of planar z in millimetres; 0 = not known",
        ),
        PlaneFormat(
            name="normal",
            offset=layout.normal.start,
            dtype="uint8",
            shape=list(layout.normal.shape),
            differences=differences,
            meaning="n = v / 127.5 - 1, in the camera frame: x right, y down, z forward; (0, 0, 0) = not known",
        ),
        PlaneFormat(
            name="edge",
            offset=layout.edge.start,
            dtype="bits",
            shape=[layout.height, layout.width],
            differences="none",
            meaning="1 where the instance differs from the right or lower neighbour's",
        ),
    ]


def manifest_bytes(manifest: Manifest) -> bytes:
    """The file's content: UTF-8 JSON, fields in the order of the classes above."""
    text = json.dumps(manifest.model_dump(mode="json", exclude_none=True, by_alias=True), indent=2, ensure_ascii=False)
    return (text + "\n").encode("utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of a packed dataset.

    Raises:
        DataError: no such folder, an empty one, no manifest in it, a manifest of another format or version, or
            one with a field missing, unknown or out of range.
    """
    path = folder / MANIFEST
    try:
        content = read_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise _no_manifest(folder) from None
    except OSError as error:
        raise DataError("the manifest cannot be read", where=path, seen=error.strerror) from error
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Check a manifest's content; `where` is its place for messages.

    Raises:
        DataError: it is of another format or version, or has a field missing, unknown or out of range.
    """
    try:
        values = json.loads(content)
    except ValueError as error:
        raise DataError("the manifest is not valid JSON", where=where, seen=str(error)) from error
    found = (values.get("format"), values.get("version")) if isinstance(values, dict) else (None, None)
    if found not in {(FORMAT, version) for version in VERSIONS}:
        raise DataError(
            "the manifest is of another format",
            where=where,
            seen=f"format {found[0]!r}, version {found[1]!r}",
            expected=f"format {FORMAT!r}, version {' or '.join(map(str, VERSIONS))}",
            hint="pack the dataset again with this version of fastssl",
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as failure:
        first = failure.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise DataError(
            "the manifest is not valid",
            where=f"{where}: {field}" if field else where,
            seen=None if first["type"] in ("missing", "value_error") else first["input"],
            expected=first["msg"].removeprefix("Value error, "),
        ) from None


def _no_manifest(folder: Path) -> DataError:
    if folder.is_file():
        return DataError("the dataset is a file", where=folder, expected=f"a folder with shards and {MANIFEST}")
    if not folder.is_dir():
        return DataError("there is no such folder", where=folder, expected="a folder of shards")
    if not any(folder.iterdir()):
        return DataError("the folder is empty", where=folder, expected=f"shards and {MANIFEST}")
    if any(folder.glob("*.tar")):
        return DataError(
            "the shards have no manifest",
            where=folder,
            expected=MANIFEST,
            hint="pack the dataset with `fastssl shard`; a packing that was interrupted leaves none",
        )
    parts = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
    if parts:
        return DataError(
            "the folder holds several packed datasets",
            where=folder,
            seen=", ".join(parts),
            expected="the folder of one",
            hint=f"give {folder / parts[0]}, for example",
        )
    return DataError(
        "the folder holds no shards",
        where=folder,
        expected=f"shards and {MANIFEST}",
        hint="pack it with `fastssl shard`",
    )
