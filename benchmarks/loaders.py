"""Loading side by side: the same four-plane samples, on two CPU cores, to the same float tensors.

    python benchmarks/loaders.py [--samples 1000] [--repeats 5] [--seconds 3] [--data DIR] [--ffcv-python PATH] [--json]

An image, its depth, normals and contours, seen through a random window of 227 x 227 pixels of the image stretched to
256 x 256, half of them mirrored; as float tensors for a network. Measured are

- torch's DataLoader, webdataset, spdl and a plain DALI graph, on the JPEG and PNG files of 320 x 240 as they come from
  a renderer, and once more on files that were resized to 256 x 256 before;
- `fastssl` on its packed shards, and FFCV on its file of JPEGs and raw planes (see `loader_ffcv.py` for how to build it
  and what it does not do; skipped without --ffcv-python);
- the floor: nothing but the decoding of the JPEGs in our shards, by libjpeg-turbo in two threads and by DALI; and the
  former with new tensors of a batch's size that are filled once, below which nobody comes who hands over such tensors.

First every loader's tensors are compared with a reference by Pillow and NumPy. Then each runs in a process of its own,
with the best of a few settings, and all are measured in turns; what is printed is the median rate, the least and the
greatest. The samples are made on the first run (two minutes per thousand) and kept in DIR; remove it when the format of
the shards has changed. Needs the packages of the extra `bench`; loaders whose packages are missing are skipped. Results
go to `results/loaders.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import numpy as np
from conditions import write_result
from loader_data import Array, View, bytes_per_sample, prepare, reference, resized_files, source_files
from loader_peers import missing_modules
from loader_protocol import Settings

HERE = Path(__file__).parent
CORES = 2
CHECKED = 8
"""Samples whose tensors are compared with the reference."""
FIXED = ((7, 20, False), (29, 29, True))
"""Windows and flips of the comparison; the second touches two borders of the image."""
SWEEP_SECONDS = 1.5

Rates = list[float]


class LoaderEndedError(Exception):
    """A loader's process ended; holds the end of what it wrote."""


@dataclass(slots=True)
class Contender:
    """A loader on one form of the samples, and what was found out about it."""

    group: str
    """`source`, `resized`, `packed` or `floor`."""
    title: str
    command: list[str]
    stored: Path
    """File or folder that it reads."""
    sweep: list[Settings]
    settings: Settings = field(default_factory=dict)
    rates: Rates = field(default_factory=list)
    differences: list[dict[str, float]] = field(default_factory=list)
    skipped: str = ""

    @property
    def name(self) -> str:
        return f"{self.group}/{self.title}"

    @property
    def median(self) -> float:
        return statistics.median(self.rates)

    @property
    def crops(self) -> bool:
        return self.group != "floor" and "FFCV" not in self.title


PYTHON_SWEEP: list[Settings] = [
    {"batch": 64, "workers": 2, "codecs": "opencv"},
    {"batch": 64, "workers": 2, "codecs": "fast"},
    {"batch": 64, "workers": 3, "codecs": "fast"},
    {"batch": 16, "workers": 2, "codecs": "fast"},
]
GRAPH_SWEEP: list[Settings] = [
    {"batch": 64, "workers": 2},
    {"batch": 16, "workers": 2},
    {"batch": 16, "workers": 3},
    {"batch": 64, "workers": 3},
    {"batch": 128, "workers": 2},
]


def contenders(data: Path, samples: int, ffcv_python: str | None) -> list[Contender]:
    def peer(group: str, title: str, loader: str, stored: Path, sweep: list[Settings]) -> Contender:
        form = "resized" if group == "resized" else "source"
        command = [sys.executable, str(HERE / "loader_peers.py"), loader, str(data), str(samples), form]
        missing = missing_modules(loader)
        skipped = f"not installed: {', '.join(missing)}" if missing else ""
        usable = [one for one in sweep if not missing_modules(loader, one.get("codecs"))]
        return Contender(group, title, command, stored, usable, skipped=skipped)

    def ffcv(title: str, kind: str) -> Contender:
        files = [str(data / "ffcv.beton"), str(data / "resized"), str(samples), kind]
        command = [ffcv_python or "", str(HERE / "loader_ffcv.py"), *files]
        skipped = "" if ffcv_python else "no --ffcv-python"
        return Contender("packed", title, command, data / "ffcv.beton", GRAPH_SWEEP[:2], skipped=skipped)

    found = []
    for files in (source_files(data, samples), resized_files(data, samples)):
        group = files.folder.name
        found += [
            peer(group, "torch DataLoader", "torch", files.folder, PYTHON_SWEEP),
            peer(group, "webdataset", "webdataset", files.tars, PYTHON_SWEEP),
            peer(group, "spdl", "spdl", files.folder, PYTHON_SWEEP),
            peer(group, "DALI", "dali", files.folder, GRAPH_SWEEP),
        ]
    shards = data / "shards"
    return [
        *found,
        peer("packed", "fastssl", "fastssl", shards, GRAPH_SWEEP),
        ffcv("FFCV, float tensors, no crop", "floats"),
        ffcv("FFCV, bytes as stored, no crop", "stored"),
        peer("floor", "JPEG decoding alone, libjpeg-turbo", "decode-turbo", shards, GRAPH_SWEEP[:2]),
        peer("floor", "the same, and tensors filled once", "decode-write", shards, GRAPH_SWEEP[:2]),
        peer("floor", "JPEG decoding alone, DALI", "decode-dali", shards, GRAPH_SWEEP),
    ]


