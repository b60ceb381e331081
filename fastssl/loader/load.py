"""The front door of the loader: batches of packed datasets in one call."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from numbers import Integral
from typing import Annotated, Any, get_args

import torch
from pydantic import Field, model_validator

from fastssl.batch import Batch, Target
from fastssl.config import AugmentConfig, DataConfig, Section, validated
from fastssl.errors import CheckpointError, ConfigError, DeviceError, UsageError
from fastssl.loader.iterator import Batches, LoaderOptions, Maker, load_batches
from fastssl.loader.mixture import Mixture, open_mixture
from fastssl.loader.plan import RankSlice, ViewSettings


class Loader:
    """Endless random batches of packed datasets; `fastssl.load` makes it.

    It holds threads, and descriptors of open shards: a ``with`` block, or `close`, lets them go.
    """

    def __init__(self, samples: Mixture, batches: Batches, position: int, global_batch: int) -> None:
        self._samples, self._batches = samples, batches
        self._position, self._global_batch = position, global_batch
        self._is_closed = False

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._is_closed:
            raise UsageError("the loader is closed", hint="make another one; its state_dict goes on from here")
        batch = next(self._batches)
        self._position += self._global_batch
        return batch

    def close(self) -> None:
        """Stop; no further batch comes."""
        self._is_closed = True
        self._batches.close()
        self._samples.close()

    def state_dict(self) -> dict[str, Any]:
        """All that the next batch depends on, besides the arguments of `load`: the same on every rank."""
        return {"position": self._position, "fingerprint": self._samples.fingerprint}

    def damaged(self) -> list[str]:
        """Shard, key and reason of each damaged sample met so far; each was replaced by the next of its dataset."""
        return self._batches.damaged()


_MOST_POSITIONS = 1 << 60


class _Arguments(Section):
    """Arguments of `load` that are numbers."""

    batch_size: Annotated[int, Field(ge=1, le=1 << 16)]
    seed: Annotated[int, Field(ge=0)]
    rank: Annotated[int, Field(ge=0)]
    world_size: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=0, le=1024)]
    prefetch: Annotated[int, Field(ge=1)]
    half: bool
    load_on: Maker

    @model_validator(mode="after")
    def _check(self) -> _Arguments:
        if self.rank >= self.world_size:
            raise ValueError(f"rank is {self.rank} of {self.world_size}; ranks are counted from 0")
        return self


_OF_A_TRAINING = frozenset(
    ("synthetic", "real", "validation_synthetic", "validation_real", "batch_synthetic", "batch_real", "real_window")
)
"""Settings of `DataConfig` that tell the domains of a training apart."""


def load(
    data: str | os.PathLike[str] | Mapping[str, float],
    *,
    batch_size: int,
    size: int,
    seed: int = 0,
    targets: Collection[Target] | None = None,
    device: str | torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
    state: Mapping[str, Any] | None = None,
    threads: int = 0,
    prefetch: int = 2,
    half: bool = False,
    load_on: Maker = "cpu",
    augment: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Loader:
    """Endless random batches of packed datasets; which samples come, and how they are seen, depends on the seed alone.

        with fastssl.load("rooms", batch_size=64, size=227) as batches:
            for batch in batches:
                batch.image, batch.depth, batch.normal, batch.edge

    Args:
        data: a packed dataset, a folder or an address such as ``s3://bucket/rooms``; or several with their weights.
        batch_size: images per batch and rank.
        size: side of the images in pixels; windows of the stored images are resized to it.
        seed: another seed, another order and other windows.
        targets: what comes with the images; None = all that the datasets have.
        device: where the batches lie; None = the current GPU where there is one, else the CPU.
        rank: of this process, from 0; each rank reads its own part, and all make the same number of steps.
        world_size: number of ranks.
        state: `Loader.state_dict` of a loader of these datasets, to go on where it was, also with another batch size
            or number of ranks.
        threads: for decoding; 0 = as many as there are cores.
        prefetch: batches that are made ahead of need.
        half: images as float16, as mixed precision on a GPU takes them; on a CPU too.
        load_on: who makes the batches of a GPU: ``"cpu"``, its threads, which upload them, or ``"gpu"``, which decodes,
            augments and makes targets itself; on few cores that is faster.
        augment: settings of `fastssl.config.AugmentConfig`, such as ``{"blur": 0.5}``.
        **settings: more of `fastssl.config.DataConfig`, such as ``window=(0.5, 1.0)``, ``gray="off"``, ``flip=0.0`` or
            ``shuffle_buffer=10_000``. By default images keep their colours.

    Returns:
        An iterator of `fastssl.batch.Batch`.

    Raises:
        DataError, ShardError: a dataset is missing or damaged, or lacks a target.
        ConfigError: a setting does not exist or is out of range.
        DeviceError: there is no such device.
        CheckpointError: the state is of other datasets.
    """
    if not isinstance(data, str | os.PathLike | Mapping) or data == "":
        raise ConfigError(
            "this is no dataset", seen=repr(data), expected="a folder, an address, or several with their weights: {...}"
        )
    targets = _checked_targets(targets)
    numbers = {"batch_size": batch_size, "seed": seed, "rank": rank, "world_size": world_size, "threads": threads}
    numbers = {name: _whole(number) for name, number in {**numbers, "prefetch": prefetch}.items()}
    given = validated(_Arguments, {**numbers, "half": half, "load_on": load_on})
    where = _device(device)
    for name in settings.keys() & _OF_A_TRAINING:
        raise ConfigError("this is a setting of a training, and no argument of load", seen=name)
    settings = {name: _whole(value) for name, value in {**settings, "size": size}.items()}
    seen = validated(DataConfig, {"gray": "off", **settings})
    samples = open_mixture(data)
    position = 0 if state is None else _position(state)
    if state is not None and state["fingerprint"] != samples.fingerprint:
        what = "the loader's state is of other datasets"
        raise CheckpointError(what, where=samples.path, hint="give the same datasets, or no state")
    views = ViewSettings(data=seen, augment=validated(AugmentConfig, augment or {}), stored=samples.image_size)
    order = samples.order(seed=given.seed, stream=0, buffer=seen.shuffle_buffer)
    rank_slice = RankSlice(order=order, batch_size=given.batch_size, rank=given.rank, world_size=given.world_size)
    options = LoaderOptions(
        device=where,
        load_on=given.load_on,
        threads=given.threads,
        half=given.half,
        max_bad=seen.max_bad,
        paranoid=seen.paranoid,
        prefetch=given.prefetch,
    )
    plan = samples.training_plan(views, rank_slice, position=position)
    return Loader(samples, load_batches(samples, plan, options, targets), position, rank_slice.global_batch)


def _checked_targets(targets: Collection[Target] | None) -> tuple[Target, ...] | None:
    known = get_args(Target)
    given = None if targets is None else tuple(targets) if isinstance(targets, Iterable) else (targets,)
    if isinstance(targets, str) or any(target not in known for target in given or ()):
        raise ConfigError("there is no such target", seen=repr(targets), expected=f"some of {', '.join(known)}")
    return given


def _whole(number: Any) -> Any:
    """A whole number of another library, such as NumPy's, as Python's; all else as it is."""
    return int(number) if isinstance(number, Integral) and not isinstance(number, bool) else number


def _position(state: Mapping[str, Any]) -> int:
    position = _whole(state.get("position")) if isinstance(state, Mapping) else None
    if type(position) is not int or not 0 <= position < _MOST_POSITIONS or "fingerprint" not in state:
        raise CheckpointError("a loader's state cannot be used", seen=repr(state), expected="that of Loader.state_dict")
    return position


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError("there is no such kind of device", seen=repr(device), expected="cpu or cuda") from error
    if found.type not in ("cpu", "cuda"):
        raise ConfigError("batches cannot be made on this kind of device", seen=str(device), expected="cpu or cuda")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        num = torch.cuda.device_count()
        expected = f"a number below {num}" if num else "a machine with a GPU that torch can use"
        raise DeviceError("there is no such GPU", seen=str(device), expected=expected, hint='give device="cpu"')
    return found
