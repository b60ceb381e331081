"""What adaptation does to the features: the same training with it and without, several seeds each.

    python benchmarks/adaptation.py [--seeds 3] [--preset tiny] [--set section.key=value ...]

Trains on the sample shards, then measures on held-out images how well a linear classifier tells the domains apart and
how often the nearest neighbours of a crop come from its photograph. Writes `results/adaptation.json` and prints the
table that README.md shows. Runs that are finished in `--runs` are not trained again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from conditions import write_result

from fastssl.errors import UsageError
from fastssl.evaluate import DomainAccuracy, Evaluation, Neighbours, Tasks, evaluate
from fastssl.methods import load_config, read_config
from fastssl.train import start_run

SAMPLE = Path(__file__).resolve().parent.parent / "shards" / "sample"
MEASURES = {
    "domain accuracy": ("domain", "accuracy"),
    "precision at 1": ("neighbours", "precision_at_1"),
    "precision at 5": ("neighbours", "precision_at_5"),
    "depth RMSE (m)": ("tasks", "depth", "rmse"),
    "mean normal error (deg)": ("tasks", "normal", "mean"),
    "contour F": ("tasks", "edge", "f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptation"))
    arguments = parser.parse_args()
    layer = load_config(arguments.preset, overrides=arguments.overrides).model.adapted_layer
    results: dict[str, list[dict[str, object]]] = {}
    for seed in range(arguments.seeds):
        for name, adapted in (("adapted", layer), ("not adapted", "none")):
            settings = [*arguments.overrides, f"train.seed={seed}", f"model.adapted_layer={adapted}"]
            run = arguments.runs / f"{name.replace(' ', '_')}_{seed}"
            results.setdefault(name, []).append(train_and_measure(arguments.preset, settings, run))
    write_result("adaptation", {"preset": arguments.preset, "settings": arguments.overrides, "results": results})
    print(table(results))


def train_and_measure(preset: str, settings: list[str], run: Path) -> dict[str, object]:
    paths = [f"data.synthetic={SAMPLE / 'render_train'}", f"data.real={SAMPLE / 'real_train'}"]
    config = load_config(preset, overrides=[*paths, *settings])
    if not (run / "summary.json").exists():
        start_run(config, run, lambda done, total=None, words="": print(f"{run.name} {done}/{total} {words}"))
    elif read_config(run / "config.yaml") != config:
        raise UsageError("a run with other settings is there", where=run, hint="give another --runs")
    evaluations: list[Evaluation] = [
        DomainAccuracy(synthetic=SAMPLE / "render_val", real=SAMPLE / "real_val"),
        Neighbours(real=SAMPLE / "retrieval"),
        Tasks(synthetic=SAMPLE / "render_val"),
    ]
    return {evaluation.name: evaluate(evaluation, run).section() for evaluation in evaluations}


def table(results: dict[str, list[dict[str, object]]]) -> str:
    """Mean and range over the seeds; `untrained` is the networks before the first step."""
    lines = ["| | adapted | not adapted | untrained |", "|---|---|---|---|"]
    for title, path in MEASURES.items():
        columns = [values(results["adapted"], path, "trained"), values(results["not adapted"], path, "trained")]
        columns.append(values(results["adapted"], path, "untrained"))
        cells = [f"{statistics.mean(column):.3f} ({min(column):.3f} to {max(column):.3f})" for column in columns]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def values(runs: list[dict[str, object]], path: tuple[str, ...], name: str) -> list[float]:
    found = []
    for run in runs:
        value: object = run
        for part in (*path, name):
            assert isinstance(value, dict)
            value = value[part]
        assert isinstance(value, float)
        found.append(value)
    return found


if __name__ == "__main__":
    main()
