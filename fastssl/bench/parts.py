"""The parts of loading, each as a piece of work that can be done by itself.

All but the reading, and the loader itself, work on bytes that lie in memory, and as the loader does them: with its
classes, its threads and its batches.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import cycle, islice
from typing import Literal, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from fastssl.batch import PLANES, Target
from fastssl.bench.rates import num_cores
from fastssl.config import Config
from fastssl.errors import ConfigError, DataError
from fastssl.loader import Batches, Domain, LoaderOptions, Mixture, Plan, Step, load_batches
from fastssl.loader.damage import Damage
from fastssl.loader.domain import check_input_size
from fastssl.loader.graph import build_decoder, built, device_number
from fastssl.loader.images import TOGETHER
from fastssl.loader.iterator import checked_members, decodes_in_graph, target_filters
from fastssl.loader.target_kernel import Between, Block, Filters, Members, Seen, Targets, fill_targets
from fastssl.loader.targets import ThreadedTargets
from fastssl.loader.windows import ThreadedWindows
from fastssl.shards import Allocate, DomainName, StoredSample, TargetLayout

Part = Literal[
    "reading",
    "jpeg_simplejpeg",
    "jpeg_dali",
    "pixels",
    "floor",
    "images",
    "target_inflation",
    "target_depth_normals",
    "target_edges",
    "targets",
    "loader_in_memory",
    "loader",
]
Work = Callable[[], int]
"""Does a batch, or as much of a part as is convenient; returns the number of images."""

_IN_MEMORY = 256
"""Samples whose bytes are kept."""
_PER_THREAD = 32
"""Images per step; from there on the threads' different ends cost next to nothing."""

_Bytes = NDArray[np.uint8]
_T = TypeVar("_T")


class InMemory(Mixture):
    """Some sound samples of a domain, their bytes in memory: a loader on them reads nothing.

    Args:
        damage: of the domain's samples; finds out which of them are sound.
        wanted: numbers of samples; damaged ones are replaced as the loader does.
    """

    def __init__(self, samples: Mixture, damage: Damage, wanted: Sequence[int]) -> None:
        super().__init__(samples.datasets, samples.weights)
        damage.examine(list(wanted))
        self._stored = dict(damage.read(wanted))
        self.numbers = tuple(self._stored)

    def read(self, index: int, names: Sequence[str], allocate: Allocate) -> StoredSample:
        return self._stored[index]

    def read_many(
        self, indices: NDArray[np.int64], names: Sequence[str], memory: _Bytes
    ) -> tuple[list[StoredSample | None], int]:
        return [self._stored[index] for index in indices.tolist()], 0

    def most_bytes(self, names: Sequence[str]) -> int:
        return 0

    def member(self, index: int, name: str) -> _Bytes:
        return self._stored[index].members[name]

    def members(self, name: str) -> list[_Bytes]:
        """One member of every sample."""
        return [self.member(index, name) for index in self.numbers]

    def steps(self, steps: Iterable[Step]) -> Iterator[Step]:
        """These steps, but with these samples instead of their own, over and over."""
        numbers = cycle(self.numbers)
        for samples, views in steps:
            yield np.array(list(islice(numbers, len(samples)))), views


class MeasuredDomain:
    """A domain as a training with these settings loads it, and some of its samples in memory.

    Raises:
        DataError: rendered images are wanted, and there are no targets; or too many samples are damaged.
        ConfigError: the packed images are smaller than the network's input.
    """

    def __init__(self, name: DomainName, samples: Mixture, config: Config) -> None:
        if name == "synthetic" and not samples.has_targets:
            raise DataError("the synthetic dataset has no target planes", where=samples.path)
        targets = frozenset[Target](PLANES if name == "synthetic" else ())
        self.domain = Domain(name=name, samples=samples, targets=targets, config=config)
        check_input_size(self.domain, ConfigError, "lower it with --preset or --set")
        self.name, self.samples, self.size = name, samples, config.data.size
        self.batch_size = self.domain.batch_size
        image = samples.image_codec.member
        self.members = (image, samples.target_member) if targets else (image,)
        damage = Damage(samples, self.members, max_bad=config.data.max_bad)
        wanted, _ = next(self.domain.plan(batch_size=min(_IN_MEMORY, len(samples))).steps)
        self.in_memory = InMemory(samples, damage, list(dict.fromkeys(wanted.tolist())))

    @property
    def images_in_memory(self) -> list[_Bytes]:
        """The images of the samples in memory, as they are stored."""
        return self.in_memory.members(self.samples.image_codec.member)

    @property
    def bytes_per_image(self) -> float:
        """Mean of what is read of a sample."""
        stored = [self.in_memory.members(name) for name in self.members]
        return float(sum(np.mean([len(content) for content in contents]) for contents in stored))

    def batches(self, options: LoaderOptions, batch_size: int | None = None) -> Batches:
        """The training's own batches, from the first on."""
        plan = self.domain.plan(batch_size=batch_size)
        return load_batches(self.samples, plan, options, self.domain.targets)

    def batches_in_memory(self, options: LoaderOptions, targets: Collection[Target]) -> Batches:
        """Batches of the samples in memory, of `part_batch` images."""
        return load_batches(self.in_memory, self.plan_in_memory(options), options, targets)

    def plan_in_memory(self, options: LoaderOptions) -> Plan:
        """Steps of the samples in memory, of `part_batch` images."""
        plan = self.domain.plan(batch_size=self.part_batch(options))
        return replace(plan, steps=self.in_memory.steps(plan.steps))

    def part_batch(self, options: LoaderOptions) -> int:
        """Images per step of the parts: on a CPU fewer than in training, so that a step does not take long."""
        if options.maker.type == "cuda":
            return self.batch_size
        return min(self.batch_size, _PER_THREAD * options.num_threads)