class LoaderProcess:
    """One loader in a process of its own, asked by `loader_protocol`."""

    def __init__(self, command: Sequence[str], log: IO[bytes]) -> None:
        self._log = log
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
        )

    def ask(self, **request: Any) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            self._process.wait()
            self._log.seek(0)
            raise LoaderEndedError(self._log.read().decode(errors="replace")[-2000:])
        found: dict[str, float] = json.loads(answer)
        return found

    def rate(self, settings: Settings, seconds: float) -> float:
        """Samples per second."""
        answer = self.ask(settings=settings, seconds=seconds)
        return answer["samples"] / answer["seconds"]

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def loader_process(command: Sequence[str]) -> Iterator[LoaderProcess]:
    with tempfile.TemporaryFile() as log:
        process = LoaderProcess(command, log)
        try:
            yield process
        finally:
            process.end()


def check(contender: Contender, data: Path, samples: int) -> None:
    """Compare the tensors of a few samples with the reference.

    Raises:
        ValueError: they are further from it than allowed.
    """
    files = source_files(data, samples) if contender.group == "source" else resized_files(data, samples)
    checked = min(CHECKED, samples)
    windows = FIXED if contender.crops else ((0, 0, False),)
    # Two of the settings, so that both choices of codecs are compared.
    tried = zip(windows, (contender.sweep * 2)[: len(windows)], strict=True)
    with tempfile.TemporaryDirectory() as folder, loader_process(contender.command) as process:
        for fixed, settings in tried:
            path = Path(folder) / "batch.npz"
            process.ask(settings={**settings, "batch": checked, "fixed": fixed}, save=str(path))
            with np.load(path) as saved:
                batch = [saved[name] for name in saved.files]
            views = [View(sample, *fixed) for sample in range(checked)]
            expected = [reference(files, view, whole=not contender.crops) for view in views]
            found = compare(batch, [np.stack(parts) for parts in zip(*expected, strict=True)])
            contender.differences.append(found)
            # FFCV encodes its JPEGs anew.
            allow(found, contender.name, image_mean=2.0 if "FFCV" in contender.title else 0.5)


def compare(batch: Sequence[Array], expected: Sequence[Array]) -> dict[str, float]:
    """How far five tensors are from the reference.

    Returns:
        image_mean: mean difference in levels of 8 bits; depth in metres and normal: the largest difference; edge and
        valid: the fraction of pixels that differ.

    Raises:
        ValueError: shapes or types are not those of the reference.
    """
    for name, part, wanted in zip(("image", "depth", "normal", "edge", "valid"), batch, expected, strict=True):
        dtype = np.bool_ if name == "valid" else np.float32
        if part.shape != wanted.shape or part.dtype != dtype:
            raise ValueError(f"{name} is {part.dtype} {part.shape}, not {dtype.__name__} {wanted.shape}")
    image, depth, normal, edge, valid = (
        np.abs(part.astype(np.float64) - wanted) for part, wanted in zip(batch, expected, strict=True)
    )
    return {
        "image_mean": float(255 * image.mean()),
        "depth": float(depth.max()),
        "normal": float(normal.max()),
        "edge": float(edge.mean()),
        "valid": float(valid.mean()),
    }


def allow(found: dict[str, float], name: str, *, image_mean: float) -> None:
    """Refuse differences that are more than rounding, or than the decoders' freedom.

    Half a level is what the rounding of a resized image costs.
    """
    limits = {"image_mean": image_mean, "depth": 1e-5, "normal": 1e-5, "edge": 0.0, "valid": 0.0}
    beyond = {key: found[key] for key, limit in limits.items() if found[key] > limit}
    if beyond:
        raise ValueError(f"{name} does not give the reference's tensors: {beyond}, allowed {limits}")


def run(everyone: list[Contender], repeats: int, seconds: float) -> None:
    """Find the best settings of each, then measure all of them in turns."""
    with ExitStack() as stack:
        processes = {}
        for contender in everyone:
            say(f"settings of {contender.name}")
            process = stack.enter_context(best_setting(contender))
            processes[contender.name] = process
        for repeat in range(repeats):
            say(f"round {repeat + 1} of {repeats}")
            for place in range(len(everyone)):
                contender = everyone[(place + repeat) % len(everyone)]
                contender.rates.append(processes[contender.name].rate(contender.settings, seconds))


