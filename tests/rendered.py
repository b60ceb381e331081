"""A room traced by a variant of Mitsuba, and the labels of two: for the tests on the CPU and on a GPU."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastssl.render.tracer import Picture

ROOT = Path(__file__).parents[1]
SIZE = 64


def degrees_apart(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    # The cross product is exact for small angles, where the arc cosine is not.
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=-1), np.sum(a * b, axis=-1)))


def labels_by(variant: str, folder: Path) -> Picture:
    """A room by this variant, in a process of its own: one process has one variant."""
    path = folder / f"{variant}.pickle"
    code = f"""
import mitsuba, pickle
mitsuba.set_variant({variant!r})
from fastssl.render import trace
from fastssl.render.room import build_room
picture = trace(build_room(5, 0), size={SIZE}, spp=1)
assert mitsuba.variant() == {variant!r}
with open({str(path)!r}, "wb") as file:
    pickle.dump(picture, file)
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    picture: Any = pickle.loads(path.read_bytes())
    assert isinstance(picture, Picture)
    return picture


def assert_same_labels(one: Picture, other: Picture) -> None:
    same = one.instance == other.instance
    assert same.mean() > 0.999  # rays that graze an edge may go either way
    assert np.mean(np.abs(one.depth - other.depth) < 1e-3) > 0.998
    assert np.mean(degrees_apart(one.normal, other.normal) < 0.1) > 0.998