Measured = Callable[[MeasuredDomain, LoaderOptions], AbstractContextManager[Work]]


@contextmanager
def _reading(domain: MeasuredDomain, options: LoaderOptions) -> Iterator[Work]:
    """By the one thread that reads, and again and again, so that the system has the files in memory."""
    checked = checked_members(domain.members, options)
    if decodes_in_graph(domain.samples, domain.plan_in_memory(options), options):
        checked = (*checked, domain.samples.image_codec.member)
    damage = Damage(domain.samples, domain.members, max_bad=options.max_bad, checked=checked)
    numbers = domain.in_memory.numbers

    def work() -> int:
        damage.read(numbers)
        return len(numbers)

    yield work


@contextmanager
def _simplejpeg(domain: MeasuredDomain, options: LoaderOptions) -> Iterator[Work]:
    def decode(streams: Sequence[_Bytes]) -> None:
        for stream in streams:
            simplejpeg.decode_jpeg(stream, "RGB")

    with _side_by_side(decode, domain.images_in_memory, num_cores()) as work:
        yield work


@contextmanager
def _dali(domain: MeasuredDomain, options: LoaderOptions) -> Iterator[Work]:
    streams, batch = cycle(domain.images_in_memory), domain.part_batch(options)
    pipeline = build_decoder(
        lambda: list(islice(streams, batch)),
        batch_size=batch,
        threads=options.num_threads,
        device_id=device_number(options.maker),
        hw_decoder_load=options.hw_decoder_load,
    )
    built(pipeline)

    def work() -> int:
        pipeline.run()
        return batch

    yield work


@contextmanager
def _pixels(domain: MeasuredDomain, options: LoaderOptions) -> Iterator[Work]:
    """Windows decoded by the codec, as the loader does where no graph does it."""
    codec, plan = domain.samples.image_codec, domain.plan_in_memory(options)
    size = domain.size if plan.cuts else None
    with ThreadPoolExecutor(options.num_threads) as pool:
        windows = ThreadedWindows(codec, domain.samples.image_size, size, pool, options.num_threads)

        def work() -> int:
            samples, views = next(plan.steps)
            windows.decode([domain.in_memory.member(index, codec.member) for index in samples.tolist()], views)
            return len(samples)

        yield work


@contextmanager
def _floor(domain: MeasuredDomain, options: LoaderOptions) -> Iterator[Work]:
    """Whole images decoded, and memory of a batch's size filled once, as fast as it takes it: no loader does less."""
    codec, size = domain.samples.image_codec, domain.samples.image_size
    members = domain.images_in_memory
    # Floats of the image and, where there are targets, of five planes; a byte for valid pixels.
    bytes_per_pixel = 4 * 3 + (4 * 5 + 1) * bool(domain.domain.targets)
    written = np.empty((len(members), bytes_per_pixel * domain.size**2), np.uint8)

    def decode(numbers: Sequence[int]) -> None:
        images, corners = np.empty((TOGETHER, *size, 3), np.uint8), np.zeros((TOGETHER, 2), np.int64)
        for start in range(0, len(numbers), TOGETHER):
            some = numbers[start : start + TOGETHER]
            stored = [members[number] for number in some]
            codec.decode_windows(stored, size, corners[: len(some)], images[: len(some)])
            for number in some:
                written[number].fill(1)

    with _side_by_side(decode, range(len(members)), num_cores()) as work:
        yield work


