"""Archives that `webdataset` writes, against what it reads out of them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import re
import subprocess
import tarfile
import tempfile
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features
from sources.trees.photos import write_photos
from sources.trees.webdataset import image, shades, write_members, write_samples, write_tree

from fastssl.errors import DataError, MachineError
from fastssl.faults import machine_fault
from fastssl.shards import pack, read_samples
from fastssl.sources.webdataset import WebDatasetSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "set")


def test_samples_are_those_that_webdataset_finds(folder: Path) -> None:
    source = WebDatasetSource(folder)
    references = list(source.references())
    records = [source.read(reference) for reference in references]
    assert [(shades(record.image), record.class_index) for record in records] == [(10, 3), (20, 0), (30, None), (40, 5)]
    expected = [sample["__key__"] for sample in read_by_webdataset(*sorted(folder.glob("*.tar")))]
    assert [reference.split("/", 2)[2] for reference in references] == expected
    assert (source.layout, source.domain, source.labelled, source.subset) == ("webdataset", "real", False, None)


def read_by_webdataset(*archives: Path) -> list[dict[str, Any]]:
    samples = []
    for archive in archives:
        with archive.open("rb") as file:
            files = ({**member, "__url__": "-"} for member in webdataset.tariterators.tar_file_iterator(file))
            samples += list(webdataset.tariterators.group_by_keys(files))
    return samples


def test_keys_are_legal_and_unique_even_where_archives_repeat_them(folder: Path) -> None:
    write_samples(folder / "photos-000002.tar", *[{"__key__": "again", "jpg": image(shade)} for shade in (50, 60)])
    source = WebDatasetSource(folder)
    references = list(source.references())
    keys = [source.key(reference) for reference in references]
    assert len(set(keys)) == len(keys) == 6
    assert keys[0] == "photos-000000__0__n01__n01_1"
    assert [source.read(reference).key for reference in references] == keys
    assert [shades(source.read(reference).image) for reference in references[-2:]] == [50, 60]


def test_every_reference_is_read_by_itself_in_any_order(folder: Path) -> None:
    references = list(WebDatasetSource(folder).references())
    source = pickle.loads(pickle.dumps(WebDatasetSource(folder)))
    assert [shades(source.read(reference).image) for reference in reversed(references)] == [40, 30, 20, 10]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_is_read_long_names_and_folders_too(tmp_path: Path, form: int) -> None:
    long = "folder/" * (10 if form == tarfile.USTAR_FORMAT else 30) + "x" * 60
    path = write_members(
        *(
            tmp_path / "a.tar",
            ("a.jpg", image(10)),
            (f"{long}.jpg", image(20)),
            (f"{long}.cls", b"2"),
            ("b.jpg", image(30)),
        ),
        form=form,
    )
    with tarfile.open(path, "a", format=form) as archive:
        archive.add(tmp_path, "c.jpg", recursive=False)  # a folder
    source = WebDatasetSource(path)
    records = [source.read(reference) for reference in source.references()]
    assert [(shades(record.image), record.class_index) for record in records] == [(10, None), (20, 2), (30, None)]


def test_the_photo_of_a_sample_is_the_one_named_so(tmp_path: Path) -> None:
    path = write_members(
        *(tmp_path / "a.tar", ("a.png", image(10, "PNG")), ("a.jpg", image(20)), ("a.seg.png", image(30, "PNG"))),
        *(("b.left.JPG", image(40)), ("b.right.jpg", image(50)), ("c.d/e.jpg", image(60)), ("none", b"text")),
    )
    source = WebDatasetSource(path)
    assert [shades(source.read(reference).image) for reference in source.references()] == [20, 40, 60]


def test_samples_whose_photo_or_class_is_damaged_are_named(tmp_path: Path) -> None:
    path = write_members(
        *(
            tmp_path / "a.tar",
            ("b.jpg", image(20)[:300]),
            ("c.jpg", image(30)),
            ("c.cls", b"cat"),
        ),
        ("d.jpg", image(40)),
    )
    source = WebDatasetSource(path)
    references = list(source.references())
    for reference, message in zip(references, (r"b\.jpg", r"c\.cls"), strict=False):
        with pytest.raises(DataError, match=message) as caught:
            source.read(reference)
        assert "a.tar" in str(caught.value)
    assert shades(source.read(references[-1]).image) == 40


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.5, 0.9, 1])
def test_an_archive_cut_short_is_named_at_once(folder: Path, fraction: float) -> None:
    path = folder / "photos-000001.tar"
    with tarfile.open(path) as archive:
        end = max(member.offset_data + member.size for member in archive)
    path.write_bytes(path.read_bytes()[: int(end * fraction)])
    with pytest.raises(DataError, match=r"cut short(.|\n)*photos-000001\.tar"):
        WebDatasetSource(folder)


@pytest.mark.parametrize("cut", [0, 100, 512, 700, 1024])
def test_an_archive_cut_where_its_last_bytes_are_zeros_is_named_too(tmp_path: Path, cut: int) -> None:
    """In the middle of a member of zeros, which looks like the end; only walking through the archive tells."""
    members = [(f"{number}.jpg", image(10)) for number in range(3)] + [("3.txt", bytes(4096))]
    path = write_members(tmp_path / "a.tar", *members)
    with tarfile.open(path) as archive:
        last = archive.getmember("3.txt").offset_data
    path.write_bytes(path.read_bytes()[: last + 2048 + cut])
    with pytest.raises(DataError, match=r"cut short(.|\n)*a\.tar"):
        list(WebDatasetSource(path).references())


def test_damage_between_members_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_members(tmp_path / "a.tar", *((f"{number}.jpg", image(number)) for number in range(10, 14)))
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        header = archive.getmember("12.jpg").offset
    content[header : header + 100] = b"x" * 100
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged(.|\n)*a\.tar"):
        list(WebDatasetSource(path).references())


@pytest.mark.parametrize(
    "content", [b"", b"text" * 1000, b"\x28\xb5\x2f\xfd" + bytes(600), bytes(700)], ids=["empty", "text", "zstd", "odd"]
)
def test_what_is_no_tar_is_named(folder: Path, content: bytes) -> None:
    (folder / "photos-000001.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"not a tar file(.|\n)*photos-000001\.tar"):
        WebDatasetSource(folder)


def test_an_archive_that_changes_under_way_is_an_error(folder: Path) -> None:
    source = WebDatasetSource(folder)
    references = list(source.references())
    path = folder / "photos-000000.tar"
    path.write_bytes(path.read_bytes()[:2048])
    for reference in references[:3]:
        with pytest.raises(DataError, match="photos-000000"):
            source.read(reference)
    path.unlink()
    with pytest.raises(DataError, match=r"is missing(.|\n)*photos-000000"):
        source.read(references[0])


def test_listing_keeps_a_number_for_each_sample_in_memory(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = write_members(tmp_path / f"{count}.tar", *((f"{number}.jpg", b"") for number in range(count)))
        source = WebDatasetSource(path)
        tracemalloc.start()
        assert sum(1 for _ in source.references()) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert (peak(3000) - peak(300)) / 2700 < 40


def test_what_fastssl_packed_is_refused_with_a_hint(folder: Path, tmp_path: Path) -> None:
    pack(WebDatasetSource(folder), tmp_path / "packed", size=8)
    for path in (tmp_path / "packed", tmp_path / "packed" / "000000.tar"):
        assert WebDatasetSource.recognise(path)
        with pytest.raises(DataError, match=r"packed already(.|\n)*train from this folder"):
            WebDatasetSource(path)


def test_an_archive_is_recognised_and_photos_are_not(folder: Path, tmp_path: Path) -> None:
    assert WebDatasetSource.recognise(folder / "photos-000000.tar")
    write_photos(tmp_path / "photos", "a.jpg")
    for path in (tmp_path / "photos", tmp_path / "photos" / "a.jpg", tmp_path / "missing"):
        assert not WebDatasetSource.recognise(path)
        with pytest.raises(DataError, match="no archives"):
            WebDatasetSource(path)


def test_it_packs(folder: Path, tmp_path: Path) -> None:
    manifest = pack(WebDatasetSource(folder), tmp_path / "out", size=8)
    assert (manifest.layout, manifest.domain, manifest.samples) == ("webdataset", "real", 4)
    samples = list(read_samples(tmp_path / "out"))
    assert [sample.class_index for sample in samples] == [3, 0, None, 5]
    assert np.abs(np.array([shades(sample.image) for sample in samples]) - [10, 20, 30, 40]).max() <= 2


def found(source: WebDatasetSource) -> list[tuple[int, int | None]]:
    """Shade and class of every sample."""
    records = [source.read(reference) for reference in source.references()]
    return [(shades(record.image), record.class_index) for record in records]


def counts(source: WebDatasetSource) -> dict[str, int]:
    return {reason: passed.count for reason, passed in source.passed_over().items()}


def test_members_of_a_key_that_lie_apart_are_joined(tmp_path: Path) -> None:
    """As `tar cf s.tar *.cls *.jpg *.json` lays them."""
    names = [f"{number:03d}" for number in range(110)]
    path = write_members(
        tmp_path / "s.tar",
        *((f"{name}.cls", str(int(name)).encode()) for name in names),
        *((f"{name}.jpg", image(10 * (int(name) % 12))) for name in names),
        *((f"{name}.json", b"{}") for name in names),
    )
    source = WebDatasetSource(path)
    assert found(source) == [(10 * (number % 12), number) for number in range(110)]
    assert counts(source) == {"members ending in .json": 110}
    references = list(source.references())
    assert references[0].count("+") == 2
    keys = [source.key(reference) for reference in references]
    assert keys[:2] == ["s__0__000", "s__2__001"]
    assert len(set(keys)) == 110


def test_a_run_that_has_a_kind_again_is_another_sample_with_all_that_it_has(tmp_path: Path) -> None:
    """The class in front of the second photo is not the first one's, though that has none."""
    path = write_members(
        *(tmp_path / "s.tar", ("a.jpg", image(10)), ("b.jpg", image(20)), ("a.cls", b"1"), ("a.jpg", image(30))),
        *(("c.jpg", image(40)), ("b.cls", b"2"), ("c.cls", b"3")),
    )
    assert found(WebDatasetSource(path)) == [(10, None), (20, 2), (30, 1), (40, 3)]


