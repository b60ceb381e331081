"""What the figures of loading mean: which part limits it, how far it is from the floor, and what helps.

Everything follows from the figures. The time of an image is put together from what its parts took by themselves, of the
clock and with all threads. So a part that keeps the processor busy and one that waits can be compared; the largest one
limits. What overlaps in the loader makes the sum larger than the loader's own time, which the fractions do not mind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fastssl.bench.load import LoadReport, SweepPoint
from fastssl.bench.parts import Part
from fastssl.bench.rates import Rate
from fastssl.loader import Maker
from fastssl.shards import DomainName

Activity = Literal[
    "reading",
    "image_decoding",
    "image_operations",
    "target_inflation",
    "depth_and_normals",
    "edges",
    "targets",
    "hand_over",
    "waiting",
]
_WORDS: dict[Activity, str] = {
    "reading": "reading the shards",
    "image_decoding": "decoding images",
    "image_operations": "what is done to decoded images (window, colours, normalisation)",
    "target_inflation": "inflating target blocks",
    "depth_and_normals": "making depth and normals of the target blocks",
    "edges": "making contours of the target blocks",
    "targets": "making targets on the GPU",
    "hand_over": "putting batches together and handing them over",
    "waiting": "waiting, for the storage or for other programs",
}
_PARTS: dict[Part, str] = {
    "reading": "reading, files in memory, one thread",
    "jpeg_simplejpeg": "JPEG decoding alone, simplejpeg",
    "jpeg_dali": "JPEG decoding alone, DALI",
    "pixels": "images: decoded, a batch at a time",
    "floor": "image decoding, and tensors filled once",
    "images": "images: decoded, window, normalised",
    "target_inflation": "targets: inflation alone",
    "target_depth_normals": "targets: inflation, depth and normals",
    "target_edges": "targets: inflation and contours",
    "targets": "targets: all planes",
    "loader_in_memory": "loader, without the reading",
    "loader": "loader",
}
_BUSY = 0.75
"""Of the cores, from which on there is nothing to gain from more threads."""
_BETTER = 1.05
"""Ratio from which on other settings are worth a word."""
_UNSTEADY = 0.3
"""Spread of the loader's stretches, of the median, from which on the figures are to be taken with care."""
_QUIET = 0.25
"""Programs for each core, up to which a machine counts as free for the measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The figures in one sentence each, and what the sentences rest on."""

    limited_by: Activity
    fractions: dict[Activity, float]
    """Of the time of all parts together; 1 in all."""
    images_per_s: float
    """Of the loader; of both loaders together where there are two."""
    floor_images_per_s: float
    """Rate of decoding images and filling tensors of a batch's size once; on a GPU, of decoding alone by the faster
    decoder."""
    of_floor: float
    """The loader's rate over that of the floor."""
    cores_busy: float
    """While the loader runs."""
    sentences: tuple[str, ...]


def judge(report: LoadReport) -> Verdict:
    """The verdict on these figures."""
    times = _times(report)
    total = sum(times.values())
    loader = _loader(report)
    floor = 1 / _mean(report, {domain: _floor_seconds(report, domain) for domain in report.setup.batch})
    limited_by = max(times, key=lambda activity: times[activity])
    rate = loader.images_per_s
    busy = loader.core_ms / 1000 * rate
    return Verdict(
        limited_by=limited_by,
        fractions={activity: seconds / total for activity, seconds in times.items()},
        images_per_s=rate,
        floor_images_per_s=floor,
        of_floor=rate / floor,
        cores_busy=busy,
        sentences=(
            _limit(times, loader),
            f"The loader does {rate:,.0f} images/s, {rate / floor:.0%} of the {floor:,.0f} of image decoding "
            f"{'alone' if report.machine.gpu else 'and of filling such tensors once'}, and keeps {busy:.1f} of "
            f"{report.machine.cores} cores busy.",
            _advice(report, limited_by, busy, times),
            *_better_settings(report),
            *_gpu(report),
            *_care(report, loader),
        ),
    )


def _times(report: LoadReport) -> dict[Activity, float]:
    """Seconds that an image takes, the mean of the domains by their images per step."""
    domains = {domain: _domain_times(report, domain) for domain in report.setup.batch}
    return {name: _mean(report, {domain: times[name] for domain, times in domains.items()}) for name in _WORDS}


