"""Cost of each method's step beside its backbone alone, and the share of it that making views takes.

    python benchmarks/methods.py [--preset tiny] [--turns 5] [--only NAME ...]

For every method, on one batch of random photos of the preset's size and number: its whole step; a forward and backward
pass of its backbone alone on the same photos; and its views alone, such as tiles, masks or colours. The three take
turns, and a figure is the median of its turns. Into `results/methods.json`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from conditions import write_result

from fastssl.bench.made_up import made_up_batches
from fastssl.methods import METHODS, StepContext, find_method, load_config
from fastssl.methods.pretext import Pretext
from fastssl.train import configure_torch, run_device

_LEAST_S = 0.5
"""Time that a turn takes, at least."""


def measure(config: Any, turns: int) -> dict[str, float]:
    """Images per second of the step and of the backbone alone, and the share of the step that views take."""
    device = run_device()
    configure_torch(config)
    method = find_method(config.method)(config, StepContext(config, device))
    assert isinstance(method, Pretext)
    batches = made_up_batches(config, device)
    photos = batches["real"]
    works: dict[str, Callable[[], object]] = {
        "step": lambda: method(batches),
        "backbone": lambda: _through(method, photos.image),
        "views": lambda: method.views(photos),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(turns):
        for name, work in works.items():
            seconds[name].append(_seconds(work))
    step, backbone, views = (statistics.median(seconds[name]) for name in works)
    num = len(photos.keys)
    return {
        "images": num,
        "side": config.data.size,
        "step_images_per_s": num / step,
        "backbone_images_per_s": num / backbone,
        "views_fraction": views / step,
    }


def _through(method: Pretext, image: torch.Tensor) -> None:
    method.backbone(image)[method.backbone.last].sum().backward()
    method.backbone.zero_grad(set_to_none=True)


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of one call, the mean of as many as fill a turn."""
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < _LEAST_S or not count:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        count += 1
    return passed / count


def main() -> None:
    names = [name for name, method in METHODS.items() if issubclass(method, Pretext)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args()
    found = {}
    print(f"{'':18}{'images/s':>10}{'backbone alone':>16}{'views':>8}")
    for name in arguments.only:
        found[name] = measure(load_config(arguments.preset, method=name), arguments.turns)
        rates = f"{found[name]['step_images_per_s']:10.1f}{found[name]['backbone_images_per_s']:16.1f}"
        print(f"{name:18}{rates}{found[name]['views_fraction']:8.1%}", flush=True)
    write_result("methods", {"preset": arguments.preset, "turns": arguments.turns, "methods": found})


if __name__ == "__main__":
    main()
