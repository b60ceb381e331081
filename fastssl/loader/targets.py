"""Targets from their packed blocks: inflated, seen through the image's window and flip, in metres and unit vectors.

The CPU makes a sample in one pass, many samples at a time in threads (`fastssl.loader.target_kernel`); a GPU makes a
whole batch at once. Both compute with whole numbers as long as possible and then in the same order, so they agree
exactly, but for 3e-7 in the normals where torch does not round square roots correctly (on a CPU it does not).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fastssl.errors import ShardError
from fastssl.loader.memory import Memory
from fastssl.loader.plan import Views
from fastssl.loader.target_kernel import CANCELLED, Between, Block, Filters, Members, Seen, Targets, fill_targets
from fastssl.ranges import traced
from fastssl.shards.codec import Plane, TargetCodec, TargetLayout, damaged_block, misfitting_block

NEAREST_AND_ANY = Filters(linear_normals=False, edge_area=False)

TargetFields = dict[str, Tensor]
"""Planes of a `Batch` by their names, and what comes with them."""


class PendingTargets:
    """Targets that threads are filling; `error` and `result` wait for them."""

    def __init__(self, targets: Targets, jobs: Sequence[Future[ShardError | None]]) -> None:
        self._targets, self._jobs = targets, jobs

    def error(self) -> ShardError | None:
        """The error of a target block, if one is damaged."""
        return next((error for error in [job.result() for job in self._jobs] if error is not None), None)

    def result(self) -> TargetFields:
        """The targets of all samples.

        Raises:
            ShardError: `error`.
        """
        error = self.error()
        if error is not None:
            raise error
        return {name: torch.from_numpy(array) for name, array in self._targets._asdict().items()}


class ThreadedTargets:
    """Makes targets on the CPU, many at a time and ahead of need.

    Args:
        layout: of the stored blocks.
        size: side of the network's input.
        pool: its threads do the work.
        threads: so many of them.
        codec: of the blocks.
        filters: how what lies between stored pixels is made.
        pinned: the targets are to be uploaded to a GPU.
    """

    def __init__(
        self,
        layout: TargetLayout,
        size: int,
        pool: ThreadPoolExecutor,
        threads: int,
        codec: TargetCodec = "lz4",
        filters: Filters = NEAREST_AND_ANY,
        *,
        pinned: bool = False,
    ) -> None:
        self._layout, self._size, self._filters = layout, size, filters
        self._pool, self._threads = pool, threads
        self._block = Block(
            height=layout.height,
            width=layout.width,
            normal=layout.normal.start,
            edge=layout.edge.start,
            num_bytes=layout.num_bytes,
            compressed=codec == "lz4",
        )
        self._memory = Memory(pinned=pinned)

    def submit(self, blocks: Sequence[NDArray[np.uint8]], views: Views) -> PendingTargets:
        """Start on a batch of target blocks, each seen through its view."""
        members = Members(
            address=np.array([block.ctypes.data for block in blocks], np.uintp),
            size=np.array([len(block) for block in blocks], np.int32),
        )
        seen = Seen(*views.sources(self._size), *views.cells(self._size), views.ends(), views.flip)
        between = Between(*views.neighbours(self._size if self._filters.linear_normals else 0))
        targets = _targets(self._memory, len(blocks), self._size)
        jobs = [
            self._pool.submit(self._fill, first, blocks, members, seen, between, targets)
            for first in range(min(self._threads, len(blocks)))
        ]
        return PendingTargets(targets, jobs)

    def _fill(
        self,
        first: int,
        blocks: Sequence[NDArray[np.uint8]],
        members: Members,
        seen: Seen,
        between: Between,
        targets: Targets,
    ) -> ShardError | None:
        # `blocks` own the memory behind the addresses.
        with traced("loader: targets"):
            sizes = fill_targets(first, self._threads, self._block, members, seen, between, self._filters, targets)
        for size in sizes[sizes != self._layout.num_bytes].tolist():
            if size < 0:
                return damaged_block(self._layout, f"LZ4's error {size}")
            return misfitting_block(self._layout, size)
        return None


def _targets(memory: Memory, num: int, size: int) -> Targets:
    """Arrays for the targets of N samples, not filled yet."""
    shapes = [(num, 1, size, size), (num, 3, size, size), (num, 1, size, size), (num,)]
    lengths = [math.prod(shape) for shape in shapes]
    lent = memory.lend(4 * sum(lengths) + lengths[0])
    floats, valid = lent[: 4 * sum(lengths)].view(np.float32), lent[4 * sum(lengths) :].view(np.bool_)
    parts = np.split(floats, np.cumsum(lengths)[:-1])
    depth, normal, edge, fraction = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    return Targets(depth, normal, edge, valid.reshape(shapes[0]), fraction)


def targets_on_device(
    blocks: Tensor,
    layout: TargetLayout,
    views: Views,
    size: int,
    codec: TargetCodec = "lz4",
    filters: Filters = NEAREST_AND_ANY,
) -> TargetFields:
    """The targets of a whole batch of inflated blocks on a GPU, as `ThreadedTargets` makes them.

    Args:
        blocks: (N, layout.num_bytes) uint8, inflated.
        layout: where each plane lies in a block.
        views: one per sample.
        size: side of the network's input.
        codec: of the blocks before they were inflated; with `lz4` their rows are differences.
        filters: how what lies between stored pixels is made.

    Sync: none; the views are copied to the device without waiting.
    """

    def move(array: NDArray[np.generic]) -> Tensor:
        host = torch.from_numpy(array)
        return host.pin_memory().to(blocks.device, non_blocking=True) if blocks.is_cuda else host

    def plane(place: Plane, rows: int) -> Tensor:
        stored: Tensor = blocks[:, place.start : place.stop].unflatten(1, place.shape)
        return stored.cumsum(rows, dtype=torch.uint8) if codec == "lz4" else stored

    rows, columns = (move(index) for index in views.sources(size))
    at = (rows[:, :, None] * layout.width + columns[:, None, :]).flatten(1)[:, None]
    depth = plane(layout.depth, 2).flatten(2).gather(2, at.expand(-1, 2, -1))
    normals = plane(layout.normal, 1)
    normal = normals.flatten(1, 2).transpose(1, 2).gather(2, at.expand(-1, 3, -1))
    bits = blocks[:, layout.edge.start : layout.edge.stop].unflatten(1, layout.edge.shape)
    edge = _unpacked_bits(bits)[:, :, : layout.width]
    flip = move(views.flip)
    cells = _fraction_in_cells(edge, *(move(index) for index in (*views.cells(size), views.ends())))
    cells = cells if filters.edge_area else (cells > 0).to(torch.float32)
    fields = {name: field.unflatten(2, (size, size)) for name, field in _in_units(depth, normal, flip).items()}
    if filters.linear_normals:
        fields["normal"] = _blended(normals, fields["normal"], flip, *(move(index) for index in views.neighbours(size)))
    return fields | {
        "edge": torch.where(flip[:, None, None], cells.flip(2), cells)[:, None],
        "stored_edge_fraction": edge.to(torch.float32).mean(dim=(1, 2)),
    }


def _in_units(depth: Tensor, normal: Tensor, flip: Tensor) -> TargetFields:
    """Metres, unit vectors and valid pixels, (N, channels, P) each.

    Args:
        depth: (N, 2, P) uint8, low and high bytes of millimetres.
        normal: (N, 3, P) uint8 codes.
        flip: (N,) bool; negates x.
    """
    millimetres = depth[:, :1] + 256 * depth[:, 1:].to(torch.int32)
    known = normal.amax(dim=1, keepdim=True) > 0
    # 255 n: odd whole numbers, so the sum of squares is exact.
    units = 2 * normal.to(torch.float32) - 255
    units *= known / units.square().sum(dim=1, keepdim=True).sqrt()
    units[:, 0] *= torch.where(flip, -1.0, 1.0)[:, None]
    return {
        "depth": millimetres.to(torch.float32) * 1e-3,
        "normal": units,
        "valid": known & (millimetres > 0),
    }


def _unpacked_bits(packed: Tensor) -> Tensor:
    """(..., W / 8) uint8, most significant bit first, to (..., W) uint8 of 0 and 1."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return (packed[..., None] >> shifts & 1).flatten(-2)


