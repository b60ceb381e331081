"""Label planes from their packed blocks: inflated, seen through the image's window and flip, then in metres.

Whole numbers are kept as long as possible. The CPU inflates and cuts sample by sample in threads (LZ4 and NumPy
leave the interpreter lock); a GPU does the same for the whole batch at once. Both ways end in `to_units`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fastssl.errors import ShardError
from fastssl.loader.plan import Views
from fastssl.shards import LabelLayout, inflate, undo_differences


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planes:
    """Label planes of N samples, cut to the network's input of side S but still in whole numbers."""

    depth: Tensor
    """(N, S, S) uint16 or int32 millimetres, 0 = not known."""
    normal: Tensor
    """(N, 3, S, S) uint8 codes, (0, 0, 0) = not known; the x of flipped samples is not negated yet."""
    edge: Tensor
    """(N, S, S) uint8, 1 = contour."""
    edge_fraction: Tensor
    """(N,) float32, share of contour pixels in the whole stored image."""


class PendingPlanes:
    """Planes that threads are filling; `error` and `result` wait for them."""

    def __init__(self, planes: Planes, jobs: list[Future[None]]) -> None:
        self._planes, self._jobs = planes, jobs

    def error(self) -> ShardError | None:
        """What went wrong with a label block, if anything did."""
        errors = (job.exception() for job in self._jobs)
        found = next((error for error in errors if error is not None), None)
        if found is not None and not isinstance(found, ShardError):
            raise found
        return found

    def result(self) -> Planes:
        for job in self._jobs:
            job.result()
        return self._planes


class ThreadedLabels:
    """Inflates and cuts label blocks on the CPU, ahead of need."""

    def __init__(self, layout: LabelLayout, size: int, threads: int) -> None:
        self._layout, self._size, self._threads = layout, size, threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fastssl-labels")

    def submit(self, blocks: Sequence[NDArray[np.uint8]], views: Views) -> PendingPlanes:
        """Start on a batch of label blocks, each seen through its view."""
        num, size, layout = len(blocks), self._size, self._layout
        depth = np.empty((num, size, size), np.uint16)
        normal = np.empty((num, 3, size, size), np.uint8)
        edge = np.empty((num, size, size), np.uint8)
        fraction = np.empty(num, np.float32)
        rows, columns = views.sources(size)
        cell_rows, cell_columns = views.cells(size)

        def cut(samples: range) -> None:
            raw = np.empty(layout.num_bytes, np.uint8)
            for i in samples:
                inflate(blocks[i], layout, raw)
                stored_depth, stored_normal = layout.depth.view(raw), layout.normal.view(raw)
                undo_differences(stored_depth)
                undo_differences(stored_normal)
                stored_edge = np.unpackbits(layout.edge.view(raw), axis=1, count=layout.width)
                depth[i] = _pick(stored_depth, rows[i], columns[i])
                for axis in range(3):
                    normal[i, axis] = _pick(stored_normal[axis], rows[i], columns[i])
                fraction[i] = stored_edge.mean()
                window = stored_edge[: views.top[i] + views.height[i], : views.left[i] + views.width[i]]
                cells = _any_in_cells(window, cell_rows[i], cell_columns[i])
                edge[i] = cells[:, ::-1] if views.flip[i] else cells

        jobs = [self._pool.submit(cut, range(first, num, self._threads)) for first in range(self._threads)]
        planes = Planes(
            depth=torch.from_numpy(depth),
            normal=torch.from_numpy(normal),
            edge=torch.from_numpy(edge),
            edge_fraction=torch.from_numpy(fraction),
        )
        return PendingPlanes(planes, jobs)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _pick(plane: NDArray[np.generic], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.generic]:
    # Two takes, rows first: each copies whole runs, several times faster than one two-dimensional gather.
    return plane.take(rows, axis=0).take(columns, axis=1)


def _any_in_cells(plane: NDArray[np.uint8], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint8]:
    # `reduceat` reduces from each index to the next; where two are equal (the window is enlarged) it takes the
    # one pixel, which is the nearest.
    return np.bitwise_or.reduceat(np.bitwise_or.reduceat(plane, rows, axis=0), columns, axis=1)