def _domain_times(report: LoadReport, domain: DomainName) -> dict[Activity, float]:
    seconds = _seconds(report, domain)
    reading, images = seconds["reading"], seconds["images"]
    decoding = seconds["pixels"] if "pixels" in seconds else seconds["jpeg_dali"]
    in_memory = seconds.get("loader_in_memory", images)
    inflation = seconds.get("target_inflation", 0.0)
    depth_normals = max(seconds.get("target_depth_normals", 0.0) - inflation, 0)
    edges = max(seconds.get("target_edges", 0.0) - inflation, 0)
    rest = max(in_memory - images - inflation - depth_normals - edges, 0)
    on_gpu = report.machine.gpu is not None
    return {
        "reading": reading,
        "image_decoding": decoding,
        "image_operations": max(images - decoding, 0),
        "target_inflation": inflation,
        "depth_and_normals": depth_normals,
        "edges": edges,
        "targets": rest if on_gpu else 0.0,
        "hand_over": 0.0 if on_gpu else rest,
        "waiting": max(seconds["loader"] - in_memory - reading, 0),
    }


def _seconds(report: LoadReport, domain: DomainName) -> dict[Part, float]:
    return {stage.part: stage.rate.seconds for stage in report.stages if stage.domain == domain}


def _floor_seconds(report: LoadReport, domain: DomainName) -> float:
    seconds = _seconds(report, domain)
    if "floor" in seconds:
        return seconds["floor"]
    decoders: tuple[Part, ...] = ("jpeg_simplejpeg", "jpeg_dali", "pixels")
    return min(seconds[part] for part in decoders if part in seconds)


def _mean(report: LoadReport, values: Mapping[DomainName, float]) -> float:
    batch = report.setup.batch
    return sum(batch[domain] * value for domain, value in values.items()) / sum(batch.values())


def _loader(report: LoadReport) -> Rate:
    """Of both domains if there are two; it was measured last."""
    return [stage.rate for stage in report.stages if stage.part == "loader"][-1]


def _limit(times: Mapping[Activity, float], loader: Rate) -> str:
    total = sum(times.values())
    first, second = sorted(times, key=lambda activity: times[activity], reverse=True)[:2]
    fraction = times[first] / total
    without = loader.images_per_s / (1 - fraction)
    return (
        f"Loading is limited by {_WORDS[first]}: {1000 * times[first]:.2f} of the {1000 * total:.2f} ms that the parts "
        f"of an image take ({fraction:.0%}). If that cost nothing, about {without:,.0f} images/s were possible. "
        f"Next comes {_WORDS[second]} ({times[second] / total:.0%})."
    )


def _advice(report: LoadReport, limited_by: Activity, busy: float, times: Mapping[Activity, float]) -> str:
    setup, cores = report.setup, report.machine.cores
    size = _mean(report, setup.bytes_per_image)
    match limited_by:
        case "reading":
            return (
                f"One thread reads {size / times['reading'] / 1e6:,.1f} MB/s, though it had read these files before: "
                "put the shards on a local disk, or pack less than "
                f"{size / 1000:.0f} KB an image (--image-codec jpeg, --jpeg-quality, --size)."
            )
        case "waiting":
            return (
                f"No part explains it, and {cores - busy:.1f} of {cores} cores were not at work here: if the next run "
                "is faster it was the storage (a local disk helps, or memory for all shards), if not, see what else "
                "runs on this machine."
            )
        case "hand_over":
            return "It is one thread's work for every batch: larger batches spread it over more images."
        case "image_operations" if setup.augments:
            return "Most of that are changes of colours and blur: augment.saturation, augment.hue and augment.blur."
        case "image_operations" if setup.resamples:
            fraction = setup.size / setup.stored
            return (
                f"Windows are resampled to {setup.size} pixels; windows of that size are cut out instead, which costs "
                f"next to nothing: --set data.window=[{fraction:.6f},{fraction:.6f}]."
            )
    return _more_cores(report, busy)


