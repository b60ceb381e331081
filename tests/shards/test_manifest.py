from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastssl.errors import DataError
from fastssl.shards import read_manifest
from fastssl.shards.manifest import manifest_bytes


def test_reading_and_writing_again_gives_the_same_bytes(rooms: Path) -> None:
    assert manifest_bytes(read_manifest(rooms)) == (rooms / "manifest.json").read_bytes()


def test_it_holds_no_absolute_path_and_no_time(rooms: Path) -> None:
    text = (rooms / "manifest.json").read_text()
    assert str(rooms.parent) not in text
    assert "time" not in text
    assert "date" not in text


def test_shards_keep_the_words_that_they_always_had(rooms: Path) -> None:
    """In names targets are called so; shards that were packed before have labels."""
    values = json.loads((rooms / "manifest.json").read_text())
    assert values["settings"]["label_codec"] == read_manifest(rooms).settings.target_codec == "lz4"
    assert values["members"]["labels.lz4"]["meaning"] == "label planes, one raw LZ4 block without frame or size"
    assert "target" not in json.dumps(values)


def changed(rooms: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    values = json.loads((rooms / "manifest.json").read_text())
    change(values)
    (folder / "manifest.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=1), "version 1"),
        (lambda m: m.update(format="other"), "format 'other'"),
        (lambda m: m.pop("version"), "version None"),
        (lambda m: m.update(colour="red"), "colour"),
        (lambda m: m.pop("height"), "height"),
        (lambda m: m.update(width=31), "members"),
        (lambda m: m.update(samples=8), "samples is 8"),
        (lambda m: m.update(domain="imagined"), "domain"),
        (lambda m: m["statistics"].pop("camera"), "camera"),
        (lambda m: m["statistics"]["camera"]["min"].update(cx=float("nan")), "camera"),
        (lambda m: m["statistics"]["camera"]["min"].update(fx=0), "camera"),
        (lambda m: m["members"]["labels.lz4"]["planes"][0].update(differences="none"), "members"),
        (lambda m: m["shards"].clear(), "shards"),
        (lambda m: m["shards"][1].update(name="../../other.tar"), r"shards\.1\.name"),
        (lambda m: m["shards"][1].update(name=m["shards"][0]["name"]), "same name"),
        (lambda m: m["shards"][1].update(sha256="abc"), r"shards\.1\.sha256"),
        (lambda m: m["shards"][1].update(bytes="9216"), r"shards\.1\.bytes"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused(
    rooms: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_manifest(changed(rooms, tmp_path, change))
    assert "manifest.json" in str(error.value)


def test_other_words_for_the_same_bytes_are_fine(rooms: Path, tmp_path: Path) -> None:
    read_manifest(changed(rooms, tmp_path, lambda m: m["members"]["labels.lz4"]["planes"][0].update(meaning="z in mm")))


def test_a_class_member_is_optional(rooms: Path, tmp_path: Path) -> None:
    read_manifest(changed(rooms, tmp_path, lambda m: m["members"].pop("cls")))


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe", b'{"format": "fastssl-shards"'])
def test_what_is_not_a_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="manifest"):
        read_manifest(tmp_path)


def test_a_folder_that_is_no_dataset_is_refused_for_its_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_manifest(tmp_path / "missing")
    with pytest.raises(DataError, match="is empty"):
        read_manifest(tmp_path)
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(DataError, match=r"no shards(.|\n)*pack it with `fastssl shard`"):
        read_manifest(tmp_path)
    (tmp_path / "000000.tar").touch()
    with pytest.raises(DataError, match=r"no manifest(.|\n)*`fastssl shard`"):
        read_manifest(tmp_path)
    with pytest.raises(DataError, match="the dataset is a file"):
        read_manifest(tmp_path / "photo.jpg")


def test_a_folder_of_several_datasets_names_them(rooms: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / "split" / name).mkdir(parents=True)
        (tmp_path / "split" / name / "manifest.json").write_bytes((rooms / "manifest.json").read_bytes())
    with pytest.raises(DataError, match=r"several packed datasets\n.*\n  seen: train, val\n"):
        read_manifest(tmp_path / "split")