def _fraction_in_cells(plane: Tensor, rows: Tensor, columns: Tensor, ends: Tensor) -> Tensor:
    """The fraction of each cell's pixels that are set, from the cell's four corners in a table of running sums.

    Args:
        plane: (N, H, W) of 0 and 1.
        rows, columns: (N, S) first row and column of each cell.
        ends: (N, 2) row and column after the window's last.

    Returns:
        (N, S, S) float32.
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
    return count.to(torch.float32) / ((y1 - y0) * (x1 - x0)).to(torch.float32)


def _blended(
    codes: Tensor,
    nearest: Tensor,
    flip: Tensor,
    above: Tensor,
    below: Tensor,
    down: Tensor,
    before: Tensor,
    behind: Tensor,
    along: Tensor,
) -> Tensor:
    """Normals between stored pixels, (N, 3, S, S); where the nearest one is not known, so is the result.

    Args:
        codes: (N, H, W, 3) uint8.
        nearest: (N, 3, S, S) unit vectors, x negated where flipped; zero where not known.
        flip: (N,) bool.
        above, below, down, before, behind, along: (N, S) each, `Views.neighbours`.
    """
    sample = torch.arange(len(codes), device=codes.device)[:, None, None]
    total = torch.zeros_like(nearest)
    for rows, vertical in ((above, 1 - down), (below, down)):
        for columns, horizontal in ((before, 1 - along), (behind, along)):
            code = codes[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            fraction = vertical[:, None, :, None] * horizontal[:, None, None, :] * (code.amax(dim=1, keepdim=True) > 0)
            total += fraction * (2 * code.to(torch.float32) - 255)
    total[:, 0] *= torch.where(flip, -1.0, 1.0)[:, None, None]
    length = total.square().sum(dim=1, keepdim=True).sqrt()
    is_known = nearest.abs().amax(dim=1, keepdim=True) > 0
    return torch.where(is_known & (length > float(CANCELLED)), total / length, nearest)