def joined(target: Path, *parts: Path, padding: int = 0) -> Path:
    target.write_bytes(b"".join(part.read_bytes() + bytes(512 * padding) for part in parts))
    return target


@pytest.mark.parametrize("padding", [0, 1, 3000])
def test_archives_joined_by_cat_are_read_to_the_end(tmp_path: Path, padding: int) -> None:
    """They share no samples: the class at the start of the second is not that of the first one's photo."""
    first = write_members(tmp_path / "parts" / "a", ("a.jpg", image(10)), ("b.jpg", image(20)))
    second = write_members(tmp_path / "parts" / "b", ("b.cls", b"1"), ("c.jpg", image(30)), ("b.jpg", image(40)))
    third = write_members(tmp_path / "parts" / "c", ("b.jpg", image(50)), ("b.cls", b"2"))
    source = WebDatasetSource(joined(tmp_path / "s.tar", first, second, third, padding=padding))
    assert found(source) == [(10, None), (20, None), (40, 1), (30, None), (50, 2)]
    assert len({source.key(reference) for reference in source.references()}) == 5
    with (tmp_path / "s.tar").open("ab") as file:
        file.write(b"x" * 512 + bytes(512))
    with pytest.raises(DataError, match=r"damaged(.|\n)*s\.tar"):
        list(source.references())


