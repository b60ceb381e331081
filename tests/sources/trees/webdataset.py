"""Archives by `webdataset` and by `tarfile`."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import webdataset
from PIL import Image


def image(value: int, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (value, 2 * value, 100)).save(buffer, kind)
    return buffer.getvalue()


def shades(pixels: Any) -> int:
    """The value that `image` was made with."""
    return 10 * round(float(pixels[..., 0].mean()) / 10)


def write_samples(path: Path, *samples: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, webdataset.TarWriter(file, encoder=False) as archive:
        for sample in samples:
            archive.write(sample)
    return path


def write_members(path: Path, *members: tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def write_tree(folder: Path) -> Path:
    write_samples(
        folder / "photos-000000.tar",
        {"__key__": "n01/n01_1", "jpg": image(10), "cls": b"3", "json": b"{}"},
        {"__key__": "n01/n01_2", "cls": b"0", "jpeg": image(20)},
        {"__key__": "N02/Käfer 7", "png": image(30, "PNG")},
    )
    write_samples(folder / "photos-000001.tar", {"__key__": "n01/n01_1", "webp": image(40, "WEBP"), "cls": b"5\n"})
    (folder / "notes.txt").touch()
    return folder
