"""Layout `folder`: any tree of images, such as a collection of photos.

    **/image        in any format that `fastssl.sources.images` reads

No image has a class: the layout `classes` gives them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import DomainName, PassedOver
from fastssl.sources.census import passed_over
from fastssl.sources.images import EXTENSIONS, read_image
from fastssl.sources.keys import key_of
from fastssl.sources.listing import holds_image, sorted_images
from fastssl.sources.opening import checked_subset


class FolderSource:
    """Real photos in a folder and its subfolders; a reference is the path below the folder.

    Hidden files and folders are passed over, linked ones are followed. Every other regular file with the ending of an
    image counts as one, and one that turns out not to be is an error.

    Args:
        path: the folder.
        subset: None; there are no splits.
        licence: of the images, as the user knows it.

    Raises:
        UsageError: a subset was asked for.
        DataError: there is no such folder, or no image in it.
    """

    layout: ClassVar[str] = "folder"
    domain: ClassVar[DomainName] = "real"
    labelled: ClassVar[bool] = False

    @classmethod
    def recognise(cls, path: Path) -> str | None:
        """Whatever no other layout claims; `fastssl.sources.open_source` asks where that could lose something."""
        return "nothing speaks for a dataset or for classes"

    def __init__(self, path: str | os.PathLike[str], *, subset: str | None = None, licence: str = "unknown") -> None:
        self.path = Path(path)
        self.subset = checked_subset(self.layout, subset, ())
        self.licence = licence
        if not holds_image(self.path):
            raise DataError(
                "the folder holds no images", where=self.path, expected=f"files ending in {', '.join(EXTENSIONS)}"
            )

    def references(self) -> Iterator[str]:
        """Paths below the folder, sorted."""
        return sorted_images(self.path)

    def key(self, reference: str) -> str:
        """The path, made legal."""
        return key_of(reference)

    def read(self, reference: str) -> Record:
        """One image: turned upright as its EXIF orientation says, RGB, 8 bit.

        Raises:
            DataError: it is empty, cut short, damaged, or not an image.
        """
        return Record(key=self.key(reference), image=read_image(self.path / reference))

    def passed_over(self) -> dict[str, PassedOver]:
        """What is no image."""
        return passed_over(self.path, lambda name: name.lower().endswith(EXTENSIONS), count_empty=True)
