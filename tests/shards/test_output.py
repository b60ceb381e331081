"""Against a real S3 server, and the local file system."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from analytic_rooms import RoomSource

from fastssl.errors import DeviceError, MachineError, UsageError
from fastssl.shards import pack
from fastssl.shards.output import Output


def objects(bucket: str) -> dict[str, bytes]:
    client, name = pytest.importorskip("boto3").client("s3"), bucket.removeprefix("s3://")
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=name).get("Contents", [])]
    return {key: client.get_object(Bucket=name, Key=key)["Body"].read() for key in keys}


def test_a_bucket_holds_the_same_bytes_as_a_folder(bucket: str, tmp_path: Path) -> None:
    source = RoomSource(tmp_path, 7, trouble="bad", at=2)
    pack(source, tmp_path / "local", size=16, samples_per_shard=3)
    target = f"{bucket}/a/b"
    with pytest.raises(RuntimeError, match="bug"):
        pack(RoomSource(tmp_path, 7, trouble="bug", at=6), f"{bucket}/c", size=16, samples_per_shard=3)
    with pytest.raises(UsageError, match="interrupted"):
        pack(source, f"{bucket}/c", size=16, samples_per_shard=3)
    pack(source, target, size=16, samples_per_shard=3, workers=2)
    local = {f"a/b/{path.name}": path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert {name: content for name, content in objects(bucket).items() if name.startswith("a/")} == local
    with pytest.raises(UsageError, match="already holds"):
        pack(source, target, size=16, samples_per_shard=3)
    pack(RoomSource(tmp_path, 7), f"{bucket}/c", size=16, samples_per_shard=3, resume=True)
    pack(RoomSource(tmp_path, 7), tmp_path / "whole", size=16, samples_per_shard=3)
    whole = {f"c/{path.name}": path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert {name: content for name, content in objects(bucket).items() if name.startswith("c/")} == whole


def test_an_exception_leaves_no_object(bucket: str) -> None:
    output = Output(f"{bucket}/x")

    def fail() -> None:
        with output.write("file") as file:
            file.write(b"abc")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert objects(bucket) == {}
    assert output.names() == []
    assert output.read("file") is None
    assert output.size("file") is None


@pytest.mark.parametrize("target", ["folder", "file"])
def test_a_local_folder(tmp_path: Path, target: str) -> None:
    output = Output(str(tmp_path / "x") if target == "folder" else f"file://{tmp_path}/x")
    assert output.names() == []
    with output.write("a/b.txt") as file:
        file.write(b"abc")
    (tmp_path / "x" / "a" / "left.partial").write_bytes(b"")
    again = pickle.loads(pickle.dumps(output))
    again.remove_partial()
    assert again.names() == ["a"]
    assert (again.read("a/b.txt"), again.size("a/b.txt")) == (b"abc", 3)
    again.remove("a")
    assert again.names() == []


def test_a_protocol_without_its_package_is_told() -> None:
    with pytest.raises(UsageError, match=r"nothing|protocol"):
        Output("nosuch://bucket/x").names()


def test_a_store_that_does_not_take_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file where a folder should be")
    with pytest.raises(DeviceError, match="cannot be written"), Output(str(tmp_path / "x")).write("y"):
        pass


def test_an_address_without_a_bucket_is_refused() -> None:
    with pytest.raises(UsageError, match="names no place"):
        Output("s3://").names()


def test_a_store_that_does_not_know_us_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Errors of botocore are no `OSError`."""
    filesystem = pytest.importorskip("s3fs").S3FileSystem
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    filesystem.clear_instance_cache()
    try:
        with pytest.raises(MachineError, match=f"where: {bucket}/y\n  seen: Unable to locate credentials"):
            pack(RoomSource(tmp_path, 7), f"{bucket}/y", size=16)
    finally:
        filesystem.clear_instance_cache()
