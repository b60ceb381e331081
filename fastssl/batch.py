"""What travels between the parts: records into shards, samples out of them, batches into the trainer.

Units and frames are the same everywhere:

- depth is planar z in metres, along the optical axis; 0 where it is not known.
- normals are unit vectors in the camera frame, X right, Y down, Z forward, and face the camera
  (``n . ray < 0``); the zero vector where they are not known.
- contours mark the pixels whose instance differs from that of the right or the lower neighbour.
- ``valid`` is true where depth and normal are both known. Losses and metrics use these pixels only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Task = Literal["depth", "normal", "edge"]
"""Planes that a network may learn."""
Target = Literal["depth", "normal", "edge", "class_index", "position"]
"""Things that come with an image where they are asked for."""
PLANES: tuple[Task, ...] = ("depth", "normal", "edge")

# Mean of ImageNet's images, RGB in 0..1, which the authors subtract; they do not divide by a deviation.
IMAGE_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intrinsics:
    """A pinhole camera in pixels; a pixel's centre lies at its index plus one half."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """One image as a dataset holds it, before it is resized and packed.

    A photo has an image alone, and a class where an evaluation needs one. A labelled image has depth, normal,
    instance (or edge) and camera as well; it is all of them or none.
    """

    key: str
    """Unique in its dataset: characters of ``[0-9a-z_-]``, at most 89 of them."""
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    depth: NDArray[np.float32] | NDArray[np.uint16] | None = None
    """(H, W) metres, 0 = not known. A dataset that stores what a shard does gives its numbers as they are, so that they
    are not rounded twice: whole millimetres in uint16."""
    normal: NDArray[np.float32] | NDArray[np.uint8] | None = None
    """(H, W, 3) unit vectors, zero vector = not known; or in uint8 the codes of a shard, round(127.5 (n + 1)) in
    1..255, (0, 0, 0) = not known."""
    instance: NDArray[np.int32] | None = None
    """(H, W) object identities; only equality has a meaning."""
    edge: NDArray[np.bool_] | None = None
    """(H, W) contours, where the dataset stores these and no identities; `instance` is None then."""
    camera: Intrinsics | None = None
    """The camera of this image, at this size."""
    class_index: int | None = None
    """Class, for evaluations."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One image as a shard gives it back; without targets, depth, normal, edge and valid are None."""

    key: str
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    depth: NDArray[np.float32] | None = None
    """(H, W) metres, 0 = not known; packed as whole millimetres."""
    normal: NDArray[np.float32] | None = None
    """(H, W, 3) unit vectors, zero vector = not known."""
    edge: NDArray[np.bool_] | None = None
    """(H, W) contours."""
    valid: NDArray[np.bool_] | None = None
    """(H, W) depth and normal are both known."""
    class_index: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """N images and the targets that were asked for, every plane seen through its image's window and flip.

    S is the side of the network's input.
    """

    keys: tuple[str, ...]
    image: Tensor
    """(N, 3, S, S), channels-last, float32, or float16 where that was asked for; RGB / 255 minus `IMAGE_MEAN`.
    Where one channel stands in all three (``data.gray``), all of them are without that channel's own mean."""
    targets: Mapping[str, Tensor]
    """The targets by their names, which are those of the properties below."""
    stored_size: tuple[int, int] | None = None
    """Height and width of the stored images, of which windows are seen; None in a batch that no loader made."""

    def _target(self, name: str) -> Tensor:
        if name not in self.targets:
            raise KeyError(f"the batch has no {name}: it holds {', '.join(self.targets) or 'images alone'}")
        return self.targets[name]

    @property
    def depth(self) -> Tensor:
        """(N, 1, S, S) float32 metres, 0 = not known."""
        return self._target("depth")

    @property
    def normal(self) -> Tensor:
        """(N, 3, S, S) float32 unit vectors, zero vector = not known."""
        return self._target("normal")

    @property
    def edge(self) -> Tensor:
        """(N, 1, S, S) float32, 1 where a contour passes through the pixel, else 0."""
        return self._target("edge")

    @property
    def valid(self) -> Tensor:
        """(N, 1, S, S) bool, depth and normal are both known; comes with either of them."""
        return self._target("valid")

    @property
    def stored_edge_fraction(self) -> Tensor:
        """(N,) float32, fraction of contour pixels in the whole stored image, before the window was cut."""
        return self._target("stored_edge_fraction")

    @property
    def stored_edge_count(self) -> Tensor:
        """(N,) float32, number of contour pixels in the whole stored image."""
        if self.stored_size is None:
            raise KeyError("the batch does not tell the size of its stored images")
        height, width = self.stored_size
        return (self.stored_edge_fraction * (height * width)).round()

    @property
    def class_index(self) -> Tensor:
        """(N,) int64; -1 where the dataset has no classes."""
        return self._target("class_index")

    @property
    def position(self) -> Tensor:
        """(N,) int64, each sample's place in the domain's endless sequence; in an evaluation, its number."""
        return self._target("position")
