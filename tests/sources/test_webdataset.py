"""Archives that `webdataset` writes, against what it reads out of them."""

from __future__ import annotations

import gzip
import pickle
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from sources.trees.photos import write_photos
from sources.trees.webdataset import image, shades, write_members, write_samples, write_tree

from fastssl.errors import DataError
from fastssl.shards import pack, read_samples
from fastssl.sources.webdataset import WebDatasetSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "set")


def test_samples_are_those_that_webdataset_finds(folder: Path) -> None:
    source = WebDatasetSource(folder)
    references = list(source.references())
    records = [source.read(reference) for reference in references]
    assert [(shades(record.image), record.label) for record in records] == [(10, 3), (20, 0), (30, None), (40, 5)]
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
    assert [(shades(record.image), record.label) for record in records] == [(10, None), (20, 2), (30, None)]


def test_the_photo_of_a_sample_is_the_one_named_so(tmp_path: Path) -> None:
    path = write_members(
        *(tmp_path / "a.tar", ("a.png", image(10, "PNG")), ("a.jpg", image(20)), ("a.seg.png", image(30, "PNG"))),
        *(("b.left.JPG", image(40)), ("b.right.jpg", image(50)), ("c.d/e.jpg", image(60)), ("none", b"text")),
    )
    source = WebDatasetSource(path)
    assert [shades(source.read(reference).image) for reference in source.references()] == [20, 40, 60]


def test_samples_without_a_usable_photo_or_class_are_named(tmp_path: Path) -> None:
    path = write_members(
        *(
            tmp_path / "a.tar",
            ("a.txt", b"no photo"),
            ("b.jpg", image(20)[:300]),
            ("c.jpg", image(30)),
            ("c.cls", b"cat"),
        ),
        ("d.jpg", image(40)),
    )
    source = WebDatasetSource(path)
    references = list(source.references())
    for reference, message in zip(references, ("a.*no photo|no photo.*\n.*a", r"b\.jpg", r"c\.cls"), strict=False):
        with pytest.raises(DataError, match=message) as caught:
            source.read(reference)
        assert "a.tar" in str(caught.value)
    assert shades(source.read(references[-1]).image) == 40


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9, 1])
def test_an_archive_cut_short_is_named_at_once(folder: Path, share: float) -> None:
    path = folder / "photos-000001.tar"
    with tarfile.open(path) as archive:
        end = max(member.offset_data + member.size for member in archive)
    path.write_bytes(path.read_bytes()[: int(end * share)])
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
    references = WebDatasetSource(path).references()
    assert [next(references)] == ["a.tar/0/10"]
    with pytest.raises(DataError, match=r"damaged(.|\n)*a\.tar"):
        list(references)


@pytest.mark.parametrize(
    "content", [b"", b"text" * 1000, gzip.compress(bytes(5000)), bytes(700)], ids=["empty", "text", "gzip", "odd"]
)
def test_what_is_no_plain_tar_is_named(folder: Path, content: bytes) -> None:
    (folder / "photos-000001.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"not a plain tar file(.|\n)*photos-000001\.tar"):
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
    with pytest.raises(DataError, match=r"cannot be opened(.|\n)*photos-000000"):
        source.read(references[0])


def test_listing_keeps_nothing_of_an_archive_in_memory(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = write_members(tmp_path / f"{count}.tar", *((f"{number}.jpg", b"") for number in range(count)))
        source = WebDatasetSource(path)
        tracemalloc.start()
        assert sum(1 for _ in source.references()) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(3000) < 1.3 * peak(300)


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
    assert [sample.label for sample in samples] == [3, 0, None, 5]
    assert np.abs(np.array([shades(sample.image) for sample in samples]) - [10, 20, 30, 40]).max() <= 2