def cut_on_device(raw: Tensor, layout: LabelLayout, views: Views, size: int) -> Planes:
    """What `ThreadedLabels` does, for a whole batch of inflated blocks on a GPU.

    Args:
        raw: (N, layout.num_bytes) uint8, inflated blocks.
        layout: where each plane lies in a block.
        views: one per sample.
        size: side of the network's input.

    Sync: none; the views are copied to the device without waiting.
    """
    num, height, width = len(raw), layout.height, layout.width

    def move(array: NDArray[np.generic]) -> Tensor:
        host = torch.from_numpy(array)
        return host.pin_memory().to(raw.device, non_blocking=True) if raw.is_cuda else host

    def cut(plane: Tensor, at: Tensor) -> Tensor:
        return plane.flatten(-2).gather(-1, at.expand(*plane.shape[:-2], -1)).view(*plane.shape[:-2], size, size)

    rows, columns = (move(index) for index in views.sources(size))
    at = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    depth = raw[:, layout.depth.start : layout.depth.stop].contiguous().view(torch.int16).view(num, height, width)
    depth = depth.cumsum(-2, dtype=torch.int32) & 0xFFFF
    normal = raw[:, layout.normal.start : layout.normal.stop].reshape(num, 3, height, width)
    normal = (normal.cumsum(-2, dtype=torch.int32) & 0xFF).to(torch.uint8)
    edge = _unpacked_bits(raw[:, layout.edge.start : layout.edge.stop].reshape(num, height, -1))[:, :, :width]
    cells = [move(index) for index in (*views.cells(size), views.ends(), views.flip)]
    return Planes(
        depth=cut(depth, at),
        normal=cut(normal, at[:, None]),
        edge=_any_in_device_cells(edge, *cells),
        edge_fraction=edge.to(torch.float32).mean(dim=(1, 2)),
    )


def _unpacked_bits(packed: Tensor) -> Tensor:
    """(..., W / 8) uint8, most significant bit first, to (..., W) uint8 of 0 and 1."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] >> shifts & 1).flatten(-2)


def _any_in_device_cells(plane: Tensor, rows: Tensor, columns: Tensor, ends: Tensor, flip: Tensor) -> Tensor:
    """Whether any pixel of each cell is set, from the four corners of the cell in a table of running sums.

    Args:
        plane: (N, H, W) of 0 and 1.
        rows, columns: (N, S) first row and column of each cell.
        ends: (N, 2) row and column after the window's last.
        flip: (N,) bool.
    """
    table = functional.pad(
        plane.to(torch.int32).cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32), (1, 0, 1, 0)
    )

    def stops(starts: Tensor, end: Tensor) -> Tensor:
        # A cell without a pixel of its own (the window is enlarged) takes the nearest one.
        return torch.maximum(torch.cat([starts[:, 1:], end[:, None]], dim=1), starts + 1)

    sample = torch.arange(len(plane), device=plane.device)[:, None, None]
    y0, y1 = rows[:, :, None], stops(rows, ends[:, 0])[:, :, None]
    x0, x1 = columns[:, None, :], stops(columns, ends[:, 1])[:, None, :]
    count = table[sample, y1, x1] - table[sample, y0, x1] - table[sample, y1, x0] + table[sample, y0, x0]
    cells = (count > 0).to(torch.uint8)
    return torch.where(flip[:, None, None], cells.flip(2), cells)


def to_units(planes: Planes, flip: Tensor) -> dict[str, Tensor]:
    """The label fields of a `SyntheticBatch`: metres, unit vectors (x negated where flipped), masks.

    Args:
        planes: whole numbers, on any device.
        flip: (N,) bool on the same device.
    """
    depth = planes.depth.to(torch.float32)[:, None] * 1e-3
    known = planes.normal.amax(dim=1, keepdim=True) > 0
    normal = planes.normal.to(torch.float32).mul_(1 / 127.5).sub_(1)
    normal[:, 0] *= torch.where(flip, -1.0, 1.0)[:, None, None]
    normal = functional.normalize(normal, dim=1) * known
    return {
        "depth": depth,
        "normal": normal,
        "edge": planes.edge[:, None].to(torch.float32),
        "valid": known & (depth > 0),
        "stored_edge_fraction": planes.edge_fraction,
    }
