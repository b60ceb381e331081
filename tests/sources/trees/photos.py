"""Photos in folders, and texts beside them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from sources.pictures import save


def write_photos(folder: Path, *names: str) -> Path:
    for name in names:
        if name.endswith(".txt"):
            (folder / name).write_text("no image")
        else:
            save(folder / name, Image.new("RGB", (6, 4), "red"))
    return folder


def write_folder_tree(folder: Path) -> Path:
    """Like no other layout: photos beside folders."""
    return write_photos(folder, "a.jpg", "A.jpg", "holidays/b.png", "holidays/2019/b.jpg")


def write_classes_tree(folder: Path) -> Path:
    return write_photos(folder, "train/cat/1.jpg", "train/dog/1.jpg", "train/dog/puppy/2.jpg", "val/cat/1.jpg")
