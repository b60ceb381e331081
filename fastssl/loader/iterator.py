"""Batches of one domain, step after step, handed to torch without a copy."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from nvidia.dali.pipeline import Pipeline
from torch import Tensor

from fastssl.batch import PLANES, Batch, Target
from fastssl.errors import DataError
from fastssl.loader.ahead import targets_ahead
from fastssl.loader.cut_out import CutOut
from fastssl.loader.damage import Damage
from fastssl.loader.feed import Feed
from fastssl.loader.graph import Blocks, Inputs, Pixels, build_graph, device_number
from fastssl.loader.images import ThreadedImages
from fastssl.loader.mixture import Mixture
from fastssl.loader.pipeline import DomainPipeline
from fastssl.loader.plan import Plan
from fastssl.loader.target_kernel import Filters
from fastssl.loader.targets import TargetFields, ThreadedTargets, targets_on_device
from fastssl.loader.underway import Decoded, Made
from fastssl.loader.upload import uploaded
from fastssl.loader.windows import ThreadedWindows
from fastssl.shards import CLASS_INDEX, TargetLayout

Maker = Literal["cpu", "gpu"]
"""Who makes the batches of a GPU."""
_FIELDS: dict[Target, tuple[str, ...]] = {
    "depth": ("depth", "valid"),
    "normal": ("normal", "valid"),
    "edge": ("edge", "stored_edge_fraction"),
    "class_index": (),
    "position": (),
}
"""The fields of a batch that come with a target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """Options of a loader, whatever its batches hold."""

    device: torch.device
    """The CPU or the GPU that holds the batches' tensors."""
    load_on: Maker = "cpu"
    """Who makes the batches of a GPU: its own decoder and kernels, or the CPU's threads, and they are uploaded. The
    CPU's are made by its threads in any case."""
    threads: int = 0
    """Decoding threads; 0 = as many as there are cores."""
    half: bool = False
    """Images as float16, for mixed precision on a GPU; so they come on a CPU too, where nothing is faster for it."""
    max_bad: int = 0
    """Samples that may turn out damaged, and are replaced, before the batches end with an error."""
    paranoid: bool = False
    """Every member that is read is compared with its checksum."""
    hw_decoder_load: float = 0.0
    """Fraction of the images that a GPU's JPEG engine decodes; `fastssl.loader.calibration` finds a good one."""
    prefetch: int = 2
    """Batches that are made ahead of need; each holds its memory."""

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))

    @property
    def uploads(self) -> bool:
        """Batches that the CPU made are uploaded to a GPU."""
        return self.device.type == "cuda" and self.load_on == "cpu"

    @property
    def maker(self) -> torch.device:
        """The CPU or the GPU that makes the batches."""
        return torch.device("cpu") if self.uploads else self.device


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
        DataError: planes are asked for, and the datasets have none.
        ShardError: more samples are damaged than the options allow; names shard and key.

    Sync: none on a GPU; batches are ordered on the stream that was current when the first one was asked for. All are
        to be asked for and used on that stream, and may be dropped as soon as their last use is enqueued.
    """
    wanted = _all_targets(samples) if targets is None else frozenset(targets)
    if damage is None:
        damage = known_damage(samples, options, wanted)
    return Batches(_batches(samples, plan, options, damage, wanted), damage)


def known_damage(samples: Mixture, options: LoaderOptions, targets: Collection[Target]) -> Damage:
    """A record of the samples' damage as far as it is known, which is not at all yet.

    Raises:
        DataError: planes are asked for, and the datasets have none.
    """
    has_planes = not frozenset(PLANES).isdisjoint(targets)
    if has_planes and not samples.has_targets:
        raise DataError("the dataset has no target planes", where=samples.path, hint="give a packed synthetic dataset")
    members = (
        samples.image_codec.member,
        *((samples.target_member,) if has_planes else ()),
        *((CLASS_INDEX,) if "class_index" in targets else ()),
    )
    return Damage(samples, members, max_bad=options.max_bad, checked=checked_members(members, options))


def checked_members(members: tuple[str, ...], options: LoaderOptions) -> tuple[str, ...]:
    """Members that are compared with their checksums, whatever decodes them.

    All of them where a GPU makes the batches: it inflates a damaged block without a word, and its JPEG engine reports
    success when decoding is enqueued, so that a damaged image would be whatever its memory held before.
    """
    return members if options.paranoid or options.maker.type == "cuda" else ()


def _all_targets(samples: Mixture) -> frozenset[Target]:
    return frozenset(("class_index", *(PLANES if samples.has_targets else ())))


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


def _batches(
    samples: Mixture, plan: Plan, options: LoaderOptions, damage: Damage, wanted: Collection[Target]
) -> Generator[Batch, None, None]:
    """The stages of a batch, one behind the other; they begin when the first batch is asked for."""
    has_planes, on_cpu = not frozenset(PLANES).isdisjoint(wanted), options.maker.type == "cpu"
    layout, codec, size = TargetLayout(*samples.image_size), samples.target_codec, plan.settings.data.size
    filters, pixels = target_filters(plan), _pixels(samples, plan, options)
    fields = {field for target in wanted for field in _FIELDS[target]}
    blocks = Blocks(num_bytes=layout.num_bytes, codec=codec) if has_planes and not on_cpu else None

    def on_device(batch: Decoded) -> TargetFields:
        assert batch.blocks is not None  # the graph was given `blocks`
        return _of(fields, targets_on_device(batch.blocks, layout, batch.fed.views, size, codec, filters))

    with ExitStack() as stack:
        pool = ThreadPoolExecutor(options.num_threads, thread_name_prefix="fastssl-loader")
        # Not waited for: the collector may close this in the midst of anything, under a lock that joining would take.
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        threads, pinned = (pool, options.num_threads), options.uploads
        images, windows = _images(samples, pixels, options, threads), _windows(samples, pixels, threads)
        if images is None and windows is None:
            # DALI makes pixels of a JPEG that is damaged inside, without a word.
            damage.compare(damage.image_member)
        targets = ThreadedTargets(layout, size, *threads, codec, filters, pinned=pinned) if on_cpu else None
        feed = Feed(
            steps=plan.steps,
            damage=damage,
            pixels=pixels,
            images=images,
            windows=windows,
            targets=targets if has_planes else None,
            sends_blocks=blocks is not None,
        )
        batches: Iterator[Decoded] = CutOut(feed, options.prefetch)
        if images is None:
            graph = _graph(plan, options, pixels, blocks)
            batches = stack.enter_context(closing(DomainPipeline(feed, graph, options.maker)))
        # `map` keeps nothing of a batch that it gave away, as a loop's variables would.
        made: Iterator[Made] = map(partial(_with_targets_of_threads, fields), batches)
        if blocks is not None:
            made = stack.enter_context(closing(targets_ahead(batches, on_device, options.device)))
        elif options.uploads:
            made = stack.enter_context(closing(uploaded(made, options.device, half=options.half)))
        finish = partial(_batch, wanted=wanted, device=options.device, stored_size=samples.image_size)
        yield from map(finish, made)


def target_filters(plan: Plan) -> Filters:
    """The filters that the plan's settings ask for; nothing is blended where windows are cut out."""
    data = plan.settings.data
    return Filters(
        linear_normals=data.normal_filter == "linear" and not plan.cuts, edge_area=data.edge_filter == "area"
    )


