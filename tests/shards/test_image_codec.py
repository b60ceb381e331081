"""Ways of storing an image, against Pillow, NumPy and the package `lz4`; and datasets whose images are no JPEGs."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pytest
import webdataset
from analytic_rooms import RoomSource, room
from commands import command
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from packing import digest
from PIL import Image

from fastssl.errors import DataError, ShardError, UsageError
from fastssl.shards import KEY_BYTES, ShardSet, estimate, image_codec, pack, read_manifest, read_samples
from fastssl.shards.image_codec import IMAGE_CODECS, ImageCodec, ImageCodecName, JpegImages, Lz4Images
from fastssl.shards.manifest import Settings, manifest_bytes
from fastssl.shards.settings import packing_settings
from fastssl.shards.tar import NAME_BYTES
from fastssl.shards.verify import verify
from fastssl.show import sample_facts

SIDE = 32


def codec(name: ImageCodecName, **choices: Any) -> ImageCodec:
    return packing_settings(RoomSource(Path("rooms"), 1), image_codec=name, **choices).images


LZ4 = codec("lz4")
assert isinstance(LZ4, Lz4Images)


def pixels_of(member: bytes) -> NDArray[np.uint8]:
    """As shards/README.md tells."""
    height, width = np.frombuffer(member, "<u2", 2).tolist()
    block = lz4.block.decompress(member[4:], uncompressed_size=3 * height * width)
    return np.frombuffer(block, np.uint8).reshape(height, width, 3).cumsum(axis=0, dtype=np.uint8)


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (*shape, 3), dtype=np.uint8)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), height=st.integers(1, 40), width=st.integers(1, 40), level=st.sampled_from([0, 9]))
def test_every_window_of_any_pixels_comes_back_as_it_was(
    data: st.DataObject, height: int, width: int, level: int
) -> None:
    assert isinstance(LZ4, Lz4Images)
    image = data.draw(arrays(np.uint8, (height, width, 3)))
    member = codec("lz4", lz4_level=level).encode(image)
    np.testing.assert_array_equal(pixels_of(member), image)
    mode: dict[str, Any] = {"mode": "high_compression", "compression": level} if level else {"mode": "default"}
    differences = np.diff(image.astype(np.int16), axis=0, prepend=np.int16(0)).astype(np.uint8)
    assert member[4:] == lz4.block.compress(differences.tobytes(), store_size=False, **mode)
    np.testing.assert_array_equal(LZ4.decode(member, (height, width)), image)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = image[top : data.draw(st.integers(top + 1, height)), left : data.draw(st.integers(left + 1, width))]
    out = np.full_like(np.ascontiguousarray(window), 99)
    LZ4.decode_windows([np.frombuffer(member, np.uint8)], (height, width), np.array([(top, left)]), out[None])
    np.testing.assert_array_equal(out, window)


@pytest.mark.parametrize("quality", [60, 95])
def test_a_jpeg_is_that_of_its_quality_and_decodes_as_by_pillow(quality: int) -> None:
    image = room(0, 24, 40).image
    member = codec("jpeg", jpeg_quality=quality).encode(image)
    with Image.open(io.BytesIO(member)) as opened:
        np.testing.assert_array_equal(codec("jpeg").decode(member, (24, 40)), np.array(opened))
        written = io.BytesIO()
        Image.fromarray(image).save(written, "JPEG", quality=quality, subsampling="4:2:0")
        assert opened.quantization == Image.open(written).quantization  # type: ignore[attr-defined]


def test_codecs_are_told_apart_by_their_members_which_fit_the_names_of_files() -> None:
    made = [codec(name) for name in IMAGE_CODECS]
    assert len({one.member for one in made}) == len(made)
    assert all(KEY_BYTES + 1 + len(one.member) <= NAME_BYTES for one in made)
    for one in made:
        image = noise(9, 9)
        decoded = one.decode(one.encode(image), (9, 9))
        assert (decoded.shape, decoded.dtype) == ((9, 9, 3), np.uint8)
        assert np.array_equal(decoded, image) == one.lossless


WHOLE = noise(SIDE, SIDE)
NOISE_BLOCK = LZ4.encode(WHOLE)[4:]
OTHER_BYTES = lz4.block.compress(bytes(99), store_size=False)
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda member: b"", "an image is damaged"),
    "a header alone": (lambda member: member[:4], "an image is damaged"),
    "cut short": (lambda member: member[:-50], "an image is damaged"),
    "no block": (lambda member: member[:4] + b"\xf0" * 64, "an image is damaged"),
    "a block of another size": (lambda member: member[:4] + OTHER_BYTES, "an image is damaged"),
    "a block that is longer": (lambda member: member[:4] + LZ4.encode(noise(99, 99))[4:], "an image is damaged"),
    "rows and columns changed": (lambda member: b"\x40\0\x10\0" + member[4:], "an image has the wrong size"),
    "65535 rows": (lambda member: b"\xff" * 4 + member[4:], "an image has the wrong size"),
    "a smaller image": (lambda member: LZ4.encode(noise(SIDE - 1, SIDE)), "an image has the wrong size"),
    "a JPEG": (lambda member: codec("jpeg").encode(WHOLE), "an image has the wrong size"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_an_error_and_writes_nothing(kind: str) -> None:
    assert isinstance(LZ4, Lz4Images)
    change, what = DAMAGE[kind]
    member, out = change(LZ4.encode(WHOLE)), np.full((9, 9, 3), 77, np.uint8)
    with pytest.raises(ShardError, match=what) as raised:
        LZ4.decode_windows([np.frombuffer(member, np.uint8)], (SIDE, SIDE), np.array([(3, 4)]), out[None])
    assert (out == 77).all()
    assert raised.value.seen is not None
    with pytest.raises(ShardError, match=what):
        LZ4.decode(member, (SIDE, SIDE))


# Datasets


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rooms in three shards, their images in LZ4 and not resized; not to be written to."""
    out = tmp_path_factory.mktemp("packed") / "pixels"
    source = RoomSource(Path("rooms"), 7, height=SIDE, width=SIDE)
    pack(source, out, size=SIDE, samples_per_shard=3, image_codec="lz4")
    return out


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves that to the collector
def test_samples_have_the_very_pixels_of_their_source(pixels: Path) -> None:
    """By ours, and by webdataset as the format page tells."""
    for number, sample in enumerate(read_samples(pixels)):
        np.testing.assert_array_equal(sample.image, room(number, SIDE, SIDE).image)
        assert sample.depth is not None
        assert sample.class_index == number % 3
    theirs = [str(path) for path in sorted(pixels.glob("*.tar"))]
    for number, stored in enumerate(list(webdataset.WebDataset(theirs, shardshuffle=False))):
        np.testing.assert_array_equal(pixels_of(stored["image.lz4"]), room(number, SIDE, SIDE).image)


