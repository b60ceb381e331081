"""Layout `folder`: any tree of images, such as a collection of photos or Places365."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.shards import KEY_BYTES, Domain

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})

_HASH_BYTES = 8
_HASHED = re.compile(rf"-[0-9a-f]{{{2 * _HASH_BYTES}}}$")


class FolderSource:
    """Real photos in a folder and its subfolders; a reference is the path below the folder.

    Hidden files and folders are passed over, linked ones are followed. Every other file with the extension of an image
    counts as one, and one that turns out not to be is an error.

    Classes: if every image lies exactly one folder down, its folder is its class. Folders named by numbers (all of
    them, all different) have these numbers; any others are numbered from 0 in the order of their names. In any other
    tree no image has a class.

    Args:
        licence: of the images, as the user knows it.

    Raises:
        DataError: there is no such folder, or no image in it.
    """

    layout: str = "folder"
    domain: Domain = "real"

    def __init__(self, path: str | os.PathLike[str], *, licence: str = "unknown") -> None:
        self.path = Path(path)
        self.licence = licence
        self._length = 0
        folders = set[str]()
        for reference in self.references():
            self._length += 1
            folders.add(reference.rpartition("/")[0])
        if not self._length:
            raise DataError(
                "the folder holds no images",
                where=self.path,
                expected=f"files ending in {', '.join(sorted(EXTENSIONS))}",
            )
        self._classes = _class_numbers(folders or set())

    def __len__(self) -> int:
        return self._length

    def references(self) -> Iterator[str]:
        """Paths below the folder, sorted folder by folder; only one folder's names are in memory at a time."""
        return _images(self.path, "", ())

    def read(self, reference: str) -> Record:
        """One image: turned upright as its EXIF orientation says, RGB, 8 bit.

        Raises:
            DataError: it is empty, cut short, or not an image.
        """
        label = self._classes.get(reference.rpartition("/")[0])
        return Record(key=key_of(reference), image=read_image(self.path / reference), label=label)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image file into (H, W, 3) RGB of 8 bits, upright.

    16-bit gray keeps its high byte, as Pillow does for 16-bit colour; transparent pixels show white.

    Raises:
        DataError: it is empty, cut short, or not an image.
    """
    try:
        if path.stat().st_size == 0:
            raise DataError("an image cannot be read", where=path, seen="an empty file")
        with Image.open(path) as image:
            return np.array(_rgb(ImageOps.exif_transpose(image)))
    except DataError:
        raise
    except Exception as error:
        # Pillow's decoders raise nearly any kind of exception for damaged bytes: OSError, SyntaxError, ValueError,
        # IndexError, struct.error ... The file is at fault whichever it is.
        reason = str(error).replace(repr(str(path)), "the file")
        raise DataError("an image cannot be read", where=path, seen=reason or type(error).__name__) from error


def key_of(reference: str) -> str:
    """The key of an image from its path: no two paths share one.

    The extension goes, letters become lower case, ``/`` becomes ``__`` and any other character ``_``. Where that loses
    something (anything but a ``.jpg`` in ``[0-9a-z_-]``, say) or the result is too long, a hash of the path follows.
    """
    stem, _, extension = reference.rpartition(".")
    parts = [re.sub(r"[^0-9a-z_-]", "_", part.lower()) for part in stem.split("/")]
    key = "__".join(parts)
    # Whoever knows the rule can tell the path from such a key, so it belongs to no other path.
    reversible = (
        "/".join(parts) == stem
        and extension == "jpg"
        and not any("__" in part or part[:1] == "_" or part[-1:] == "_" for part in parts)
        and not _HASHED.search(key)
    )
    if reversible and len(key) <= KEY_BYTES:
        return key
    digest = hashlib.blake2b(os.fsencode(reference), digest_size=_HASH_BYTES).hexdigest()
    # The end of a path tells more than its beginning.
    return f"{key[-(KEY_BYTES - len(digest) - 1) :]}-{digest}"


def _images(folder: Path, prefix: str, ancestors: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
        status = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError("a folder cannot be listed", where=folder, seen=error.strerror) from error
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        raise DataError("a link leads back to a folder above it", where=folder, do="remove the link")
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images(Path(entry), f"{prefix}{entry.name}/", (*ancestors, identity))
        elif entry.name[entry.name.rfind(".") :].lower() in EXTENSIONS:
            yield prefix + entry.name


def _class_numbers(folders: set[str]) -> dict[str, int]:
    if any(not folder or "/" in folder for folder in folders):
        return {}
    names = sorted(folders)
    numbers = [int(name) for name in names if re.fullmatch(r"[0-9]{1,9}", name)]
    if len(set(numbers)) != len(names):
        numbers = list(range(len(names)))
    return dict(zip(names, numbers, strict=True))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"gray values of mode {image.mode} have no known range")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
