from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sources.trees.photos import write_photos
from sources.trees.places365 import (
    CATEGORIES,
    VAL,
    save_photo,
    write_easyformat,
    write_lists,
    write_train,
    write_tree,
    write_val,
)

from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.shards import pack, read_samples
from fastssl.sources.places365 import Places365Source
from fastssl.sources.places365_categories import CATEGORIES as OFFICIAL


def labels(source: Places365Source) -> dict[str, int | None]:
    return {reference: source.read(reference).class_index for reference in source.references()}


def expected_train(folder: str, numbers: dict[str, int] = CATEGORIES) -> dict[str, int | None]:
    return {f"{folder}/{category}/{photo:08d}.jpg": numbers[category] for category in CATEGORIES for photo in (1, 2)}


@pytest.mark.parametrize("name", ["data_256", "data_large", "data_256_standard", "data_large_standard"])
@pytest.mark.parametrize("place", ["", "filelist_places365-standard"])
def test_classes_of_the_training_photos_are_the_official_numbers(tmp_path: Path, name: str, place: str) -> None:
    write_train(tmp_path, name)
    write_lists(tmp_path / place, "categories_places365.txt")
    assert Places365Source.recognise(tmp_path)
    source = Places365Source(tmp_path)
    assert labels(source) == expected_train(name)
    assert list(source.references()) == sorted(expected_train(name))
    assert source.key(f"{name}/a/airfield/00000001.jpg") == f"{name}__a__airfield__00000001"


def test_the_table_of_categories_is_the_datasets_own_list() -> None:
    """The file made again: its MD5 is the one that torchvision checks downloads by."""
    lines = [f"/{name[0]}/{name} {number}" for name, number in OFFICIAL.items()]
    assert hashlib.md5("\n".join(lines).encode()).hexdigest() == "06c963b85866bd0649f97cb43dd16673"


def test_without_a_list_numbers_are_the_official_ones_whichever_folders_there_are(tmp_path: Path) -> None:
    write_train(tmp_path)
    source = Places365Source(tmp_path)
    assert labels(source) == expected_train("data_256")
    assert len(source.classes) == 365
    assert source.classes | {category[2:].replace("/", "-"): n for category, n in CATEGORIES.items()} == source.classes
    (tmp_path / "data_256" / "a" / "airplane_cabin").mkdir()  # no photo in it, as after a partial download
    shutil.rmtree(tmp_path / "data_256" / "a" / "airfield")
    after = labels(Places365Source(tmp_path))
    assert after == {path: number for path, number in expected_train("data_256").items() if "airfield" not in path}


def write_part(folder: Path, root: str) -> None:
    if root.startswith("places365_standard"):
        write_easyformat(folder / "places365_standard")
    elif "val" in root:
        write_val(folder, root)
    else:
        write_train(folder, root)


@pytest.mark.parametrize(
    ("root", "subset", "same_as"),
    [
        *(("data_256", "train", "."), ("data_large_standard", "train", "."), ("photos", "train", None)),
        *(("val_256", "val", "."), ("val_large", "val", "."), ("photos of val", "val", None)),
        *(("places365_standard/train", "train", "places365_standard"), ("places365_standard/val", "val", None)),
    ],
)
@pytest.mark.parametrize("place", ["", "filelist_places365-standard"])
def test_a_part_may_be_given_itself(tmp_path: Path, root: str, subset: str, same_as: str | None, place: str) -> None:
    """With the numbers of lists beside it, and the keys that it has when the folder above it is given."""
    write_part(tmp_path, root)
    write_lists(tmp_path / place)
    assert Places365Source.recognise(tmp_path / root) == f"it is a part of the dataset, photos of {subset}"
    source = Places365Source(tmp_path / root)
    found = labels(source)
    assert set(found.values()) == set((VAL if root.startswith(("val", "photos of")) else CATEGORIES).values())
    if same_as is not None:
        above = Places365Source(tmp_path / same_as, subset=subset)
        assert found == labels(above)
        assert [source.key(reference) for reference in found] == [above.key(reference) for reference in found]
    assert source.passed_over() == {}
    assert list(Places365Source(tmp_path / root, subset=subset).references()) == list(found)
    with pytest.raises(DataError, match="no photos of Places365, subset"):
        Places365Source(tmp_path / root, subset="val" if subset == "train" else "train")