def decodes_in_graph(samples: Mixture, plan: Plan, options: LoaderOptions) -> bool:
    """DALI decodes the images, and not their codec in threads here."""
    pixels = _pixels(samples, plan, options)
    return pixels.encoded and not _only_cuts(pixels, options)


def _only_cuts(pixels: Pixels, options: LoaderOptions) -> bool:
    """On the CPU no graph is needed."""
    return options.maker.type == "cpu" and pixels.cuts and not (pixels.colour or pixels.blur or pixels.half)


def _images(
    samples: Mixture, pixels: Pixels, options: LoaderOptions, threads: tuple[ThreadPoolExecutor, int]
) -> ThreadedImages | None:
    """Images by threads, if no graph makes them."""
    if not _only_cuts(pixels, options):
        return None
    return ThreadedImages(samples.image_codec, samples.image_size, pixels.size, *threads, uploaded=options.uploads)


def _windows(samples: Mixture, pixels: Pixels, threads: tuple[ThreadPoolExecutor, int]) -> ThreadedWindows | None:
    """Decoding by threads for the graph, if the codec is none of DALI's."""
    size = pixels.size if pixels.cuts else None
    return None if pixels.encoded else ThreadedWindows(samples.image_codec, samples.image_size, size, *threads)


def _pixels(samples: Mixture, plan: Plan, options: LoaderOptions) -> Pixels:
    augment = plan.settings.augment
    return Pixels(
        size=plan.settings.data.size,
        cuts=plan.cuts,
        gray=plan.settings.data.gray != "off",
        colour=any((augment.brightness, augment.contrast, augment.saturation, augment.hue)),
        blur=augment.blur > 0,
        half=options.half and not options.uploads,  # which makes them half on the GPU
        encoded=samples.image_codec.in_graph,
    )


def _graph(plan: Plan, options: LoaderOptions, pixels: Pixels, blocks: Blocks | None) -> Callable[[Inputs], Pipeline]:
    return partial(
        build_graph,
        pixels=pixels,
        batch_size=plan.batch_size,
        threads=options.num_threads,
        device_id=device_number(options.maker),
        hw_decoder_load=options.hw_decoder_load,
        prefetch=options.prefetch,
        blocks=blocks,
    )


def _with_targets_of_threads(fields: Collection[str], batch: Decoded) -> Made:
    targets = {} if batch.fed.targets is None else _of(fields, batch.fed.targets.result())
    return Made(fed=batch.fed, image=batch.image, targets=targets)


def _of(fields: Collection[str], targets: TargetFields) -> TargetFields:
    """The fields that are wanted, and no others."""
    return {name: field for name, field in targets.items() if name in fields}


def _batch(made: Made, wanted: Collection[Target], device: torch.device, stored_size: tuple[int, int]) -> Batch:
    targets = dict(made.targets)
    of_samples = {"class_index": made.fed.classes, "position": made.fed.views.position}
    for name in of_samples.keys() & wanted:
        # A copy from other memory than pinned would wait for the stream.
        numbers = torch.tensor(of_samples[name], pin_memory=device.type == "cuda")
        targets[name] = numbers.to(device, non_blocking=True)
    return Batch(keys=made.fed.keys, image=_channels_last(made.image), targets=targets, stored_size=stored_size)


def _channels_last(image: Tensor) -> Tensor:
    """(N, S, S, 3) as DALI lays it out, seen as (N, 3, S, S) channels-last: the same memory."""
    return image.permute(0, 3, 1, 2)