@contextmanager
def best_setting(contender: Contender) -> Iterator[LoaderProcess]:
    """Try the settings, each in a fresh process and twice, for the first turn is the slower; go on with the best."""
    rates = []
    for settings in contender.sweep:
        with loader_process(contender.command) as process:
            rates.append(max(process.rate(settings, SWEEP_SECONDS) for _ in range(2)))
    contender.settings = contender.sweep[int(np.argmax(rates))]
    with loader_process(contender.command) as process:
        yield process


def summary(everyone: list[Contender], samples: int) -> dict[str, Any]:
    """What goes to the result file."""
    measured = [contender for contender in everyone if contender.rates]
    ours = next((contender for contender in measured if contender.title == "fastssl"), None)
    loaders = {
        contender.name: {
            "samples_per_s": {
                "median": contender.median,
                "min": min(contender.rates),
                "max": max(contender.rates),
                "all": contender.rates,
            },
            "bytes_per_sample": bytes_per_sample(contender.stored, samples),
            "settings": contender.settings,
            "largest_differences": largest(contender.differences),
        }
        for contender in measured
    }
    return {
        "samples": samples,
        "loaders": loaders,
        "fastssl_over": {name: ours.median / other.median for name, other in rivals(measured)} if ours else {},
        "fastssl_bytes_over": {
            other.name: bytes_per_sample(ours.stored, samples) / bytes_per_sample(other.stored, samples)
            for other in measured
            if ours and other.group != "floor" and other != ours
        },
        "skipped": {contender.name: contender.skipped for contender in everyone if contender.skipped},
        "packages": packages(),
    }


def rivals(measured: list[Contender]) -> Iterator[tuple[str, Contender]]:
    """With whom `fastssl` is compared: the fastest peer on each form of files, and all of FFCV and the floor."""
    for group in ("source", "resized"):
        peers = [contender for contender in measured if contender.group == group]
        if peers:
            best = max(peers, key=lambda contender: contender.median)
            yield f"best peer on {group} files, {best.title}", best
    for other in measured:
        if other.group == "floor" or (other.group == "packed" and other.title != "fastssl"):
            yield other.title, other


def largest(differences: list[dict[str, float]]) -> dict[str, float]:
    return {key: max(found[key] for found in differences) for key in differences[0]} if differences else {}


def packages() -> dict[str, str]:
    found = {}
    for name in ("webdataset", "spdl-core", "opencv-python-headless", "simplejpeg", "imagecodecs", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def print_tables(result: dict[str, Any]) -> None:
    headings = {
        "source": "JPEG and PNG files, 320 x 240",
        "resized": "the same, resized to 256 x 256 beforehand",
        "packed": "packed, 256 x 256",
        "floor": "the floor",
    }
    for group, heading in headings.items():
        rows = {name: found for name, found in result["loaders"].items() if name.startswith(f"{group}/")}
        if rows:
            print(f"\n{heading:44} samples/s  (least to greatest)  KB/sample  settings")
        for name, found in rows.items():
            rate, settings = (
                found["samples_per_s"],
                " ".join(f"{key} {value}" for key, value in found["settings"].items()),
            )
            spread = f"({rate['min']:.0f} to {rate['max']:.0f})"
            size = found["bytes_per_sample"] / 1000
            print(f"  {name.partition('/')[2]:42} {rate['median']:9.0f}  {spread:19}  {size:9.1f}  {settings}")
    print("\nfastssl's rate over that of")
    for name, ratio in result["fastssl_over"].items():
        print(f"  {name:60} {ratio:6.2f}")
    print("\nfastssl's bytes over those of")
    for name, ratio in result["fastssl_bytes_over"].items():
        print(f"  {name:60} {ratio:6.2f}")
    for name, reason in result["skipped"].items():
        print(f"skipped: {name} ({reason})")


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--data", type=Path, default=Path(tempfile.gettempdir()) / "fastssl-loaders")
    parser.add_argument("--ffcv-python", help="the Python of an environment that holds FFCV")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="only loaders whose names hold one of these; writes no file"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    data = arguments.data / str(arguments.samples)
    prepare(data, arguments.samples, say)
    everyone = contenders(data, arguments.samples, arguments.ffcv_python)
    if arguments.only:
        everyone = [one for one in everyone if any(word in one.name for word in arguments.only)]
    able = [contender for contender in everyone if not contender.skipped]
    for contender in able:
        if contender.group != "floor" and "stored" not in contender.title:
            say(f"tensors of {contender.name}")
            check(contender, data, arguments.samples)
    run(able, arguments.repeats, arguments.seconds)
    result = summary(everyone, arguments.samples)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print_tables(result)
    if not arguments.only:
        say(f"written to {write_result('loaders', result)}")


if __name__ == "__main__":
    main()