def test_the_same_bytes_come_out_of_workers_and_a_dataset_has_no_fault(pixels: Path, tmp_path: Path) -> None:
    source = RoomSource(Path("rooms"), 7, height=SIDE, width=SIDE)
    pack(source, tmp_path / "out", size=SIDE, samples_per_shard=3, image_codec="lz4", workers=2)
    assert digest(tmp_path / "out") == digest(pixels)
    report = verify(pixels)
    assert (report.faults, report.samples) == ([], 7)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_in_a_shard_is_found_and_named(pixels: Path, tmp_path: Path, kind: str) -> None:
    """By `verify`, and when it is read; everything else in the dataset agrees with the damaged member."""
    change, what = DAMAGE[kind]
    copy = Path(shutil.copytree(pixels, tmp_path / "copy"))
    replace_image(copy, "room_001", change)
    (fault,) = [one for one in verify(copy).faults if one.member == "image.lz4" and "CRC" not in one.what]
    assert (fault.file, fault.key, fault.what) == ("000000.tar", "room_001", what)


def replace_image(folder: Path, key: str, change: Callable[[bytes], bytes]) -> None:
    """Rewrite the first shard with one image changed, by `tarfile`."""
    with tarfile.open(folder / "000000.tar") as tar:
        files = [(entry.name, tar.extractfile(entry).read()) for entry in tar]  # type: ignore[union-attr]
    with tarfile.open(folder / "000000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files:
            stored = change(content) if name == f"{key}.image.lz4" else content
            entry = tarfile.TarInfo(name)
            entry.size = len(stored)
            tar.addfile(entry, io.BytesIO(stored))


def test_a_bit_that_still_decodes_is_found_by_its_checksum(pixels: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pixels, tmp_path / "copy"))
    with tarfile.open(copy / "000001.tar") as tar:
        entry = tar.getmember("room_004.image.lz4")
    content = bytearray((copy / "000001.tar").read_bytes())
    content[entry.offset_data + entry.size - 1] ^= 1
    (copy / "000001.tar").write_bytes(content)
    found = {(fault.key, fault.member, fault.what) for fault in verify(copy).faults}
    assert ("room_004", "image.lz4", "a member's CRC-32 is not that of the packed one") in found


def test_statistics_of_pixels_do_not_depend_on_a_decoder_s_version(pixels: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(pixels, tmp_path / "copy"))
    manifest = read_manifest(copy)
    image = manifest.statistics.planes["image"]
    wrong = {"image": image.model_copy(update={"total": [image.total[0] + 1, *image.total[1:]]})}
    statistics = manifest.statistics.model_copy(update={"planes": manifest.statistics.planes | wrong})
    changes = {"statistics": statistics, "versions": manifest.versions | {"simplejpeg": "0"}}
    (copy / "manifest.json").write_bytes(manifest_bytes(manifest.model_copy(update=changes)))
    (fault,) = verify(copy).faults
    assert fault.what == "statistics.planes.image.total is not that of the samples"


