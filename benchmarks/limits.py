"""What limits training on this machine: the loader alone, the step alone on one resident batch, and both together.

    python benchmarks/limits.py [--preset tiny] [--set section.key=value ...]

Pairs of one rendered image and one photo per second, median of five measurements after a warm-up, into
`results/limits.json`. The end-to-end rate cannot be above the lower of the other two; on a CPU, where loader and step
share the cores, it is well below both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from conditions import write_result

from fastssl.batch import Batch
from fastssl.config import Config
from fastssl.loader import training_domains
from fastssl.methods import StepContext, find_method, load_config
from fastssl.train import calibrated_options, run_device

SAMPLE = Path(__file__).resolve().parent.parent / "shards" / "sample"
REPEATS, STEPS, WARM_UP = 5, 20, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    paths = [f"data.synthetic={SAMPLE / 'render_train'}", f"data.real={SAMPLE / 'real_train'}"]
    config = load_config(arguments.preset, overrides=[*paths, *arguments.overrides])
    device = run_device()
    step = find_method(config.method)(config, StepContext(config, device))

    batches = step_batches(config, device)
    resident = next(batches)
    rates = {
        "loader": measure(lambda: next(batches), config),
        "step": measure(lambda: step(resident), config),
        "training": measure(lambda: step(next(batches)), config),
    }
    for name, values in rates.items():
        print(f"{name:9} {statistics.median(values):8.1f} pairs/s   ({min(values):.1f} to {max(values):.1f})")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    limit = "loader" if medians["loader"] < medians["step"] else "step"
    print(f"the {limit} is the slower part; together they reach {medians['training'] / medians[limit]:.0%} of it")
    path = write_result("limits", {"preset": arguments.preset, "pairs_per_s": rates, "limited_by": limit})
    print(f"written to {path}")


def step_batches(config: Config, device: torch.device) -> Iterator[dict[str, Batch]]:
    domains = training_domains(find_method(config.method).domains(config), config)
    options = calibrated_options(next(iter(domains.values())), device)
    endless = {name: domain.training_batches(options) for name, domain in domains.items()}
    while True:
        yield {name: next(batches) for name, batches in endless.items()}


def measure(work: Callable[[], object], config: Config) -> list[float]:
    """Pairs per second of each of `REPEATS` stretches of `STEPS` steps."""
    for _ in range(WARM_UP):
        work()
    rates = []
    for _ in range(REPEATS):
        wait()
        started = time.perf_counter()
        for _ in range(STEPS):
            work()
        wait()
        rates.append(STEPS * config.data.batch_synthetic / (time.perf_counter() - started))
    return rates


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
