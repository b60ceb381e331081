from __future__ import annotations

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
from fastssl.shards import pack, read_samples
from fastssl.sources.places365 import Places365Source


def labels(source: Places365Source) -> dict[str, int | None]:
    return {reference: source.read(reference).label for reference in source.references()}


def expected_train(folder: str, numbers: dict[str, int] = CATEGORIES) -> dict[str, int | None]:
    return {f"{folder}/{category}/{photo:08d}.jpg": numbers[category] for category in CATEGORIES for photo in (1, 2)}


@pytest.mark.parametrize("name", ["data_256", "data_large", "data_256_standard", "data_large_standard"])
@pytest.mark.parametrize("lists", ["categories_places365.txt", "places365_train_standard.txt"])
@pytest.mark.parametrize("place", ["", "filelist_places365-standard"])
def test_classes_of_the_training_photos_are_the_official_numbers(
    tmp_path: Path, name: str, lists: str, place: str
) -> None:
    write_train(tmp_path, name)
    write_lists(tmp_path / place, lists)
    assert Places365Source.recognise(tmp_path)
    source = Places365Source(tmp_path)
    assert labels(source) == expected_train(name)
    assert list(source.references()) == sorted(expected_train(name))
    assert source.key(f"{name}/a/airfield/00000001.jpg") == f"{name}__a__airfield__00000001"


def test_without_a_list_categories_are_numbered_by_name(tmp_path: Path) -> None:
    write_train(tmp_path)
    assert labels(Places365Source(tmp_path)) == expected_train("data_256", dict(zip(CATEGORIES, range(4), strict=True)))


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
    order = labels(Places365Source(tmp_path, subset="val"))
    assert order == {f"{prefix}val/{name}/00000003.jpg": number for number, name in enumerate(names)}


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


@pytest.mark.parametrize("name", ["categories_places365.txt", "places365_train_standard.txt", "places365_val.txt"])
@pytest.mark.parametrize("content", [b"/a/airfield zero\n", b"/a/airfield\n", b"/a/\xff\xfe 0\n"])
def test_a_damaged_list_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    write_train(tmp_path)
    write_val(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        Places365Source(tmp_path).read("val_256/Places365_val_00000001.jpg")


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
    samples = {sample.key: sample.label for sample in read_samples(tmp_path / "out")}
    assert samples["data_256__f__field__wild__00000002"] == 141
    assert sorted(samples.values()) == sorted([*CATEGORIES.values()] * 2 + [*VAL.values()])
