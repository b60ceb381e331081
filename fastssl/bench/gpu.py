"""What a GPU takes for a piece of work: power, energy, and how busy its JPEG engine is, by NVML."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from fastssl.telemetry import gpu_readings, nvml_handle

_BETWEEN_READINGS = 0.05
"""Seconds; the driver renews its figures no more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUse:
    """Means over the time of the work."""

    power_w: float
    utilisation_percent: float
    """Fraction of the time in which a kernel ran."""
    jpeg_engine_percent: float | None
    """Fraction of the time in which the JPEG engine ran; None where driver or binding do not tell it."""
    images_per_joule: float


def gpu_use(work: Callable[[], int], seconds: float, index: int, *, wait: Callable[[], None]) -> GpuUse | None:
    """Do a piece of work for some seconds and watch the GPU; None where NVML does not answer.

    Args:
        work: called again and again; returns for how many images it was.
        seconds: one reading at least is taken, however short.
        index: of the GPU.
        wait: returns when all that `work` has begun is done.
    """
    wait()
    with _watched(index) as readings:
        started, images = time.perf_counter(), 0
        while not images or time.perf_counter() - started < seconds:
            images += work()
        wait()
        elapsed = time.perf_counter() - started
    if not all("gpu/power_w" in reading and "gpu/utilisation_percent" in reading for reading in readings):
        return None
    busy = [reading["jpeg"] for reading in readings if "jpeg" in reading]
    power = statistics.mean(reading["gpu/power_w"] for reading in readings)
    return GpuUse(
        power_w=power,
        utilisation_percent=statistics.mean(reading["gpu/utilisation_percent"] for reading in readings),
        jpeg_engine_percent=statistics.mean(busy) if busy else None,
        images_per_joule=images / (power * elapsed),
    )


@contextmanager
def _watched(index: int) -> Iterator[list[dict[str, float]]]:
    """A GPU's readings, one at least, complete when the block ends.

    They are taken in a thread: each keeps its caller for some milliseconds, which are not the work's.
    """
    readings, ended = list[dict[str, float]](), threading.Event()

    def watch() -> None:
        while True:
            engine = _jpeg_engine_percent(index)
            readings.append(gpu_readings(index) | ({} if engine is None else {"jpeg": engine}))
            if ended.wait(_BETWEEN_READINGS):
                return

    with ThreadPoolExecutor(1, thread_name_prefix="fastssl-nvml") as pool:
        watching = pool.submit(watch)
        try:
            yield readings
        finally:
            ended.set()
        watching.result()


def _jpeg_engine_percent(index: int) -> float | None:
    import pynvml

    if not hasattr(pynvml, "nvmlDeviceGetJpgUtilization"):  # since nvidia-ml-py 12.535
        return None
    handle = nvml_handle(index)
    if handle is None:
        return None
    try:
        percent, _ = pynvml.nvmlDeviceGetJpgUtilization(handle)
    except pynvml.NVMLError:
        return None
    return float(percent)