def test_a_part_may_be_given_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_train(tmp_path)
    (tmp_path / "data_256" / "a").mkdir(exist_ok=True)
    for folder, path in ((tmp_path, "data_256"), (tmp_path / "data_256", "."), (tmp_path / "data_256" / "a", "..")):
        monkeypatch.chdir(folder)
        assert labels(Places365Source(path)) == expected_train("data_256")


@pytest.mark.parametrize("name", ["categories_places365.txt", "places365_val.txt"])
@pytest.mark.parametrize(
    "spoilt",
    [
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\n\n", 1),
        lambda text: "\ufeff" + text.replace("\n", "  \r\n"),
        lambda text: text.rstrip("\n") + "\n \t\n",
    ],
    ids=["blank at the end", "blank in the middle", "mark, blanks, carriage returns", "blanks at the end"],
)
def test_lists_are_read_as_editors_leave_them(tmp_path: Path, name: str, spoilt: Callable[[str], str]) -> None:
    write_tree(tmp_path)
    path = tmp_path / name
    path.write_bytes(spoilt(path.read_text()).encode())
    assert labels(Places365Source(tmp_path)) == expected_train("data_256") | {f"val_256/{p}": n for p, n in VAL.items()}


def test_lists_that_count_from_1_or_give_a_number_twice_are_refused(tmp_path: Path) -> None:
    write_val(tmp_path)
    (tmp_path / "places365_val.txt").write_text("Places365_val_00000001.jpg 365\nPlaces365_val_00000002.jpg 1\n")
    with pytest.raises(DataError, match=r"places365_val\.txt(.|\n)*365(.|\n)*0 to 364"):
        Places365Source(tmp_path)
    (tmp_path / "places365_val.txt").unlink()
    (tmp_path / "categories_places365.txt").write_text("/a/airfield 0\n/a/alcove 0\n")
    with pytest.raises(DataError, match="one number to several"):
        Places365Source(tmp_path)


def test_what_is_not_packed_is_counted(tmp_path: Path) -> None:
    write_tree(tmp_path)
    assert Places365Source(tmp_path).passed_over() == Places365Source(tmp_path, subset="val").passed_over() == {}
    save_photo(tmp_path / "test_256" / "Places365_test_00000001.jpg")
    write_val(tmp_path, "val_large")
    (tmp_path / "val_256.tar").touch()
    (tmp_path / "val_256" / ".DS_Store").touch()
    counts = {reason: (one.count, one.first[0]) for reason, one in Places365Source(tmp_path).passed_over().items()}
    assert counts == {
        "files ending in .jpg": (3, "test_256/Places365_test_00000001.jpg"),
        "files ending in .tar": (1, "val_256.tar"),
        "hidden files and folders": (1, "val_256/.DS_Store"),
    }


