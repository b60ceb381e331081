"""A devkit of a few photos, as its archives unpack."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from sources.pictures import save

LISTS = {
    "VOC2007": {"train": ["000012"], "val": ["000005"], "trainval": ["000005", "000012"], "test": ["000001"]},
    "VOC2012": {"train": ["2008_000008"], "val": ["2008_000002"], "trainval": ["2008_000002", "2008_000008"]},
}


def write_tree(folder: Path) -> Path:
    root = folder / "VOCdevkit"
    for year, lists in LISTS.items():
        for part in ("Annotations", "ImageSets/Main"):
            (root / year / part).mkdir(parents=True)
        for name, photos in lists.items():
            (root / year / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{photo}\n" for photo in photos))
            for photo in photos:
                save(root / year / "JPEGImages" / f"{photo}.jpg", Image.new("RGB", (10, 8), "blue"))
        (root / year / "ImageSets" / "Main" / "cat_train.txt").write_text(f"{lists['train'][0]}  1\n")
    save(root / "VOC2012" / "JPEGImages" / "2009_000009.jpg", Image.new("RGB", (10, 8)))  # of segmentation alone
    return root
