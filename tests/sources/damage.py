"""What can be wrong with the file of an image or of a label plane."""

from __future__ import annotations

import io
from collections.abc import Callable
from errno import EIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def one_row_less(path: Path) -> None:
    with Image.open(path) as image:
        smaller = Image.fromarray(np.array(image)[:-1])
        if image.mode == "P":
            smaller.putpalette(image.getpalette())
    smaller.save(path)


def four_channels(path: Path) -> None:
    """A sound PNG of a kind that no label plane has; a photo may be one."""
    with Image.open(path) as image:
        other = Image.new("RGBA", image.size, (1, 2, 3, 255))
    other.save(path, "PNG")


def fail_to_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the file can be opened by Python's own means only, and that fails as on a broken disk."""
    genuine = io.open

    def failing(file: Any, *rest: Any, **more: Any) -> Any:
        if isinstance(file, str | Path) and Path(file) == path:
            raise OSError(EIO, "Input/output error", str(path))
        return genuine(file, *rest, **more)

    monkeypatch.setattr(io, "open", failing)


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "no image": lambda path: path.write_text("<html>not found</html>"),
    "cut short": cut_short,
}
UNFIT = {"another size": one_row_less, "another kind": four_channels}
DAMAGES = UNREADABLE | UNFIT