def test_a_fault_of_the_machine_is_no_missing_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where it is looked for nor where it is read."""
    write_tree(tmp_path)
    stat = Path.stat

    def stale(path: Path, **options: bool) -> os.stat_result:
        if path.name == "categories_places365.txt":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return stat(path, **options)

    def failing(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for name, replacement in (("pathlib.Path.stat", stale), ("fastssl.sources.lists.open_regular", failing)):
        with monkeypatch.context() as patch:
            patch.setattr(name, replacement)
            with pytest.raises(DataError) as caught:
                Places365Source(tmp_path)
        assert machine_fault(caught.value) is not None
    (tmp_path / "categories_places365.txt").unlink()
    os.mkfifo(tmp_path / "categories_places365.txt")
    assert labels(Places365Source(tmp_path, subset="train")) == expected_train("data_256")


@pytest.mark.parametrize("name", ["val_256", "val_large"])
def test_validation_photos_in_one_folder_have_the_classes_of_their_list(tmp_path: Path, name: str) -> None:
    write_val(tmp_path, name)
    assert Places365Source.recognise(tmp_path)
    assert labels(Places365Source(tmp_path)) == dict.fromkeys(f"{name}/{photo}" for photo in VAL)
    write_lists(tmp_path)
    assert labels(Places365Source(tmp_path)) == {f"{name}/{photo}": number for photo, number in VAL.items()}


@pytest.mark.parametrize("root", ["places365_standard", ""])
def test_the_easyformat_has_the_same_numbers(tmp_path: Path, root: str) -> None:
    write_easyformat(tmp_path / root)
    write_lists(tmp_path, "categories_places365.txt")
    assert Places365Source.recognise(tmp_path)
    found = labels(Places365Source(tmp_path))
    names = {category[2:].replace("/", "-"): number for category, number in CATEGORIES.items()}
    prefix = f"{root}/" if root else ""
    assert found == {
        **{f"{prefix}train/{name}/{photo:08d}.jpg": number for name, number in names.items() for photo in (1, 2)},
        **{f"{prefix}val/{name}/00000003.jpg": number for name, number in names.items()},
    }
    (tmp_path / "categories_places365.txt").unlink()
    assert labels(Places365Source(tmp_path)) == found


def test_subsets_are_the_trees_of_train_and_val(tmp_path: Path) -> None:
    write_train(tmp_path)
    write_val(tmp_path)
    write_lists(tmp_path)
    train = expected_train("data_256")
    val = {f"val_256/{photo}": number for photo, number in VAL.items()}
    assert labels(Places365Source(tmp_path)) == train | val
    assert labels(Places365Source(tmp_path, subset="train")) == train
    assert labels(Places365Source(tmp_path, subset="val")) == val
    write_train(tmp_path, "data_large")
    assert labels(Places365Source(tmp_path, subset="train")) == train


def test_a_missing_subset_is_an_error_that_tells_what_was_looked_for(tmp_path: Path) -> None:
    write_train(tmp_path)
    with pytest.raises(DataError, match=r"subset val(.|\n)*val_256"):
        Places365Source(tmp_path, subset="val")
    with pytest.raises(DataError, match=r"data_256"):
        Places365Source(tmp_path / "missing")


@pytest.mark.parametrize("name", ["categories_places365.txt", "places365_val.txt"])
@pytest.mark.parametrize("content", [b"/a/airfield zero\n", b"/a/airfield\n", b"/a/\xff\xfe 0\n"])
def test_a_damaged_list_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write_train(tmp_path)
    write_val(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        Places365Source(tmp_path)


def test_a_photo_whose_class_nobody_knows_is_named(tmp_path: Path) -> None:
    write_train(tmp_path)
    write_val(tmp_path)
    write_lists(tmp_path)
    source = Places365Source(tmp_path)
    save_photo(tmp_path / "data_256" / "z" / "zoo" / "1.jpg")
    save_photo(tmp_path / "val_256" / "Places365_val_00000003.jpg")
    for reference in ("data_256/z/zoo/1.jpg", "val_256/Places365_val_00000003.jpg"):
        with pytest.raises(DataError, match=f"not known(.|\n)*{reference}"):
            source.read(reference)


def test_gray_and_cmyk_photos_are_used_and_damaged_ones_named(tmp_path: Path) -> None:
    write_train(tmp_path)
    folder = tmp_path / "data_256" / "a" / "airfield"
    save_photo(folder / "00000001.jpg", "L")
    save_photo(folder / "00000002.jpg", "CMYK")
    source = Places365Source(tmp_path)
    assert np.abs(source.read("data_256/a/airfield/00000001.jpg").image.astype(int) - 77).max() <= 2
    assert np.abs(source.read("data_256/a/airfield/00000002.jpg").image.astype(int) - [255, 0, 0]).max() <= 2
    (folder / "00000001.jpg").write_bytes((folder / "00000001.jpg").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"00000001\.jpg"):
        source.read("data_256/a/airfield/00000001.jpg")


def test_other_trees_are_not_taken_for_it(tmp_path: Path) -> None:
    write_photos(tmp_path, "photos/1.jpg", "classes/cat/1.jpg", "splits/train/cat/1.jpg", "splits/val/cat/1.jpg")
    for name in ("photos", "classes", "splits", "photos/1.jpg"):
        assert not Places365Source.recognise(tmp_path / name)


def test_it_packs(tmp_path: Path) -> None:
    manifest = pack(Places365Source(write_tree(tmp_path / "places")), tmp_path / "out", size=8)
    assert (manifest.layout, manifest.domain, manifest.samples) == ("places365", "real", 10)
    samples = {sample.key: sample.class_index for sample in read_samples(tmp_path / "out")}
    assert samples["data_256__f__field__wild__00000002"] == 141
    assert sorted(samples.values()) == sorted([*CATEGORIES.values()] * 2 + [*VAL.values()])
