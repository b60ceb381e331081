"""Rooms as records and as folders of files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

import fastssl
from fastssl.batch import Record
from fastssl.errors import UsageError
from fastssl.faults import machine_faults_named
from fastssl.files import alone_in
from fastssl.render.film import develop
from fastssl.render.room import build_room
from fastssl.render.tracer import limit_threads, start, trace, version
from fastssl.shards.workers import begin_worker, check_main_guard, worker_pool
from fastssl.sources.render import RUN, RenderRun, is_finished, read_run, write_room, write_run

SPP = 16
"""Light paths per pixel. With the filter, four times as many look nearly the same."""


def render_room(seed: int, index: int, *, size: int = 256, spp: int = SPP) -> Record:
    """One furnished room with depth, normals and instances.

    The same arguments give the same record on one machine and variant of Mitsuba, whatever was rendered before.

    Args:
        size: side of the square image in pixels.
        spp: light paths per pixel, a square number from 4.

    Raises:
        UsageError: Mitsuba is not installed, or an argument is out of range.
    """
    _check(seed=seed, index=index, size=size, spp=spp)
    scene = build_room(seed, index)
    # The sampler of the light paths takes 32 bits.
    noise = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
    picture = trace(scene, size=size, spp=spp, seed=noise)
    return Record(
        key=_key(seed, index),
        image=develop(picture, scene.exposure),
        depth=picture.depth,
        normal=picture.normal,
        instance=picture.instance,
        camera=picture.camera,
    )


def render_rooms(
    out: Path,
    *,
    count: int,
    seed: int,
    size: int = 256,
    workers: int = 1,
    first: int = 0,
    spp: int = SPP,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render the rooms `first` to `first + count - 1` into a folder of the layout `render`.

    Rooms that the folder has already are kept, so an interrupted run goes on where it stopped. The files do not depend
    on the number of workers.

    Args:
        out: new, empty, or a folder that was rendered with the same settings.
        workers: processes, which share the processors.
        spp: light paths per pixel, a square number from 4.
        progress: called with the rooms that are there, and `count`.

    Raises:
        UsageError: `out` holds something else, an argument is out of range, or Mitsuba is not installed.
        DeviceError: a worker process died, or the disk is full.
    """
    _check(seed=seed, first=first, count=count, workers=workers, size=size, spp=spp)
    check_main_guard()
    run = RenderRun(seed=seed, size=size, spp=spp, variant=start(), mitsuba=version(), fastssl=fastssl.__version__)
    with machine_faults_named(hint="then render again; the rooms that are finished are kept"):
        _claim(out, run)
        missing = [index for index in range(first, first + count) if not is_finished(out, _key(seed, index))]
        done = count - len(missing)
        if progress is not None:
            progress(done, count)
        with alone_in(out, "rendering"), closing(_render_all(out, run, missing, min(workers, len(missing)))) as rooms:
            for _ in rooms:
                done += 1
                if progress is not None:
                    progress(done, count)


def _key(seed: int, index: int) -> str:
    return f"room_s{seed:05d}_{index:06d}"


def _check(**settings: int) -> None:
    lowest = {"count": 1, "workers": 1, "size": 16, "spp": 4}
    for name, value in settings.items():
        low = lowest.get(name, 0)
        if value < low or (name == "spp" and math.isqrt(value) ** 2 != value):
            expected = f"a square number, {low} or more" if name == "spp" else f"{low} or more"
            raise UsageError("a setting of rendering is out of range", where=name, seen=value, expected=expected)


def _claim(out: Path, run: RenderRun) -> None:
    """Makes the folder one of this run, or finds that it is one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        entry = next(out.iterdir(), None)
    except OSError as error:
        raise UsageError("the output folder cannot be used", where=out, seen=error.strerror) from error
    if entry is None:
        write_run(out, run)
        return
    if not (out / RUN).exists():
        raise UsageError(
            "the output folder holds something else",
            where=out,
            seen=entry.name,
            expected="an empty folder, none, or one that rendering began",
            hint="choose another folder",
        )
    there = read_run(out).model_dump()
    for name, value in run.model_dump().items():
        if there[name] != value:
            raise UsageError(
                "the output folder was rendered with other settings",
                where=f"{out / RUN}: {name}",
                seen=there[name],
                expected=value,
                hint="render with those settings, or choose another folder",
            )


def _render_all(out: Path, run: RenderRun, indices: Iterable[int], workers: int) -> Generator[None, None, None]:
    """Renders rooms into the folder; yields after each one."""
    if workers <= 1:
        for index in indices:
            _render_into(out, run, index)
            yield
        return
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    rest, pending = iter(indices), set[Future[None]]()
    with worker_pool(workers, _start_worker, run.variant, threads) as pool:
        # As many as there are workers: what waits in the pool's queue could not be taken back at a Ctrl-C.
        while chunk := [pool.submit(_render_into, out, run, index) for index in islice(rest, workers - len(pending))]:
            pending.update(chunk)
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for room in done:
                yield room.result()
        for room in as_completed(pending):
            yield room.result()


def _start_worker(variant: str, threads: int) -> None:
    begin_worker()
    start(variant)
    limit_threads(threads)


def _render_into(out: Path, run: RenderRun, index: int) -> None:
    write_room(out, render_room(run.seed, index, size=run.size, spp=run.spp))
