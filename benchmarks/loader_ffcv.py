"""FFCV's part of `loaders.py`: JPEG mode for the image, raw targets, neither crop nor flip.

    FFCV_PYTHON benchmarks/loader_ffcv.py BETON RESIZED SAMPLES {stored,floats}

`loaders.py` starts it with the Python given as --ffcv-python, because FFCV 1.0.2 needs an older NumPy and Python than
ours; beside FFCV it needs nothing that FFCV does not need itself. BETON is written from the files of 256 x 256 if it
does not exist. On Debian 12:

    apt-get install pkg-config build-essential libopencv-dev libturbojpeg0-dev
    python3.10 -m venv ffcv
    ffcv/bin/python -m pip install 'setuptools<80' wheel 'numpy<2' 'numba<0.61' 'torch<2.8' 'opencv-python<4.12' pillow
    ffcv/bin/python -m pip install --no-build-isolation 'numpy<2' 'opencv-python<4.12' ffcv==1.0.2

FFCV draws the crop and the flip of every field by itself, so planes that belong together cannot be cropped together
with what it brings; that is why it gives whole images of 256 x 256 here, 27 % more pixels than the other loaders, but
neither looks for a window nor negates normals. `stored` hands over the bytes as they lie in the file: uint8 RGB, int16
millimetres, uint8 normal codes, uint8 contours. `floats` gives the tensors that all other loaders give, with two
transforms compiled by Numba as FFCV's own are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields import NDArrayField, RGBImageField
from ffcv.fields.decoders import NDArrayDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.transforms import NormalizeImage, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from loader_protocol import Settings, serve
from PIL import Image

SIDE = 256
MEAN = np.array([0.485, 0.456, 0.406])
MIB = 1 << 20
EPOCHS = 200
"""How often the indices of all samples are listed: an epoch of FFCV begins with allocations and a new thread."""


class Samples:
    """The files of 256 x 256, for FFCV's writer."""

    def __init__(self, folder: Path, samples: int) -> None:
        self.folder, self.samples = folder, samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, sample: int) -> tuple[np.ndarray[Any, Any], ...]:
        names = ("rgb.jpg", "depth.png", "normal.png", "edge.png")
        image, depth, codes, edge = (np.array(Image.open(self.folder / f"{sample:05d}_{name}")) for name in names)
        return image, depth.view(np.int16), np.ascontiguousarray(codes.transpose(2, 0, 1)), edge


def write(beton: Path, samples: Samples) -> None:
    fields = {
        "image": RGBImageField(write_mode="jpg", jpeg_quality=95),
        "depth": NDArrayField(np.dtype("<i2"), (SIDE, SIDE)),
        "normal": NDArrayField(np.dtype("u1"), (3, SIDE, SIDE)),
        "edge": NDArrayField(np.dtype("u1"), (SIDE, SIDE)),
    }
    partial_file = beton.with_suffix(".partial")
    # The smallest pages: less of the file's end is empty.
    DatasetWriter(str(partial_file), fields, page_size=2 * MIB, num_workers=2).from_indexed_dataset(samples)
    partial_file.rename(beton)


class Scaled(Operation):
    """Whole numbers times a factor, as float32."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = np.float32(factor)

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        return (
            replace(previous_state, jit_mode=True, dtype=np.dtype(np.float32)),
            AllocationQuery(previous_state.shape, np.dtype(np.float32)),
        )

    def generate_code(self) -> Callable[..., Any]:
        each, factor = Compiler.get_iterator(), self.factor

        def scale(whole: Any, out: Any) -> Any:
            for i in each(whole.shape[0]):
                flat_in, flat_out = whole[i].reshape(-1), out[i].reshape(-1)
                for at in range(flat_in.size):
                    flat_out[at] = factor * flat_in[at]
            return out[: whole.shape[0]]

        return _parallel(scale)


class UnitVectors(Operation):
    """Normal codes (3, H, W) as float32 vectors of unit length, 0 where all codes are 0."""

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        return (
            replace(previous_state, jit_mode=True, dtype=np.dtype(np.float32)),
            AllocationQuery(previous_state.shape, np.dtype(np.float32)),
        )

    def generate_code(self) -> Callable[..., Any]:
        each, step, one = Compiler.get_iterator(), np.float32(1 / 127.5), np.float32(1)

        def unit(codes: Any, out: Any) -> Any:
            for i in each(codes.shape[0]):
                flat_in, flat_out = codes[i].reshape(3, -1), out[i].reshape(3, -1)
                for at in range(flat_in.shape[1]):
                    x, y, z = step * flat_in[0, at] - one, step * flat_in[1, at] - one, step * flat_in[2, at] - one
                    known = flat_in[0, at] | flat_in[1, at] | flat_in[2, at]
                    scale = one / np.sqrt(x * x + y * y + z * z) if known else np.float32(0)
                    flat_out[0, at], flat_out[1, at], flat_out[2, at] = x * scale, y * scale, z * scale
            return out[: codes.shape[0]]

        return _parallel(unit)


def _parallel(function: Any) -> Callable[..., Any]:
    function.is_parallel = True
    compiled: Callable[..., Any] = function
    return compiled


def pipelines(kind: str) -> dict[str, list[Any]]:
    if kind == "stored":
        planes = {name: [NDArrayDecoder(), ToTensor()] for name in ("depth", "normal", "edge")}
        return {"image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()], **planes}
    image = [
        SimpleRGBImageDecoder(),
        NormalizeImage(255 * MEAN, np.full(3, 255.0), np.float32),
        ToTensor(),
        ToTorchImage(),
    ]
    return {
        "image": image,
        "depth": [NDArrayDecoder(), Scaled(1e-3), ToTensor()],
        "normal": [NDArrayDecoder(), UnitVectors(), ToTensor()],
        "edge": [NDArrayDecoder(), Scaled(1), ToTensor()],
    }


def batches(beton: Path, samples: int, kind: str, settings: Settings) -> Iterator[Sequence[torch.Tensor]]:
    indices = np.arange(samples)
    loader = Loader(
        str(beton),
        batch_size=settings["batch"],
        num_workers=settings["workers"],
        order=OrderOption.SEQUENTIAL if settings.get("fixed") else OrderOption.RANDOM,
        indices=indices if settings.get("fixed") else np.tile(indices, EPOCHS),
        os_cache=True,
        batches_ahead=2,
        drop_last=True,
        pipelines=pipelines(kind),
    )
    while True:
        for image, depth, normal, edge in loader:
            if kind == "stored":
                yield image, depth, normal, edge
            else:
                known = (normal[:, 0] != 0) | (normal[:, 1] != 0) | (normal[:, 2] != 0)
                yield image, depth[:, None], normal, edge[:, None], ((depth > 0) & known)[:, None]


if __name__ == "__main__":
    path, number = Path(sys.argv[1]), int(sys.argv[3])
    if not path.exists():
        write(path, Samples(Path(sys.argv[2]), number))
    serve(partial(batches, path, number, sys.argv[4]))
