"""Batches of one domain, step after step, handed to torch without a copy."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastssl.batch import PLANES, Batch, Target
from fastssl.errors import DataError, ShardError
from fastssl.faults import machine_fault
from fastssl.loader.ahead import labels_ahead
from fastssl.loader.damage import Damage
from fastssl.loader.graph import FAULTS, Pixels, build_graph, built, dali_error, device_number
from fastssl.loader.images import PendingImages, ThreadedImages
from fastssl.loader.label_kernel import Filters
from fastssl.loader.labels import LabelFields, PendingLabels, ThreadedLabels, labels_on_device
from fastssl.loader.mixture import Mixture
from fastssl.loader.plan import Plan, Step, Views
from fastssl.shards import CLASS_INDEX, JPEG, LabelLayout
from fastssl.shards.codec import LabelCodec

_FIELDS: dict[Target, tuple[str, ...]] = {
    "depth": ("depth", "valid"),
    "normal": ("normal", "valid"),
    "edge": ("edge", "stored_edge_fraction"),
    "class_index": (),
}
"""What of a batch's planes comes with a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """How batches are made, whatever is in them."""

    device: torch.device
    """Where the batches are made, and where their tensors lie."""
    threads: int = 0
    """For decoding; 0 = as many as there are cores."""
    half: bool = False
    """Images as float16, for mixed precision on a GPU."""
    max_bad: int = 0
    """Samples that may turn out damaged, and are replaced, before the batches end with an error."""
    paranoid: bool = False
    """Compare every member that is read with its checksum."""
    hw_decoder_load: float = 0.0
    """Fraction of the images that a GPU's JPEG engine decodes; `fastssl.loader.calibration` finds a good one."""
    prefetch: int = 2
    """Batches that are made ahead of need; each holds its memory."""

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))


def load_batches(
    samples: Mixture,
    plan: Plan,
    options: LoaderOptions,
    targets: Collection[Target] | None = None,
    damage: Damage | None = None,
) -> Batches:
    """Images and their targets, one batch per step of the plan.

    A damaged sample is replaced by the next sound one of its dataset, named in the log and counted.

    Args:
        samples: what is read.
        plan: which samples make a step, and how each is seen.
        options: how batches are made.
        targets: what comes with the images; None = all that the datasets have.
        damage: `known_damage` that other batches share, so that each damaged sample is told and counted once.

    Raises:
        DataError: label planes are asked for, and the datasets have none.
        ShardError: more samples are damaged than the options allow; names shard and key.

    Sync: none on a GPU; batches are ordered on the stream that was current when the first one was asked for. All are
        to be asked for and used on that stream, and may be dropped as soon as their last use is enqueued.
    """
    wanted = _all_targets(samples) if targets is None else frozenset(targets)
    if damage is None:
        damage = known_damage(samples, options, wanted)
    make = _with_planes if wanted & frozenset(PLANES) else _without_planes
    return Batches(make(samples, plan, options, damage, wanted), damage)


def known_damage(samples: Mixture, options: LoaderOptions, targets: Collection[Target]) -> Damage:
    """A record of the samples' damage as far as it is known, which is not at all yet.

    Raises:
        DataError: label planes are asked for, and the datasets have none.
    """
    has_planes = not frozenset(PLANES).isdisjoint(targets)
    if has_planes and not samples.has_labels:
        raise DataError("the dataset has no label planes", where=samples.path, hint="give a packed synthetic dataset")
    members = (
        JPEG,
        *((samples.label_member,) if has_planes else ()),
        *((CLASS_INDEX,) if "class_index" in targets else ()),
    )
    return Damage(samples, members, max_bad=options.max_bad, checked=checked_members(members, options))


def checked_members(members: tuple[str, ...], options: LoaderOptions) -> tuple[str, ...]:
    """Members that are compared with their checksums.

    All of them on a GPU: it inflates a damaged block without a word, and its JPEG engine reports success when decoding
    is enqueued, so that a damaged image would be whatever its memory held before.
    """
    return members if options.paranoid or options.device.type == "cuda" else ()


def _all_targets(samples: Mixture) -> frozenset[Target]:
    return frozenset(("class_index", *(PLANES if samples.has_labels else ())))