COMPRESSIONS = {
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tbz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".txz": lzma.compress,
    ".TAR": bytes,
    ".Tar.Gz": gzip.compress,
    ".tar": gzip.compress,  # the content counts
}


@pytest.mark.parametrize("ending", COMPRESSIONS)
def test_compressed_archives_are_read(folder: Path, ending: str) -> None:
    plain = WebDatasetSource(folder)
    expected, keys = found(plain), {plain.key(reference) for reference in plain.references()}
    for path in folder.glob("*.tar"):
        content = path.read_bytes()
        path.unlink()
        path.with_suffix(ending).write_bytes(COMPRESSIONS[ending](content))
    source = WebDatasetSource(folder)
    assert found(source) == expected
    if ending != ".tar":
        assert not keys & {source.key(reference) for reference in source.references()}
    references = list(pickle.loads(pickle.dumps(source)).references())
    assert [shades(source.read(reference).image) for reference in reversed(references)] == [40, 30, 20, 10]


@pytest.mark.parametrize("ending", [".tar.gz", ".tar.bz2", ".tar.xz"])
@pytest.mark.parametrize("fraction", [0, 0.01, 0.5, 0.99])
def test_a_compressed_archive_cut_short_is_named(folder: Path, ending: str, fraction: float) -> None:
    content = COMPRESSIONS[ending]((folder / "photos-000000.tar").read_bytes())
    (folder / f"z{ending}").write_bytes(content[: int(len(content) * fraction)])
    with pytest.raises(DataError, match=rf"cut short(.|\n)*z\{ending}") as caught:
        list(WebDatasetSource(folder).references())
    assert machine_fault(caught.value) is None