def _planes(*, surface: bool, edges: bool) -> Measured:
    """Inflated target blocks, and what is wanted of their planes; of the others one pixel, which costs nothing."""

    @contextmanager
    def planes(domain: MeasuredDomain, options: LoaderOptions) -> Iterator[Work]:
        plan = domain.plan_in_memory(options)
        samples, views = next(plan.steps)
        num, size, threads, wanted = len(samples), domain.size, options.num_threads, target_filters(plan)
        filters = Filters(linear_normals=surface and wanted.linear_normals, edge_area=edges and wanted.edge_area)
        between = Between(*views.neighbours(size if filters.linear_normals else 0))
        blocks = [domain.in_memory.member(index, domain.samples.target_member) for index in samples.tolist()]
        members = Members(
            address=np.array([block.ctypes.data for block in blocks], np.uintp),
            size=np.array([len(block) for block in blocks], np.int32),
        )
        pixel = (np.zeros((num, 1), np.int64),) * 2
        seen = Seen(
            *(views.sources(size) if surface else pixel),
            *(views.cells(size) if edges else pixel),
            views.ends() if edges else np.ones((num, 2), np.int64),
            views.flip,
        )
        wide, cells = (size if whole else 1 for whole in (surface, edges))
        targets = Targets(
            depth=np.empty((num, 1, wide, wide), np.float32),
            normal=np.empty((num, 3, wide, wide), np.float32),
            edge=np.empty((num, 1, cells, cells), np.float32),
            valid=np.empty((num, 1, wide, wide), np.bool_),
            stored_edge_fraction=np.empty(num, np.float32),
        )
        layout = TargetLayout(*domain.samples.image_size)
        block = Block(
            height=layout.height,
            width=layout.width,
            normal=layout.normal.start,
            edge=layout.edge.start,
            num_bytes=layout.num_bytes,
            compressed=domain.samples.target_codec == "lz4",
        )

        def fill(firsts: Sequence[int]) -> None:
            for first in firsts:
                fill_targets(first, threads, block, members, seen, between, filters, targets)

        with _side_by_side(fill, range(threads), threads) as work:
            yield lambda: work() * num // threads

    return planes


@contextmanager
def _targets(domain: MeasuredDomain, options: LoaderOptions) -> Iterator[Work]:
    plan, codec = domain.plan_in_memory(options), domain.samples.target_codec
    layout, member = TargetLayout(*domain.samples.image_size), domain.samples.target_member
    with ThreadPoolExecutor(options.num_threads) as pool:
        threads = pool, options.num_threads
        targets = ThreadedTargets(layout, domain.size, *threads, codec, target_filters(plan))

        def work() -> int:
            samples, views = next(plan.steps)
            targets.submit([domain.in_memory.member(index, member) for index in samples.tolist()], views).result()
            return len(samples)

        yield work


@contextmanager
def _images(domain: MeasuredDomain, options: LoaderOptions) -> Iterator[Work]:
    with domain.batches_in_memory(options, ()) as images:
        yield _batch_by_batch(images)


@contextmanager
def _loader_in_memory(domain: MeasuredDomain, options: LoaderOptions) -> Iterator[Work]:
    with domain.batches_in_memory(options, domain.domain.targets) as batches:
        yield _batch_by_batch(batches)


@contextmanager
def loader(domain: MeasuredDomain, options: LoaderOptions, batch_size: int | None = None) -> Iterator[Work]:
    """The loader as a training uses it; another size of batches may be given."""
    with domain.batches(options, batch_size) as endless:
        yield _batch_by_batch(endless)


PARTS: dict[Part, Measured] = {
    "reading": _reading,
    "jpeg_simplejpeg": _simplejpeg,
    "jpeg_dali": _dali,
    "pixels": _pixels,
    "floor": _floor,
    "images": _images,
    "target_inflation": _planes(surface=False, edges=False),
    "target_depth_normals": _planes(surface=True, edges=False),
    "target_edges": _planes(surface=False, edges=True),
    "targets": _targets,
    "loader_in_memory": _loader_in_memory,
    "loader": loader,
}


def parts_of(domain: MeasuredDomain, options: LoaderOptions) -> list[Part]:
    """Parts of a domain's loading; those of a GPU are made in its graph, where they cannot be told apart."""
    on_cpu = options.maker.type == "cpu"
    parts: list[Part] = ["reading"]
    if domain.samples.image_codec.in_graph:
        parts += ["jpeg_simplejpeg", "jpeg_dali"]
    if not decodes_in_graph(domain.samples, domain.plan_in_memory(options), options):
        parts.append("pixels")
    if on_cpu:
        parts.append("floor")
    parts.append("images")
    if domain.name == "real":
        return [*parts, "loader"]
    parts += [part for part in PARTS if part.startswith("target") and on_cpu]
    return [*parts, "loader_in_memory", "loader"]


def _batch_by_batch(endless: Batches) -> Work:
    return lambda: len(next(endless).keys)


@contextmanager
def _side_by_side(do: Callable[[Sequence[_T]], None], items: Sequence[_T], threads: int) -> Iterator[Work]:
    """All items by threads, each of which does its part of them."""
    parts = [items[first::threads] for first in range(threads)]

    def work() -> int:
        for _ in pool.map(do, parts):
            pass
        return len(items)

    with ThreadPoolExecutor(threads) as pool:
        yield work
