"""Places365's trees as the dataset's archives make them, a few photos each."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from sources.pictures import save

# Official numbers of these four.
CATEGORIES = {"a/airfield": 0, "a/apartment_building/outdoor": 8, "f/field/wild": 141, "f/field_road": 142}
VAL = {"Places365_val_00000001.jpg": 141, "Places365_val_00000002.jpg": 8}


def save_photo(path: Path, mode: str = "RGB") -> None:
    colour = {"CMYK": (0, 255, 255, 0), "L": 77}.get(mode, (255, 0, 0))
    save(path, Image.new(mode, (16, 16), colour))


def write_train(folder: Path, name: str = "data_256") -> None:
    for category in CATEGORIES:
        for number in (1, 2):
            save_photo(folder / name / category / f"{number:08d}.jpg")


def write_val(folder: Path, name: str = "val_256") -> None:
    for photo in VAL:
        save_photo(folder / name / photo)


def write_easyformat(folder: Path) -> None:
    for part, numbers in (("train", (1, 2)), ("val", (3,))):
        for category in CATEGORIES:
            for number in numbers:
                save_photo(folder / part / category[2:].replace("/", "-") / f"{number:08d}.jpg")


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


def write_tree(folder: Path) -> Path:
    write_train(folder)
    write_val(folder)
    write_lists(folder)
    return folder