class Batches:
    """An iterator of batches that tells which samples were damaged so far.

    It holds threads, and descriptors of open shards: leaving a ``with`` block, or `close`, lets them go.
    """

    def __init__(self, batches: Generator[Batch, None, None], damage: Damage) -> None:
        self._batches, self._damage = batches, damage

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; no further batch comes."""
        self._batches.close()

    def __iter__(self) -> Iterator[Batch]:
        return self._batches

    def __next__(self) -> Batch:
        return next(self._batches)

    def damaged(self) -> list[str]:
        """Shard, key and reason of each damaged sample met so far."""
        return self._damage.places()


def _with_planes(
    samples: Mixture, plan: Plan, options: LoaderOptions, damage: Damage, wanted: Collection[Target]
) -> Generator[Batch, None, None]:
    layout, codec = LabelLayout(*samples.image_size), samples.label_codec
    on_cpu = options.device.type == "cpu"
    data = plan.settings.data
    filters = label_filters(plan)
    threads = ThreadedLabels(layout, data.size, options.num_threads, codec, filters) if on_cpu else None
    feed = _Feed(plan.steps, damage, _pixels(plan, options), labels=threads, sends_blocks=not on_cpu)
    kept = {field for target in wanted for field in _FIELDS[target]}

    def made(labelled: tuple[_Pending, Tensor, LabelFields]) -> Batch:
        pending, image, labels = labelled
        targets = {name: field for name, field in labels.items() if name in kept}
        targets |= _class_index(pending, wanted, options.device)
        return Batch(keys=pending.keys, image=_channels_last(image), targets=targets, stored_size=samples.image_size)

    def on_device(pending: _Pending, blocks: Tensor) -> LabelFields:
        return labels_on_device(blocks, layout, pending.views, data.size, codec, filters)

    with ExitStack() as stack:
        if threads is not None:
            stack.callback(threads.close)
        images = stack.enter_context(
            closing(_images(feed, plan, options, None if on_cpu else (layout.num_bytes, codec)))
        )
        # `map` keeps nothing of a batch that it gave away, as a loop's variables would.
        labelled: Iterator[tuple[_Pending, Tensor, LabelFields]]
        if on_cpu:
            labelled = map(_with_labels_of_threads, images)
        else:
            labelled = stack.enter_context(closing(labels_ahead(images, on_device, options.device)))
        yield from map(made, labelled)


def _with_labels_of_threads(batch: tuple[_Pending, Tensor]) -> tuple[_Pending, Tensor, LabelFields]:
    pending, image = batch
    assert pending.labels is not None  # `_Feed` was given these threads
    return pending, image, pending.labels.result()


def label_filters(plan: Plan) -> Filters:
    """How the plan's settings want labels resampled; nothing is to be blended where windows are cut out."""
    data = plan.settings.data
    return Filters(
        linear_normals=data.normal_filter == "linear" and not plan.cuts, edge_area=data.edge_filter == "area"
    )


def _without_planes(
    samples: Mixture, plan: Plan, options: LoaderOptions, damage: Damage, wanted: Collection[Target]
) -> Generator[Batch, None, None]:
    feed = _Feed(plan.steps, damage, _pixels(plan, options))

    def made(batch: tuple[_Pending, Tensor]) -> Batch:
        pending, image = batch
        targets = _class_index(pending, wanted, options.device)
        return Batch(keys=pending.keys, image=_channels_last(image), targets=targets, stored_size=samples.image_size)

    with closing(_images(feed, plan, options, None)) as images:
        yield from map(made, images)