def _more_cores(report: LoadReport, busy: float) -> str:
    cores, threads = report.machine.cores, report.setup.threads
    if threads < cores:
        return f"The loader has {threads} threads for {cores} cores: --set train.threads=0 gives it all of them."
    idle, smaller = f"{cores - busy:.1f} of {cores} cores were not at work here", "smaller packed images (--size)"
    if report.machine.gpu is not None and report.setup.load_on == "gpu":
        return (
            f"It is the GPU's work as much as the cores' ({idle}): train.load_on and train.hw_decoder_load shift it, "
            f"{smaller} save it."
        )
    if busy < _BUSY * cores:
        return f"Other programs use this machine, or its cores wait: {idle}."
    return f"All cores are at work on it: more of them help, {smaller}, or a GPU to decode on."


def _better_settings(report: LoadReport) -> list[str]:
    """Settings of the sweep whose every stretch beats every stretch of the present ones."""
    setup = report.setup
    present = (setup.threads, setup.prefetch, setup.load_on, setup.hw_decoder_load)
    here = next((point for point in report.sweep if _settings(point) == present), None)
    best = max(report.sweep, key=lambda point: point.rate.images_per_s)
    if here is None or min(best.rate.stretches) < _BETTER * max(here.rate.stretches):
        return []
    names = ("train.threads", "train.prefetch", "train.load_on", "train.hw_decoder_load")
    changes = [
        f"{name} = {there} instead of {now}"
        for name, there, now in zip(names, _settings(best), present, strict=True)
        if there != now
    ]
    ratio = best.rate.images_per_s / here.rate.images_per_s
    return [f"The {report.sweep_domain} loader is {ratio:.2f} times as fast with {' and '.join(changes)}."]


def _settings(point: SweepPoint) -> tuple[int, int, Maker, float]:
    return point.threads, point.prefetch, point.load_on, point.hw_decoder_load


def _gpu(report: LoadReport) -> list[str]:
    use = report.gpu
    if use is None:
        return []
    engine = "" if use.jpeg_engine_percent is None else f", its JPEG engine {use.jpeg_engine_percent:.0f} %"
    return [
        f"The GPU takes {use.power_w:.0f} W, {use.images_per_joule:.1f} images per joule; it is busy "
        f"{use.utilisation_percent:.0f} % of the time{engine}."
    ]


def _care(report: LoadReport, loader: Rate) -> list[str]:
    spread = (max(loader.stretches) - min(loader.stretches)) / loader.images_per_s
    load = report.machine.load
    if spread < _UNSTEADY and load < _QUIET * report.machine.cores:
        return []
    return [
        f"Take this with care: in the minute before, {load:.1f} programs wanted one of {report.machine.cores} cores, "
        f"and the loader's stretches differ by {spread:.0%}."
    ]


def loading_table(report: LoadReport) -> str:
    """All figures as lines that fit 100 columns, each ending in a line break."""
    setup, machine = report.setup, report.machine
    images = " and ".join(f"{count} {domain}" for domain, count in setup.batch.items())
    lines = [
        f"{machine.gpu or machine.processor}, {machine.cores} cores, {setup.threads} threads; "
        f"{images} images a step, {setup.size} x {setup.size}",
        "",
        f"{'':50}{'images/s':>10}  {'(least to most)':18}  {'core ms/image':>14}",
    ]
    lines += [_line(f"{stage.domain:9}  {_PARTS[stage.part]}", stage.rate) for stage in report.stages]
    lines += ["", f"{report.sweep_domain} loader, {report.sweep_batch} images a step"]
    lines += [_line(_point(point, engine=machine.gpu is not None), point.rate) for point in report.sweep]
    return "".join(f"{line}\n" for line in lines)


def _line(what: str, rate: Rate) -> str:
    spread = f"({min(rate.stretches):,.0f} to {max(rate.stretches):,.0f})"
    return f"{what:50}{rate.images_per_s:10,.0f}  {spread:18}  {rate.core_ms:14.3f}"


def _point(point: SweepPoint, *, engine: bool) -> str:
    maker = f", by the {point.load_on.upper()}" if engine else ""
    fraction = f", JPEG engine {point.hw_decoder_load:.0%}" if engine and point.load_on == "gpu" else ""
    return f"threads {point.threads}, prefetch {point.prefetch}{maker}{fraction}"
