"""The labelled frames of NYU Depth v2 with true normals, as training and measuring read them.

Normals are brought to the frame of `fastssl.batch` (X right, Y down, Z forward, facing the camera) by a convention that
has to be stated, and that is compared with the depth: a set of normals that is turned, mirrored or flipped against what
was stated is an error, and no worse figure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastssl.errors import DataError, UsageError
from fastssl.geometry import pixel_rays
from fastssl.sources.normals import stored_and_computed
from fastssl.sources.nyuv2 import CAMERA, COLUMNS, FRAMES, ROWS, SPLITS, NyuV2Source, depth_steps
from fastssl.sources.nyuv2_normals import SHAPE, NyuNormals

_AXES = ("rl", "du", "fb")
"""Letters of the two ways along X, Y and Z; the first is the way in which our own axes grow."""
_COMPARED = 6
"""Frames whose normals are compared with their depth."""
_LEAST_FACING = 0.75
"""Fraction of pixels that have to face the camera; of normals that are smoothed a few do not."""
_LEAST_GAIN = 0.02
"""By how much, as a mean cosine, another convention has to agree better with the depth to be the right one."""


class Frame(NamedTuple):
    """An image with its truth, H x W pixels."""

    image: Tensor
    """(3, H, W) uint8 RGB."""
    normal: Tensor
    """(3, H, W) unit vectors, zero vector = does not count."""
    depth: Tensor
    """(1, H, W) metres, 0 = does not count."""


def parsed_convention(text: str) -> NDArray[np.float64]:
    """The matrix A by which ``stored @ A`` is in our own axes, and faces the camera.

    Args:
        text: where nx, ny and nz grow, as three of the letters r or l (right, left), d or u (down, up) and f or b
            (forward, backward), and then whether normals point `away` from the camera or `towards` it: `rdf-away`.

    Raises:
        UsageError: it is not of this form.
    """
    letters, _, pointing = text.partition("-")
    places = [next((axis for axis, ways in enumerate(_AXES) if letter in ways), -1) for letter in letters]
    if sorted(places) != [0, 1, 2] or pointing not in ("away", "towards"):
        raise UsageError(
            "the convention of the normals cannot be read",
            where="--convention",
            seen=text,
            expected="one of r and l, of d and u, of f and b, in the order of nx, ny, nz, then -away or -towards",
            hint="rdf-away: nx grows to the right, ny down, nz forward, and normals point away from the camera",
        )
    matrix = np.zeros((3, 3))
    for row, (axis, letter) in enumerate(zip(places, letters, strict=True)):
        matrix[row, axis] = 1 if letter == _AXES[axis][0] else -1
    return matrix if pointing == "towards" else -matrix


def _conventions() -> dict[str, NDArray[np.float64]]:
    """All matrices by their texts, of which each has two."""
    letters = ["".join(ways) for order in permutations(_AXES) for ways in product(*order)]
    return {text: parsed_convention(text) for three in letters for text in (f"{three}-away", f"{three}-towards")}


class NyuFrames:
    """Frames, splits and true normals.

    Args:
        frames: the folder of `nyu_depth_v2_labeled.mat` and `splits.mat`, or the former itself.
        truth: the folder of `NyuNormals`.
        convention: of the true normals, as `parsed_convention` takes it.
        whole_frame: whether pixels outside the region that was measured count where they have a normal or a depth.

    Raises:
        UsageError: the convention is not stated, or of no such form.
        DataError: as `NyuV2Source` and `NyuNormals`; a split is empty or the two have frames in common, a frame has no
            true normals, or these are not in the convention that is stated.
    """

    def __init__(self, frames: Path, truth: Path, convention: str, *, whole_frame: bool) -> None:
        self._whole_frame = whole_frame
        self._source = NyuV2Source(frames)
        self._truth = NyuNormals(truth, sum(1 for _ in self._source.references()))
        self._file = frames / FRAMES if frames.is_dir() else frames
        self._splits = self._file.with_name(SPLITS)
        self.train, self.test = (self._numbers(frames, subset) for subset in ("train", "test"))
        common = sorted(set(self.train) & set(self.test))
        if common:
            seen = f"{len(common)} of them, such as {common[0]}"
            raise DataError("frames are learnt from and tested on", where=self._splits, seen=seen)
        self._truth.check([*self.train, *self.test])
        self._to_ours = self._checked_convention(convention)

    def _numbers(self, frames: Path, subset: str) -> tuple[int, ...]:
        numbers = tuple(int(reference) for reference in NyuV2Source(frames, subset=subset).references())
        if not numbers:
            raise DataError(f"the split {subset} has no frame", where=self._splits)
        return numbers

    @property
    def fingerprint(self) -> str:
        """A hash of the numbers of the training images, and of the names, sizes and times of the files that have them;
        their contents are gigabytes."""
        found = hashlib.sha256(repr(self.train).encode())
        for file in (self._file, *(self._truth.files[number] for number in self.train)):
            status = file.stat()
            found.update(repr((file.name, status.st_size, status.st_mtime_ns)).encode())
        return found.hexdigest()

    def frame(self, number: int) -> Frame:
        """A frame at its own size, 480 x 640; normals in float64, depth in float32.

        Raises:
            DataError: a file is damaged, or no normal of the frame counts.
        """
        normal = self._truth.read(number) @ self._to_ours
        depth = self._depth(number)
        if not self._whole_frame:
            outside = np.ones(SHAPE, bool)
            outside[ROWS, COLUMNS] = False
            normal[outside] = depth[outside] = 0
        if not normal.any():
            raise DataError(
                "no true normal of a frame counts",
                where=self._truth.files[number],
                seen="a mask without a pixel" if self._whole_frame else "a mask without a pixel in the measured region",
            )
        image = self._source.stored(f"{number:04d}", ("images",))["images"]
        image = np.ascontiguousarray(image.transpose(2, 0, 1))
        planes = np.ascontiguousarray(normal.transpose(2, 0, 1)), np.ascontiguousarray(depth[None])
        return Frame(torch.from_numpy(image), *map(torch.from_numpy, planes))

    def _checked_convention(self, convention: str) -> NDArray[np.float64]:
        """The stated convention's matrix, if normals face the camera by it and agree with the depth."""
        stated = parsed_convention(convention) if convention else None
        numbers = [*self.train, *self.test]
        compared = numbers[:: -(-len(numbers) // _COMPARED)]
        normals = [self._truth.read(number)[ROWS, COLUMNS] for number in compared]
        products = self._agreement(normals, compared)
        agreement = {text: float((matrix * products).sum()) for text, matrix in _conventions().items()}
        best = max(agreement, key=lambda text: (round(agreement[text], 9), _letters_in_common(text, convention)))
        if stated is None:
            raise UsageError(
                "the convention of the true normals is not stated",
                where="--convention",
                expected="such as rdf-away: nx grows to the right, ny down, nz forward, away from the camera",
                hint=f"of all conventions {best} agrees best with the depth, by a mean cosine of {agreement[best]:.3f}",
            )
        facing = _facing(normals, stated)
        if facing < _LEAST_FACING or agreement[best] > agreement[convention] + _LEAST_GAIN:
            raise DataError(
                "the true normals are not in the convention that is stated",
                where=self._truth.path,
                seen=f"{facing:.0%} of them face the camera by {convention}, and they agree with the depth by a mean "
                f"cosine of {agreement[convention]:.3f}",
                expected=f"at least {_LEAST_FACING:.0%}, and no convention that agrees better",
                hint=f"{_change(convention, best)}: --convention {best} agrees by {agreement[best]:.3f}",
            )
        return stated

    def _agreement(self, normals: Sequence[NDArray[np.float64]], numbers: Sequence[int]) -> NDArray[np.float64]:
        """The mean product of each axis that is stored with each of ours, by normals of the depth: (3, 3)."""
        products, count = np.zeros((3, 3)), 0
        for normal, number in zip(normals, numbers, strict=True):
            depth = self._depth(number)[ROWS, COLUMNS]
            stored, computed = stored_and_computed(normal, depth, CAMERA, depth_steps(depth))
            products += stored.T @ computed.astype(np.float64)
            count += len(stored)
        return products / max(count, 1)

    def _depth(self, number: int) -> NDArray[np.float32]:
        """(480, 640) metres, 0 = not known."""
        depth: NDArray[np.float32] = self._source.stored(f"{number:04d}", ("depths",))["depths"]
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _facing(normals: Sequence[NDArray[np.float64]], to_ours: NDArray[np.float64]) -> float:
    """The fraction of known normals (H, W, 3) that face the camera: those with n . ray < 0."""
    rays = pixel_rays(CAMERA, *normals[0].shape[:2])
    products = [(normal @ to_ours * rays).sum(axis=2)[normal.any(axis=2)] for normal in normals]
    return float((np.concatenate(products) < 0).mean())


def _letters_in_common(one: str, other: str) -> int:
    return sum(a == b for a, b in zip(one[:5], other[:5], strict=False))


def _change(stated: str, best: str) -> str:
    """What is to be changed in the stated convention, in words."""
    pairs = list(zip(("nx", "ny", "nz"), stated, best, strict=False))
    if any(_axis(one) != _axis(other) for _, one, other in pairs):
        return "the axes are in another order"
    flipped = [name for name, one, other in pairs if one != other]
    if stated[3:] != best[3:]:
        flipped = [name for name, one, other in pairs if one == other]
    return f"flip {' and '.join(flipped)}" if flipped else "nothing is to be flipped, so these may be other images"


def _axis(letter: str) -> int:
    return next(axis for axis, ways in enumerate(_AXES) if letter in ways)


class SmallFrames:
    """Frames at the size at which a network sees them; what was read once stays in memory, 1.5 MB each at 240 x 320.

    Images are resized linearly with anti-aliasing. Truth is that of single pixels: of 480 x 640, every second one.
    """

    def __init__(self, frames: NyuFrames, height: int, width: int) -> None:
        self._frames, self._size = frames, (height, width)
        self._kept = dict[int, Frame]()

    def of(self, numbers: Iterable[int]) -> Frame:
        """A batch: image (N, 3, h, w) uint8, normal (N, 3, h, w) and depth (N, 1, h, w) float32."""
        for number in numbers:
            if number not in self._kept:
                self._kept[number] = resized(self._frames.frame(number), *self._size)
        return Frame(*map(torch.stack, zip(*(self._kept[number] for number in numbers), strict=True)))


def resized(frame: Frame, height: int, width: int) -> Frame:
    """A frame at another size; see `SmallFrames`."""
    image = F.interpolate(frame.image[None].float(), (height, width), mode="bilinear", antialias=True)[0]
    normal, depth = (F.interpolate(x[None], (height, width), mode="nearest")[0] for x in (frame.normal, frame.depth))
    return Frame(image.round().clamp(0, 255).byte(), normal.float(), depth)