def _class_index(pending: _Pending, wanted: Collection[Target], device: torch.device) -> dict[str, Tensor]:
    if "class_index" not in wanted:
        return {}
    # A copy from other memory than pinned would wait for the stream.
    classes = torch.tensor(pending.classes, pin_memory=device.type == "cuda")
    return {"class_index": classes.to(device, non_blocking=True)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Pending:
    """A batch whose bytes went into the graph and whose images have not come out yet."""

    samples: tuple[int, ...]
    """Numbers of the samples, replacements included."""
    keys: tuple[str, ...]
    classes: tuple[int, ...]
    views: Views
    labels: PendingLabels | None

    def error(self) -> ShardError | None:
        """What went wrong with the labels, if they have to be waited for."""
        return None if self.labels is None else self.labels.error()


class _Feed:
    """Gives the graph the bytes of the plan's next step, and remembers what it gave.

    DALI asks ahead of need, so reading, inflating and decoding of a step go on while the one before is trained on.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        damage: Damage,
        pixels: Pixels,
        *,
        labels: ThreadedLabels | None = None,
        sends_blocks: bool = False,
    ) -> None:
        self.pixels, self._steps, self._damage = pixels, steps, damage
        self._labels, self._sends_blocks = labels, sends_blocks
        self.pending: deque[_Pending] = deque()

    def __call__(self) -> tuple[Any, ...]:
        samples, views = next(self._steps)
        return self._inputs(samples.tolist(), views)

    def again(self) -> _Feed | None:
        """A feed of the oldest batch alone, which failed, without its damaged samples; None if none is at fault."""
        if not self.pending:
            return None
        failed = self.pending.popleft()
        if not self._damage.examine(failed.samples):
            return None
        step = (np.array(failed.samples), failed.views)
        return _Feed(iter([step]), self._damage, self.pixels, labels=self._labels, sends_blocks=self._sends_blocks)

    def _inputs(self, samples: list[int], views: Views) -> tuple[Any, ...]:
        numbers, stored = zip(*self._damage.read(samples), strict=True)
        keys, classes, members = zip(*stored, strict=True)
        inputs: list[Any] = [[member[JPEG] for member in members], *self.pixels.inputs(views)]
        labels = None
        if self._labels or self._sends_blocks:
            blocks = [member[self._damage.label_member] for member in members]
            if self._sends_blocks:
                inputs.append(blocks)
            if self._labels:
                labels = self._labels.submit(blocks, views)
        self.pending.append(_Pending(samples=numbers, keys=keys, classes=classes, views=views, labels=labels))
        return tuple(inputs)


def _pixels(plan: Plan, options: LoaderOptions) -> Pixels:
    augment = plan.settings.augment
    colour = any((augment.brightness, augment.contrast, augment.saturation, augment.hue))
    return Pixels(
        size=plan.settings.data.size,
        cuts=plan.cuts,
        gray=plan.settings.data.gray != "off",
        colour=colour,
        blur=augment.blur > 0,
        half=options.half,
        decoded=options.device.type == "cpu" and plan.cuts and not (colour or augment.blur or options.half),
    )


def _images(
    feed: _Feed, plan: Plan, options: LoaderOptions, blocks: tuple[int, LabelCodec] | None
) -> Generator[tuple[Any, ...], None, None]:
    """What `_handed_over` gives, its images as the network takes them.

    Where compiled code makes these, it works on a batch while the one before is in use.
    """
    batches = _handed_over(feed, plan, options, blocks)
    if not feed.pixels.decoded:
        yield from batches
        return
    begun: tuple[_Pending, PendingImages] | None = None
    with closing(ThreadedImages(plan.settings.data.size, options.num_threads)) as images:
        for pending, decoded in batches:
            before, begun = begun, (pending, images.submit(decoded, pending.views))
            if before is not None:
                yield before[0], before[1].result()
        if begun is not None:
            yield begun[0], begun[1].result()


def _handed_over(
    feed: _Feed, plan: Plan, options: LoaderOptions, blocks: tuple[int, LabelCodec] | None
) -> Iterator[tuple[Any, ...]]:
    """Each step's `_Pending` and the graph's output tensors, without a copy and without waiting for a GPU."""
    device = options.device
    device_id = device_number(device)
    pipeline = build_graph(
        feed,
        feed.pixels,
        batch_size=plan.batch_size,
        threads=options.num_threads,
        device_id=device_id,
        hw_decoder_load=options.hw_decoder_load,
        prefetch=options.prefetch,
        blocks=blocks,
    )
    built(pipeline)
    while True:
        try:
            tensors = _outputs(pipeline, device)
        except StopIteration:
            return
        except FAULTS as error:
            # DALI loses the batch that failed, and goes on with the next.
            yield from _made_again(feed, error, plan, options, blocks)
            continue
        damaged = feed.pending[0].error()
        if damaged is not None:
            del tensors
            yield from _made_again(feed, damaged, plan, options, blocks)
            continue
        made = [(feed.pending.popleft(), *tensors)]
        # Nothing of the batch stays behind, so that its memory goes when the consumer drops it.
        del tensors
        yield made.pop()


def _outputs(pipeline: Pipeline, device: torch.device) -> list[Tensor]:
    """Of the pipeline's next batch; raises one of `FAULTS` where an image has another size than the rest."""
    # Ordered on the consumer's stream: it waits for the batch, the host does not.
    stream = None if device.type == "cpu" else torch.cuda.current_stream(device).cuda_stream
    return [from_dlpack(output.as_tensor()) for output in pipeline.run(stream)]


def _made_again(
    feed: _Feed, error: Exception, plan: Plan, options: LoaderOptions, blocks: tuple[int, LabelCodec] | None
) -> Iterator[tuple[Any, ...]]:
    """The batch that failed, with its damaged samples replaced.

    Raises:
        DeviceError: none of them is damaged; a MachineError where memory was short, whatever they are.
    """
    again = None if machine_fault(error) is not None else feed.again()
    if again is None:
        raise dali_error("DALI could not make a batch", error) from error
    yield from _handed_over(again, plan, options, blocks)


def _channels_last(image: Tensor) -> Tensor:
    """(N, S, S, 3) as DALI lays it out, seen as (N, 3, S, S) channels-last: the same memory."""
    return image.permute(0, 3, 1, 2)
