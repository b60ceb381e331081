"""Batches of one domain, step after step, handed to torch without a copy."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastssl.batch import RealBatch, SyntheticBatch
from fastssl.errors import DataError, DeviceError, ShardError
from fastssl.loader.graph import build_graph, channel_inputs
from fastssl.loader.labels import PendingPlanes, ThreadedLabels, cut_on_device, to_units
from fastssl.loader.plan import Step, Views
from fastssl.shards import JPEG, LABELS, LabelLayout, ShardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """How batches are made, whatever is in them."""

    size: int
    """Side of the network's input in pixels."""
    gray: bool
    """Repeat each view's channel three times instead of the colours."""
    batch_size: int
    """Largest number of samples in a step of the plan."""
    device: torch.device
    """Where the batches are made, and where their tensors lie."""
    threads: int = 0
    """For decoding; 0 = as many as there are cores."""
    half: bool = False
    """Images as float16, for mixed precision on a GPU."""

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))


def synthetic_batches(shards: ShardSet, plan: Iterator[Step], options: LoaderOptions) -> Iterator[SyntheticBatch]:
    """Rendered images with their labels, one batch per step of the plan.

    Raises:
        DataError: the dataset holds photos only.
        ShardError: a sample lacks a plane or does not decode; names shard and key.

    Sync: none on a GPU; a batch is ordered on the stream that was current when it was asked for, and is to be used
        on that stream.
    """
    if not shards.has_labels:
        raise DataError("the dataset has no label planes", where=shards.path, do="give a packed synthetic dataset")
    layout = LabelLayout(*shards.image_size)
    on_cpu = options.device.type == "cpu"
    labels = ThreadedLabels(layout, options.size, options.num_threads) if on_cpu else None
    feed = _Feed(shards, plan, gray=options.gray, labels=labels, sends_blocks=not on_cpu)
    try:
        for pending, image, *raw in _handed_over(feed, options, None if on_cpu else layout.num_bytes):
            planes = (
                pending.planes.result()
                if pending.planes
                else cut_on_device(raw[0], layout, pending.views, options.size)
            )
            flip = torch.from_numpy(pending.views.flip).to(options.device, non_blocking=True)
            yield SyntheticBatch(keys=feed.keys(pending), image=_channels_last(image), **to_units(planes, flip))
    finally:
        if labels is not None:
            labels.close()


def real_batches(shards: ShardSet, plan: Iterator[Step], options: LoaderOptions) -> Iterator[RealBatch]:
    """Images alone, with their classes where there are any; raises and synchronises as `synthetic_batches` does."""
    feed = _Feed(shards, plan, gray=options.gray)
    for pending, image in _handed_over(feed, options, None):
        label = torch.tensor([shards.label(i) for i in pending.samples.tolist()])
        yield RealBatch(
            keys=feed.keys(pending), image=_channels_last(image), label=label.to(options.device, non_blocking=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pending:
    """A batch whose bytes went into the graph and whose images have not come out yet."""

    samples: NDArray[np.int64]
    views: Views
    planes: PendingPlanes | None


class _Feed:
    """Gives the graph the bytes of the plan's next step, and remembers what it gave.

    DALI asks ahead of need, so reading, inflating and decoding of a step go on while the one before is trained on.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: Iterator[Step],
        *,
        gray: bool,
        labels: ThreadedLabels | None = None,
        sends_blocks: bool = False,
    ) -> None:
        self._shards, self._plan, self._gray = shards, plan, gray
        self._labels, self._sends_blocks = labels, sends_blocks
        self.pending: deque[_Pending] = deque()

    def __call__(self) -> tuple[Any, ...]:
        samples, views = next(self._plan)
        inputs: list[Any] = [[self._jpeg(i) for i in samples.tolist()], *views.roi()]
        if self._gray:
            inputs += channel_inputs(views.channel)
        planes = None
        if self._labels or self._sends_blocks:
            blocks = [self._shards.member(i, LABELS) for i in samples.tolist()]
            if self._sends_blocks:
                inputs.append(blocks)
            if self._labels:
                planes = self._labels.submit(blocks, views, [self._shards.place(i) for i in samples.tolist()])
        self.pending.append(_Pending(samples=samples, views=views, planes=planes))
        return tuple(inputs)

    def keys(self, pending: _Pending) -> tuple[str, ...]:
        return tuple(self._shards.key(i) for i in pending.samples.tolist())

    def _jpeg(self, sample: int) -> NDArray[np.uint8]:
        stream = self._shards.member(sample, JPEG)
        # Start and end of image; what is cut short would otherwise be an error without a name, or gray pixels.
        if len(stream) < 4 or stream[:2].tobytes() != b"\xff\xd8" or stream[-2:].tobytes() != b"\xff\xd9":
            raise self._damaged(sample, "the stream is cut short or not a JPEG")
        return stream

    def first_undecodable(self, samples: NDArray[np.int64]) -> ShardError | None:
        """The error for the first of the samples that does not decode, to give DALI's error a name."""
        for sample in samples.tolist():
            try:
                Image.open(BytesIO(self._shards.member(sample, JPEG).tobytes())).load()
            except (OSError, SyntaxError, ValueError) as error:
                return self._damaged(sample, str(error))
        return None

    def _damaged(self, sample: int, reason: str) -> ShardError:
        return ShardError(
            "an image cannot be decoded",
            where=self._shards.place(sample),
            seen=reason,
            expected="a complete JPEG",
            do="pack the dataset again",
        )


def _handed_over(feed: _Feed, options: LoaderOptions, label_bytes: int | None) -> Iterator[tuple[Any, ...]]:
    """Each step's `_Pending` and the graph's output tensors, without a copy and without waiting for a GPU."""
    device = options.device
    device_id = None if device.type == "cpu" else device.index or 0
    pipeline = build_graph(
        feed,
        size=options.size,
        gray=options.gray,
        batch_size=options.batch_size,
        threads=options.num_threads,
        device_id=device_id,
        half=options.half,
        label_bytes=label_bytes,
    )
    pipeline.build()
    while True:
        try:
            if device_id is None:
                outputs = pipeline.run()
            else:
                # Ordered on the consumer's stream: it waits for the batch, the host does not.
                outputs = pipeline.run(torch.cuda.current_stream(device).cuda_stream)
        except StopIteration:
            return
        except RuntimeError as error:
            culprit = feed.first_undecodable(feed.pending[0].samples) if feed.pending else None
            raise culprit or DeviceError("DALI could not make a batch", seen=str(error)) from error
        yield feed.pending.popleft(), *(from_dlpack(output.as_tensor()) for output in outputs)


def _channels_last(image: Tensor) -> Tensor:
    """(N, S, S, 3) as DALI lays it out, seen as (N, 3, S, S) channels-last: the same memory."""
    return image.permute(0, 3, 1, 2)
