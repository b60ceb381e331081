"""What holds for every evaluation of the registry."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from evaluate.devkits import Photo, Thing, write_devkit
from evaluations import numbers
from made_run import make_run, strict
from PIL import Image

from fastssl.cli import main
from fastssl.errors import DataError, UsageError
from fastssl.evaluate import (
    EVALUATIONS,
    DomainAccuracy,
    Neighbours,
    Row,
    Tasks,
    evaluate,
    run_subject,
    table,
)
from fastssl.evaluate.voc_devkit import VOC_CLASSES

MORE: dict[str, dict[str, Any]] = {
    "voc-cls": {"iterations": 2, "batch_size": 4, "crops": 1},
    "voc-det": {"iterations": 2, "scales": "80,96", "test_scale": 96},
    "normals": {"convention": "rdf-away", "depth": True, "steps": 1, "height": 60, "width": 80, "batch_size": 2},
}
"""Settings of those whose own take hours, or leave something out."""
FINE_TUNED = ("voc-cls", "voc-det", "normals")
"""They have no batch norms left, or their batch norms have the statistics of what they are fine-tuned on."""

every_evaluation = pytest.mark.parametrize("name", list(EVALUATIONS))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, coded_synthetic: Path, coded_real: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", coded_synthetic, coded_real)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, coded_synthetic: Path, coded_real: Path) -> Path:
    """A run that sees larger images, through another part of the window."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    return make_run(folder, coded_synthetic, coded_real, "train.seed=1", "data.size=83", "data.window=[1.0,1.0]")


