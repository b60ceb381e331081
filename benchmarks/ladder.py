"""The ladder of the training step, from the authors' order of work to our default: what each of its parts gains.

    python benchmarks/ladder.py [--turns 5] [--loss-steps 50] [--only NAME ...]

Each form of the step works on one batch of random numbers, in turns with the others, in the settings below; rates are
medians of the turns. Into `results/ladder.json`. `fastssl bench step` measures other settings.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import torch
from conditions import RESULTS, write_result

from fastssl.bench.step import measure_steps, sized, step_table
from fastssl.methods import load_config
from fastssl.telemetry import progress_bar

SETTINGS = {
    # As the authors' code computes, but for what only moves running statistics: photos stop at the adapted layer.
    "released": ("released", ["model.running_statistics=adapted"]),
    "released, photos through all of B": ("released", []),
    "paper": ("paper", []),
    "tiny": ("tiny", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--loss-steps", type=int, default=50, help="on a CPU for `tiny` alone, whose steps are short")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    arguments = parser.parse_args()
    path = RESULTS / "ladder.json"
    found = json.loads(path.read_text(encoding="utf-8")).get("ladders", {}) if path.exists() else {}
    for name in arguments.only:
        preset, overrides = SETTINGS[name]
        config = load_config(preset, overrides=overrides)
        loss_steps = arguments.loss_steps if torch.cuda.is_available() or preset == "tiny" else 0
        batch = None if torch.cuda.is_available() or preset != "tiny" else config.data.batch_synthetic
        with progress_bar(name) as advance:
            report = measure_steps(sized(config, batch), loss_steps=loss_steps, turns=arguments.turns, progress=advance)
        print(f"{name}\n{step_table(report)}")
        found[name] = asdict(report)
        write_result("ladder", {"ladders": found})


if __name__ == "__main__":
    main()