def test_a_compressed_archive_of_half_a_tar_is_named(folder: Path) -> None:
    (folder / "z.tar.gz").write_bytes(gzip.compress((folder / "photos-000000.tar").read_bytes()[:3000]))
    with pytest.raises(DataError, match=r"cut short(.|\n)*z\.tar\.gz"):
        list(WebDatasetSource(folder).references())


def test_no_room_to_decompress_is_the_machines_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "z.tgz").write_bytes(gzip.compress((folder / "photos-000000.tar").read_bytes()))
    source = WebDatasetSource(folder)

    class Full:
        def write(self, _: bytes) -> None:
            raise OSError(28, os.strerror(28))

        def close(self) -> None: ...

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(MachineError, match=r"disk is full(.|\n)*TMPDIR"):
        list(source.references())


def test_threads_read_one_compressed_archive(folder: Path) -> None:
    names = [f"{number:03d}" for number in range(60)]
    write_members(folder / "m.tar", *((f"{name}.jpg", image(10 * (int(name) % 12))) for name in names))
    packed = folder.parent / "one" / "m.tgz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress((folder / "m.tar").read_bytes()))
    source = WebDatasetSource(packed)
    seen: list[list[tuple[int, int | None]]] = []
    threads = [threading.Thread(target=lambda: seen.append(found(source))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[(10 * (number % 12), None) for number in range(60)]] * 4


def test_archives_in_folders_are_read_and_hidden_and_packed_ones_counted(folder: Path, tmp_path: Path) -> None:
    write_samples(folder / "x" / "3.tar", {"__key__": "k", "jpg": image(50)})
    write_samples(folder / "x" / "3" / "7.tar", {"__key__": "k", "jpg": image(60)})
    write_samples(folder / "._a.tar", {"__key__": "k", "jpg": image(70)})
    write_samples(folder / ".git" / "a.tar", {"__key__": "k", "jpg": image(70)})
    os.mkfifo(folder / "pipe.tar")
    (folder / "gone.tar").symlink_to("nowhere")
    (folder / "loop").symlink_to(folder)
    for name in ("more.tar.zst", "rest.zip"):
        (folder / name).write_bytes(b"content")
    pack(WebDatasetSource(folder / "photos-000000.tar"), folder / "packed", size=8)
    source = WebDatasetSource(folder)
    assert [shade for shade, _ in found(source)] == [10, 20, 30, 40, 50, 60]
    assert len({source.key(reference) for reference in source.references()}) == 6
    assert counts(source) == {
        "archives ending in .tar.zst (zstd -d decompresses them)": 1,
        "archives ending in .zip (unpack them)": 1,
        "files ending in .txt": 1,
        "folders of packed shards": 1,
        "hidden files and folders": 2,
        "links that lead back to a folder above them": 1,
        "links that lead nowhere": 1,
        "members ending in .json": 1,
        "special files (pipes, sockets, devices)": 1,
    }


def test_a_number_in_a_path_is_no_offset(tmp_path: Path) -> None:
    path = write_members(tmp_path / "5" / "x.tar", ("7/k.jpg", image(10)), ("7/8/9.jpg", image(20)))
    write_members(tmp_path / "x.tar", ("3/y.tar/7/k.jpg", image(30)))
    source = WebDatasetSource(tmp_path)
    assert list(source.references()) == ["5/x.tar/0/7/k", "5/x.tar/1536/7/8/9", "x.tar/0/3/y.tar/7/k"]
    assert [shade for shade, _ in found(source)] == [10, 20, 30]
    assert WebDatasetSource(path).key("x.tar/0/7/k") == "x__0__7__k"
    write_members(tmp_path / "x" / "3" / "y.tar", ("k.jpg", image(10)))
    source = WebDatasetSource(tmp_path)
    assert source.key("x.tar/1536/y.tar/7/k") != source.key("x/3/y.tar/3584/k")  # both are x/3/y.tar/7/k
    for wrong in ("y.tar/0/k", "x.tar/k", "x.tar", "5/x.tar/k"):
        with pytest.raises(DataError, match="not of this dataset"):
            source.key(wrong)


ALL_KINDS = {"bmp": "BMP", "dib": "DIB", "tif": "TIFF", "tiff": "TIFF", "gif": "GIF", "jfif": "JPEG", "jpe": "JPEG"}
ALL_KINDS |= {"avif": "AVIF"} if features.check("avif") else {}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_member_of_any_kind_of_image_is_a_photo(tmp_path: Path, kind: str) -> None:
    path = write_members(tmp_path / "s.tar", (f"a.{kind.upper()}", image(50, ALL_KINDS[kind])), ("a.cls", b"7"))
    assert found(WebDatasetSource(path)) == [(50, 7)]


def test_photos_beside_the_first_one_are_counted_and_named(tmp_path: Path) -> None:
    """Names with dots, as screenshots have them, give one key to many photos: that is the format's rule."""
    name = "Screenshot 2019-01-01 at 10."
    path = write_members(tmp_path / "s.tar", *((f"{name}{end}.jpg", image(10)) for end in ("00.01", "00.02", "15.33")))
    source = WebDatasetSource(path)
    assert found(source) == [(10, None)]
    (passed,) = source.passed_over().values()
    assert list(source.passed_over()) == ["photos beside the first one of their sample"]
    assert passed.count == 2
    assert passed.first == [f"s.tar/{name}00.02.jpg", f"s.tar/{name}15.33.jpg"]


@pytest.mark.parametrize(("text", "number"), [(b"0", 0), (b" 12\r\n", 12), (b"-1", None), (b"-1\n", None), (b"007", 7)])
def test_a_class_is_an_integer_and_minus_one_is_none(tmp_path: Path, text: bytes, number: int | None) -> None:
    path = write_members(tmp_path / "s.tar", ("a.jpg", image(10)), ("a.cls", text), ("a.cls.txt", b"5"))
    source = WebDatasetSource(path)
    assert found(source) == [(10, number)]
    assert counts(source) == {"members ending in .txt": 1}


@pytest.mark.parametrize("text", [b"", b"cat", b"1.0", b"1_0", b"-2", b"1 2", b"\xd9\xa1", b"+1"])
def test_any_other_class_is_named(tmp_path: Path, text: bytes) -> None:
    source = WebDatasetSource(write_members(tmp_path / "s.tar", ("a.jpg", image(10)), ("a.cls", text)))
    with pytest.raises(DataError, match=r"class(.|\n)*s\.tar: a\.cls"):
        source.read(next(source.references()))


def test_odd_names_of_members(tmp_path: Path) -> None:
    path = write_members(
        *(tmp_path / "s.tar", ("./a.jpg", image(10)), ("/data/b.jpg", image(20)), ("../c.jpg", image(30))),
        *(("d.v1\\x.jpg", image(40)), ("d.v1\\y.jpg", image(50)), ("__MACOSX/a.jpg", b""), ("e/._a.jpg", b"")),
        *((".thumbs/a.jpg", b""), ("noending", b""), ("f.heic.json", b""), (".jpg", b"")),
    )
    source = WebDatasetSource(path)
    assert [shade for shade, _ in found(source)] == [10, 20, 30, 40, 50]
    assert source.key(next(source.references())).startswith("s__0___")
    assert counts(source) == {
        "hidden members of archives": 4,
        "members of samples without a photo": 1,
        "members without an ending": 1,
    }


def test_names_that_are_not_utf_8_pack(tmp_path: Path) -> None:
    path = tmp_path / "in" / "s.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
        for name in ("caf\xe9.jpg", "ok.jpg"):
            header = tarfile.TarInfo(name)
            header.size = len(image(10))
            archive.addfile(header, io.BytesIO(image(10)))
    source = WebDatasetSource(path)
    keys = [source.key(reference) for reference in source.references()]
    assert all(re.fullmatch("[0-9a-z_-]+", key) for key in keys)
    assert pack(source, tmp_path / "out", size=8).samples == 2
    assert sorted(sample.key for sample in read_samples(tmp_path / "out")) == sorted(keys)


def test_links_and_special_members_are_counted_and_not_opened(tmp_path: Path) -> None:
    path = write_members(tmp_path / "s.tar", ("a.jpg", image(10)))
    with tarfile.open(path, "a", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in {
            "b": tarfile.SYMTYPE,
            "c": tarfile.LNKTYPE,
            "d": tarfile.FIFOTYPE,
            "e": tarfile.CHRTYPE,
        }.items():
            header = tarfile.TarInfo(f"{name}.jpg")
            header.type, header.linkname = kind, "a.jpg" if name in "bc" else ""
            archive.addfile(header)
    source = WebDatasetSource(path)
    assert found(source) == [(10, None)]
    special = "special files in archives (pipes, devices, parts of volumes)"
    assert counts(source) == {"links in archives": 2, special: 2}


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_sparse_members_are_counted(tmp_path: Path, form: str) -> None:
    with (tmp_path / "hole.jpg").open("wb") as file:
        file.write(b"x")
        file.truncate(1 << 20)
    (tmp_path / "a.jpg").write_bytes(image(10))
    command = ["tar", "-C", tmp_path, "-S", f"--format={form}", "-cf", tmp_path / "s.tar", "hole.jpg", "a.jpg"]
    subprocess.run(command, check=True)
    source = WebDatasetSource(tmp_path / "s.tar")
    assert found(source) == [(10, None)]
    assert counts(source) == {"sparse files in archives": 1}


def test_wrong_sources_are_told_what_they_are(tmp_path: Path) -> None:
    for name in ("photos.zip", "photo.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"content")
    os.mkfifo(tmp_path / "pipe.tar")
    for name, words in {
        "photos.zip": r"not read(.|\n)*unpack it",
        "photo.jpg": r"a photo(.|\n)*--layout folder",
        "notes.txt": "another kind",
        "pipe.tar": "another kind",
        "missing": "nothing",
    }.items():
        with pytest.raises(DataError, match=rf"no archives(.|\n)*{words}"):
            WebDatasetSource(tmp_path / name)
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="an empty folder"):
        WebDatasetSource(tmp_path / "set")
    for number in range(3):
        (tmp_path / "set" / f"{number}.tar.zst").write_bytes(b"content")
    with pytest.raises(DataError, match=r"3 archives ending in \.tar\.zst(.|\n)*decompress"):
        WebDatasetSource(tmp_path / "set")


def test_evidence_is_told_and_an_archive_beside_what_was_unpacked_from_it_is_none(folder: Path, tmp_path: Path) -> None:
    assert WebDatasetSource.recognise(folder) == "2 archives, such as photos-000000.tar"
    assert WebDatasetSource.recognise(folder.parent) == "2 archives, such as set/photos-000000.tar"
    assert WebDatasetSource.recognise(folder / "photos-000001.tar") == "photos-000001.tar is an archive"
    (folder / "preview.jpg").write_bytes(image(10))
    assert WebDatasetSource.recognise(folder)
    write_photos(folder / "photos" / "train", "cat/a.jpg")
    assert WebDatasetSource.recognise(folder) is None


NAMES = st.sampled_from(["a", "b", "c/a", "._d", "caf\udce9"])
ENDINGS = st.sampled_from(["jpg", "PNG", "gif", "cls", "json", "seg.png", "txt", ""])
MEMBERS = st.lists(st.tuples(NAMES, ENDINGS), max_size=9)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.lists(st.lists(MEMBERS, min_size=1, max_size=2), min_size=1, max_size=3), st.data())
def test_every_member_is_used_or_counted(
    tmp_path_factory: pytest.TempPathFactory, archives: list[list[list[tuple[str, str]]]], data: st.DataObject
) -> None:
    """Any members in any order, in joined and compressed archives, against a walk with `tarfile` alone."""
    folder = tmp_path_factory.mktemp("any")
    expected: list[tuple[int, int | None]] = []
    everything, shade = 0, 0
    for number, parts in enumerate(archives):
        contents = b""
        for part in parts:
            rows = []
            for name, ending in part:
                everything += 1
                shade = shade % 12 + 1
                content = {"cls": str(everything).encode(), "json": b"{}", "txt": b"", "": b""}.get(ending)
                kind = {"jpg": "JPEG", "gif": "GIF"}.get(ending, "PNG")
                rows.append((f"{name}.{ending}".rstrip("."), image(10 * shade, kind) if content is None else content))
            path = write_members(folder.parent / "part.tar", *rows, form=data.draw(st.sampled_from([0, 1, 2])))
            contents += path.read_bytes()
            expected += expected_samples(path)
        ending = data.draw(st.sampled_from([".tar", ".tar.gz", ".txz"]))
        (folder / f"{number}{ending}").write_bytes(COMPRESSIONS[ending](contents) if ending != ".tar" else contents)
    source = WebDatasetSource(folder)
    samples = found(source)
    assert samples == expected
    used = len(samples) + sum(label is not None for _, label in samples)
    assert used + sum(counts(source).values()) == everything
    keys = [source.key(reference) for reference in source.references()]
    assert len(set(keys)) == len(keys)


def expected_samples(path: Path) -> list[tuple[int, int | None]]:
    """Shade and class of the samples of an archive that was not joined."""
    samples: list[tuple[str, dict[str, bytes]]] = []
    last: tuple[str, dict[str, bytes]] | None = None
    with tarfile.open(path, errors="surrogateescape") as archive:
        runs: list[tuple[str, dict[str, bytes]]] = []
        for member in archive:
            folder, _, file_name = member.name.rpartition("/")
            stem, dot, kind = file_name.partition(".")
            if not stem or not dot:
                continue
            content = archive.extractfile(member)
            assert content is not None
            key = f"{folder}/{stem}"
            if last is None or last[0] != key or kind.lower() in last[1]:
                last = (key, {})
                runs.append(last)
            last[1][kind.lower()] = content.read()
    for key, kinds in runs:
        before = [sample for sample in samples if sample[0] == key]
        if before and not before[-1][1].keys() & kinds.keys():
            before[-1][1].update(kinds)
        else:
            samples.append((key, kinds))
    result = []
    for _, kinds in samples:
        photo = next((kind for kind in ("jpg", "png", "gif", "seg.png") if kind in kinds), None)
        if photo is not None:
            with Image.open(io.BytesIO(kinds[photo])) as picture:
                pixels = np.array(picture.convert("RGB"))
            result.append((shades(pixels), int(kinds["cls"]) if "cls" in kinds else None))
    return result