@pytest.fixture(scope="module")
def data(
    tmp_path_factory: pytest.TempPathFactory, coded_synthetic: Path, coded_real: Path, nyu_rooms: Path
) -> dict[str, Path]:
    """What evaluations read; those that learn classes learn them from the images that they test."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 240, 240, 3), np.uint8)
    photos = {
        f"{number:06d}": Photo(
            Image.fromarray(pixels), tuple(Thing(one, (1, 1, 99, 99)) for one in VOC_CLASSES[number % 5 :: 5])
        )
        for number, pixels in enumerate(noise)
    }
    devkit = write_devkit(tmp_path_factory.mktemp("devkit"), {"trainval": photos, "test": photos}, VOC_CLASSES)
    boxes = [[0, 0, 98, 98], [9, 5, 80, 105], [0, 0, 60, 98], [120, 100, 200, 239]]
    proposals = devkit.with_name("boxes.json")
    proposals.write_text(json.dumps(dict.fromkeys(photos, boxes)))
    read = dict.fromkeys(("real", "train", "test"), coded_real)
    boxes_of = dict.fromkeys(("train_proposals", "test_proposals"), proposals)
    frames = {"frames": nyu_rooms, "truth": nyu_rooms / "truth"}
    return {"synthetic": coded_synthetic, **read, "devkit": devkit, **boxes_of, **frames}


def given(name: str, data: dict[str, Path]) -> dict[str, Any]:
    """What an evaluation reads, and what makes it small and complete."""
    known = [field.name for field in fields(cast(Any, EVALUATIONS[name])) if field.name in data]
    return {field: data[field] for field in known} | MORE.get(name, {})


@every_evaluation
def test_it_measures_what_it_declares_and_the_run_keeps_it(
    run: Path, other: Path, name: str, data: dict[str, Path]
) -> None:
    evaluation = EVALUATIONS[name](**given(name, data))
    measured = evaluate(evaluation, run, {"other": other})
    layers = run_subject(run).backbone.feature_info
    assert [row.metric for row in measured.rows] == [
        one for metric in evaluation.metrics for one in metric.of_each(layers)
    ]
    assert ("trained_reestimated" in measured.rows[0].values) != (name in FINE_TUNED)
    assert all({"trained", "other", "untrained"} <= set(row.values) for row in measured.rows)
    assert measured.conditions["images"] in (2, 9, 11, 20)
    section = measured.section()
    assert strict((run / "summary.json").read_text())[name] == section
    for row in measured.rows:
        place = section
        for part in row.metric.path:
            place = place[part]
        assert place == row.values
        for name, (low, high) in row.intervals.items():
            assert low <= row.values[name] <= high
    assert list(measured.pictures) == ([] if evaluation.sheet is None else [evaluation.sheet.file])
    for file in measured.pictures:
        assert (run / "samples" / file).stat().st_size > 1000


@every_evaluation
def test_a_run_beside_another_has_its_own_numbers(run: Path, other: Path, name: str, data: dict[str, Path]) -> None:
    """Those that it has when it is measured by itself: it sees the images in its own way."""
    evaluation = EVALUATIONS[name](**given(name, data))
    beside = evaluate(evaluation, run, {"other": other})
    alone = evaluate(evaluation, other)
    if name != "domain":  # of so few images both may tell as many
        assert any(row.values["trained"] != row.values["other"] for row in beside.rows)
    for row, own in zip(beside.rows, alone.rows, strict=True):
        assert row.values["other"] == pytest.approx(own.values["trained"])


@every_evaluation
def test_its_metrics_can_be_told_apart_and_explained(name: str) -> None:
    evaluation = EVALUATIONS[name]
    assert len({metric.path for metric in evaluation.metrics}) == len(evaluation.metrics)
    assert len({(metric.group, metric.name) for metric in evaluation.metrics}) == len(evaluation.metrics)
    assert any(metric.key for metric in evaluation.metrics)
    assert evaluation.note
    assert evaluation.title
    assert evaluation.__doc__


@every_evaluation
def test_its_command_prints_a_table_and_the_same_as_json(
    name: str,
    run: Path,
    data: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
        text
        for field, value in given(name, data).items()
        for text in ([f"--{field}"] if value is True else [f"--{field.replace('_', '-')}", str(value)])
    ]
    printed = []
    for more in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["fastssl", "eval", name, str(run), *options, *more])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        printed.append(capsys.readouterr().out)
    section = json.loads(printed[1])
    declared = [one for metric in EVALUATIONS[name].metrics for one in metric.of_each(section.get("layers", ()))]
    for metric in declared:
        shown = f"{metric.name} ({metric.hint})" if metric.hint else metric.name
        table_of_group = printed[0].partition(f"{metric.group}\n")[2]
        line = next(line for line in table_of_group.splitlines() if line.strip().startswith(f"{shown}  "))
        values = section
        for part in metric.path:
            values = values[part]
        assert f" {metric.shown(values['trained'])} " in f"{line} "
    assert len(dict(numbers(section))) >= 2


@pytest.mark.parametrize("name", ["trained", "trained_reestimated", "constant", "Other", "a b", ""])
def test_a_run_beside_another_needs_a_name_of_its_own(run: Path, coded_real: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot have this name"):
        evaluate(Neighbours(real=coded_real), run, {name: run})


def test_the_classifier_can_be_fitted_on_other_images(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> None:
    """Fitted on what the run was trained on it is the same; a run without a domain needs images to fit on."""
    rotation = make_run(tmp_path / "rotation", None, coded_real, method="rotation")
    with pytest.raises(UsageError, match=r"names no synthetic dataset(.|\n)*--fit-synthetic"):
        evaluate(DomainAccuracy(synthetic=coded_synthetic, real=coded_real), rotation)
    evaluation = DomainAccuracy(synthetic=coded_synthetic, real=coded_real, fit_synthetic=coded_synthetic)
    explicit = DomainAccuracy(
        synthetic=coded_synthetic, real=coded_real, fit_synthetic=coded_synthetic, fit_real=coded_real
    )
    found, again = evaluate(evaluation, rotation), evaluate(explicit, rotation)
    assert found.rows == again.rows
    with pytest.raises(DataError, match="wrong domain"):
        evaluate(DomainAccuracy(synthetic=coded_synthetic, real=coded_real, fit_synthetic=coded_real), rotation)
    with pytest.raises(UsageError, match="predicts neither"):
        evaluate(Tasks(synthetic=coded_synthetic), rotation)


def test_a_run_beside_another_that_learnt_less(
    run: Path, tmp_path: Path, coded_synthetic: Path, coded_real: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no value of what it did not learn, and nothing is said of the images."""
    depth = make_run(tmp_path / "depth", coded_synthetic, coded_real, "model.tasks=[depth]")
    found = evaluate(Tasks(synthetic=coded_synthetic), run, {"depth": depth})
    for row in found.rows:
        assert ("depth" in row.values) == (row.metric.path[0] == "depth")
    assert "has no value" not in caplog.text
    rotation = make_run(tmp_path / "rotation", None, coded_real, method="rotation")
    with pytest.raises(UsageError, match=r"predicts neither(.|\n)*method rotation(.|\n)*leave it out"):
        evaluate(Tasks(synthetic=coded_synthetic), run, {"other": rotation})


def test_a_table_shows_what_has_a_value() -> None:
    """Units, best direction and digits in words; a row without values is left out."""
    metrics = {metric.name: metric for metric in (*Tasks.metrics, *DomainAccuracy.metrics)}
    rmse, within = metrics["Root mean square error"], metrics["Within 11.25 degrees"]
    rows = [
        Row(rmse, {"trained": 0.96, "constant": None}),
        Row(within, {"trained": 0.25, "not_adapted": float("nan")}),
        Row(metrics["Best threshold"], {"trained": None}),
    ]
    assert table(rows).splitlines() == [
        "                                                        trained  not adapted",
        "Depth",
        "  Root mean square error (m, lower is better)             0.960            -",
        "Surface normals",
        "  Within 11.25 degrees (% of pixels, higher is better)     25.0   not finite",
    ]
    assert table(rows[:1], keys=True).splitlines()[1] == "Depth error, RMS (m, lower is better)    0.960"
    assert table(rows[2:]) == ""
    accuracy = Row(metrics["Accuracy of a linear domain classifier"], {"trained": 0.75}, {"trained": (0.6, 0.85)})
    assert table([accuracy]).splitlines() == [
        "                                                                        trained",
        "Accuracy of a linear domain classifier (nearest to 0.5 is best)           0.750",
        "  95 % interval, of the images alone                             0.600 to 0.850",
    ]
    assert "interval" not in table([accuracy], keys=True)