def test_readers_of_the_version_before_refuse_it_and_jpegs_are_as_they_were(pixels: Path, rooms: Path) -> None:
    values, before = (json.loads((folder / "manifest.json").read_text()) for folder in (pixels, rooms))
    assert (values["version"], values["settings"]["image_codec"]) == (3, "lz4")
    assert values["settings"].keys() - before["settings"].keys() == {"image_codec"}
    assert before["settings"].keys() - values["settings"].keys() == {"jpeg_quality", "jpeg_subsampling"}
    assert before["version"] == 2
    image = values["members"]["image.lz4"]
    assert (image["inflated_bytes"], image["planes"][0]["shape"]) == (3 * SIDE * SIDE, [SIDE, SIDE, 3])


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(version=2),
        lambda m: m["settings"].pop("image_codec"),
        lambda m: m["settings"].update(jpeg_quality=95),
        lambda m: m["settings"].update(image_codec="png"),
        lambda m: m["members"]["image.lz4"].update(codec="jpeg"),
        lambda m: m["members"]["image.lz4"]["planes"][0].update(differences="none"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    pixels: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    values = json.loads((pixels / "manifest.json").read_text())
    change(values)
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="the manifest is not valid"):
        read_manifest(tmp_path)


def test_a_quality_is_for_jpegs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    source = RoomSource(tmp_path, 3)
    with pytest.raises(UsageError, match="only JPEGs have a quality") as raised:
        pack(source, tmp_path / "out", image_codec="lz4", jpeg_quality=90)
    assert raised.value.where == "jpeg_quality"
    with pytest.raises(UsageError, match="setting is out of range") as raised:
        pack(source, tmp_path / "out", image_codec="png")  # type: ignore[arg-type]
    assert raised.value.where == "image_codec"
    assert not (tmp_path / "out").exists()
    (tmp_path / "photos").mkdir()
    Image.fromarray(WHOLE).save(tmp_path / "photos" / "a.png")
    given = ["shard", tmp_path / "photos", tmp_path / "out", "--layout", "folder", "--image-codec", "lz4"]
    assert command(monkeypatch, *given, "--jpeg-quality", 90) == 2
    assert "only JPEGs have a quality" in re.sub(r"\s+", " ", capsys.readouterr().err)
    assert command(monkeypatch, *given, "--size", SIDE) == 0
    (sample,) = read_samples(tmp_path / "out")
    np.testing.assert_array_equal(sample.image, WHOLE)
    assert command(monkeypatch, "verify", tmp_path / "out") == 0
    facts = sample_facts(ShardSet(tmp_path / "out"), 0, sample)
    assert facts.member_bytes == {"image.lz4": len(LZ4.encode(WHOLE))}


def test_a_packing_does_not_go_on_with_another_codec(tmp_path: Path) -> None:
    source, out = RoomSource(tmp_path, 4, trouble="killed", at=3), tmp_path / "out"
    (out / ".packing").mkdir(parents=True)
    settings = packing_settings(source, size=SIDE)
    plan = image_codec_plan(source, settings)
    (out / ".packing" / "plan.json").write_text(plan)
    with pytest.raises(UsageError, match=r"settings\.image_codec|settings\.jpeg") as raised:
        pack(RoomSource(tmp_path, 4), out, size=SIDE, image_codec="lz4", resume=True)
    assert "other settings" in str(raised.value)


def image_codec_plan(source: RoomSource, settings: Settings) -> str:
    from fastssl.shards.plan import plan_of

    return plan_of(source, settings, None).model_dump_json(by_alias=True)


@pytest.mark.parametrize("broken", [lambda block: block[:-20], lambda block: NOISE_BLOCK])
def test_an_image_that_does_not_come_back_is_never_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[bytes], bytes]
) -> None:
    whole = image_codec.compressed
    monkeypatch.setattr(image_codec, "compressed", lambda *given, **more: broken(whole(*given, **more)))
    with pytest.raises(DataError, match="no image of the dataset can be used") as raised:
        pack(RoomSource(tmp_path, 2), tmp_path / "out", size=SIDE, image_codec="lz4")
    assert "an image was packed but" in str(raised.value)


def test_a_dry_run_tells_the_bytes_of_the_codec(tmp_path: Path) -> None:
    source = RoomSource(tmp_path, 3)
    manifest = pack(source, tmp_path / "out", size=64, image_codec="lz4")
    stored = sum(entry.bytes for entry in manifest.shards)
    assert estimate(source, size=64, image_codec="lz4").estimated_bytes == pytest.approx(stored, abs=1100)
    assert isinstance(manifest.settings.images, Lz4Images)
    assert isinstance(packing_settings(source).images, JpegImages)
