"""Trees as the dataset's archives make them, a few photos each."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastssl.errors import DataError, UsageError
from fastssl.shards import pack, read_samples
from fastssl.sources.classes import ClassesSource
from fastssl.sources.places365 import Places365Source

# Official numbers of these four.
CATEGORIES = {"a/airfield": 0, "a/apartment_building/outdoor": 8, "f/field/wild": 141, "f/field_road": 142}
VAL = {"Places365_val_00000001.jpg": 141, "Places365_val_00000002.jpg": 8}


def save(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (16, 16), {"CMYK": (0, 255, 255, 0), "L": 77}.get(mode, (255, 0, 0))).save(path)


def train_tree(folder: Path, name: str = "data_256") -> None:
    for category in CATEGORIES:
        for number in (1, 2):
            save(folder / name / category / f"{number:08d}.jpg")


def val_tree(folder: Path, name: str = "val_256") -> None:
    for photo in VAL:
        save(folder / name / photo)


def easy_tree(folder: Path) -> None:
    for part, numbers in (("train", (1, 2)), ("val", (3,))):
        for category in CATEGORIES:
            for number in numbers:
                save(folder / part / category[2:].replace("/", "-") / f"{number:08d}.jpg")


def write_lists(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    lists = {
        "categories_places365.txt": {f"/{category}": number for category, number in CATEGORIES.items()},
        "places365_train_standard.txt": {
            f"/{category}/{photo:08d}.jpg": number for photo in (2, 1) for category, number in CATEGORIES.items()
        },
        "places365_val.txt": VAL,
    }
    for name in names or lists:
        (folder / name).write_text("".join(f"{path} {number}\n" for path, number in lists[name].items()))


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
    train_tree(tmp_path, name)
    write_lists(tmp_path / place, lists)
    assert Places365Source.recognise(tmp_path)
    source = Places365Source(tmp_path)
    assert labels(source) == expected_train(name)
    assert list(source.references()) == sorted(expected_train(name))
    assert source.key(f"{name}/a/airfield/00000001.jpg") == f"{name}__a__airfield__00000001"


def test_without_a_list_categories_are_numbered_by_name(tmp_path: Path) -> None:
    train_tree(tmp_path)
    assert labels(Places365Source(tmp_path)) == expected_train("data_256", dict(zip(CATEGORIES, range(4), strict=True)))


@pytest.mark.parametrize("name", ["val_256", "val_large"])
def test_validation_photos_in_one_folder_have_the_classes_of_their_list(tmp_path: Path, name: str) -> None:
    val_tree(tmp_path, name)
    assert Places365Source.recognise(tmp_path)
    assert labels(Places365Source(tmp_path)) == dict.fromkeys(f"{name}/{photo}" for photo in VAL)
    write_lists(tmp_path)
    assert labels(Places365Source(tmp_path)) == {f"{name}/{photo}": number for photo, number in VAL.items()}


@pytest.mark.parametrize("root", ["places365_standard", ""])
def test_the_easyformat_has_the_same_numbers(tmp_path: Path, root: str) -> None:
    easy_tree(tmp_path / root)
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
    train_tree(tmp_path)
    val_tree(tmp_path)
    write_lists(tmp_path)
    train = expected_train("data_256")
    val = {f"val_256/{photo}": number for photo, number in VAL.items()}
    assert labels(Places365Source(tmp_path)) == train | val
    assert labels(Places365Source(tmp_path, subset="train")) == train
    assert labels(Places365Source(tmp_path, subset="val")) == val
    with pytest.raises(UsageError, match="train, val"):
        Places365Source(tmp_path, subset="test")
    train_tree(tmp_path, "data_large")
    assert labels(Places365Source(tmp_path, subset="train")) == train


def test_a_missing_subset_is_an_error_that_tells_what_was_looked_for(tmp_path: Path) -> None:
    train_tree(tmp_path)
    with pytest.raises(DataError, match=r"subset val(.|\n)*val_256"):
        Places365Source(tmp_path, subset="val")
    with pytest.raises(DataError, match=r"data_256"):
        Places365Source(tmp_path / "missing")


@pytest.mark.parametrize("name", ["categories_places365.txt", "places365_train_standard.txt", "places365_val.txt"])
@pytest.mark.parametrize("content", [b"/a/airfield zero\n", b"/a/airfield\n", b"/a/\xff\xfe 0\n"])
def test_a_damaged_list_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    train_tree(tmp_path)
    val_tree(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        Places365Source(tmp_path).read("val_256/Places365_val_00000001.jpg")


def test_a_photo_whose_class_nobody_knows_is_named(tmp_path: Path) -> None:
    train_tree(tmp_path)
    val_tree(tmp_path)
    write_lists(tmp_path)
    source = Places365Source(tmp_path)
    save(tmp_path / "data_256" / "z" / "zoo" / "1.jpg")
    save(tmp_path / "val_256" / "Places365_val_00000003.jpg")
    for reference in ("data_256/z/zoo/1.jpg", "val_256/Places365_val_00000003.jpg"):
        with pytest.raises(DataError, match=f"not known(.|\n)*{reference}"):
            source.read(reference)


def test_gray_and_cmyk_photos_are_used_and_damaged_ones_named(tmp_path: Path) -> None:
    train_tree(tmp_path)
    folder = tmp_path / "data_256" / "a" / "airfield"
    save(folder / "00000001.jpg", "L")
    save(folder / "00000002.jpg", "CMYK")
    source = Places365Source(tmp_path)
    assert np.abs(source.read("data_256/a/airfield/00000001.jpg").image.astype(int) - 77).max() <= 2
    assert np.abs(source.read("data_256/a/airfield/00000002.jpg").image.astype(int) - [255, 0, 0]).max() <= 2
    (folder / "00000001.jpg").write_bytes((folder / "00000001.jpg").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"00000001\.jpg"):
        source.read("data_256/a/airfield/00000001.jpg")


def test_other_trees_are_not_taken_for_it(tmp_path: Path) -> None:
    for name in ("photos/1.jpg", "classes/cat/1.jpg", "splits/train/cat/1.jpg", "splits/val/cat/1.jpg"):
        save(tmp_path / name)
    for name in ("photos", "classes", "splits", "missing", "photos/1.jpg"):
        assert not Places365Source.recognise(tmp_path / name)
    train_tree(tmp_path / "places")
    assert not ClassesSource.recognise(tmp_path / "places")


def test_it_packs(tmp_path: Path) -> None:
    train_tree(tmp_path / "places")
    val_tree(tmp_path / "places")
    write_lists(tmp_path / "places")
    source = pickle.loads(pickle.dumps(Places365Source(tmp_path / "places")))
    manifest = pack(source, tmp_path / "out", size=8)
    assert (manifest.layout, manifest.domain, manifest.samples) == ("places365", "real", 10)
    samples = {sample.key: sample.label for sample in read_samples(tmp_path / "out")}
    assert samples["data_256__f__field__wild__00000002"] == 141
    assert sorted(samples.values()) == sorted([*CATEGORIES.values()] * 2 + [*VAL.values()])
