"""Whole evaluations of small and odd data, and of runs whose folder or data are not as they were."""

from __future__ import annotations

import errno
import logging
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluations import measured
from made_run import diverged, make_run, strict
from patterns import SIDE, CodedSource, coded_record
from PIL import Image

from fastssl import files
from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.evaluate import DomainAccuracy, Neighbours, Tasks
from fastssl.shards import pack


@pytest.fixture
def run(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> Path:
    return make_run(tmp_path / "run", coded_synthetic, coded_real)


@dataclass(frozen=True)
class Patterns(CodedSource):
    """Coded patterns, and what is odd about them."""

    numbers: tuple[int, ...] = ()
    depth: bool = True
    contours: bool = True

    def references(self) -> Iterator[str]:
        return (str(number) for number in range(self.count))

    def read(self, reference: str) -> Record:
        if self.domain == "real":
            return replace(super().read(reference), class_index=self.numbers[int(reference)])
        record = coded_record(int(reference))
        if not self.depth:
            record = replace(record, depth=np.zeros((SIDE, SIDE), np.float32))
        return record if self.contours else replace(record, instance=np.zeros((SIDE, SIDE), np.int32))


def photos(folder: Path, *classes: int) -> Path:
    pack(Patterns(len(classes), "real", numbers=classes), folder, size=SIDE)
    return folder


def renders(folder: Path, count: int = 3, **odd: bool) -> Path:
    pack(Patterns(count, "synthetic", **odd), folder, size=SIDE)
    return folder


def numbers(values: Any) -> list[float | None]:
    if isinstance(values, dict):
        return [number for name, value in values.items() if name != "conditions" for number in numbers(value)]
    return [] if isinstance(values, str) else [values]


@pytest.mark.parametrize("task", ["depth", "normal", "edge"])
def test_a_run_with_one_task(tmp_path: Path, coded_synthetic: Path, coded_real: Path, task: str) -> None:
    run = make_run(tmp_path / "run", coded_synthetic, coded_real, f'model.tasks=["{task}"]')
    tasks = measured(Tasks(synthetic=coded_synthetic), run)
    assert list(tasks) == [task, "conditions"]
    assert all(value is not None and math.isfinite(value) for value in numbers(tasks))
    measured(DomainAccuracy(synthetic=coded_synthetic, real=coded_real), run)
    measured(Neighbours(real=coded_real), run)
    summary = strict((run / "summary.json").read_text())
    assert summary["tasks"] == tasks
    assert set(summary) == {"tasks", "domain", "neighbours"}


def test_the_rooms_of_the_training_are_told_to_be_no_held_out_ones(
    run: Path, tmp_path: Path, coded_synthetic: Path, caplog: pytest.LogCaptureFixture
) -> None:
    measured(Tasks(synthetic=renders(tmp_path / "others")), run)
    assert "held out" not in caplog.text
    measured(Tasks(synthetic=coded_synthetic), run)
    assert f"{coded_synthetic} is what the run was trained on, and not held out" in caplog.text


def test_held_out_images_without_known_depth(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = measured(Tasks(synthetic=renders(tmp_path / "blind", depth=False)), run)
    assert set(numbers(tasks["depth"])) == set(numbers(tasks["normal"])) == {None}
    assert None not in numbers(tasks["edge"])
    assert "depth (trained) has no value: no pixel" in caplog.text
    assert strict((run / "summary.json").read_text())["tasks"] == tasks


def test_training_images_without_known_depth_give_no_constant(
    tmp_path: Path, coded_synthetic: Path, coded_real: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run", renders(tmp_path / "blind", depth=False), coded_real)
    tasks = measured(Tasks(synthetic=coded_synthetic), run)
    for row in (tasks["depth"]["rmse"], tasks["normal"]["mean"]):
        assert row["constant"] is None
        assert row["trained"] is not None
    assert "depth (constant) has no value: no pixel of the training images is valid" in caplog.text


def test_images_without_a_contour(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = measured(Tasks(synthetic=renders(tmp_path / "smooth", contours=False)), run)
    assert set(numbers(tasks["edge"])) == {None}
    assert "edge (trained) has no value: no pixel of these images is a contour" in caplog.text


def test_nothing_to_measure_is_an_error(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> None:
    run = make_run(tmp_path / "run", coded_synthetic, coded_real, 'model.tasks=["depth", "normal"]')
    with pytest.raises(DataError, match=r"no task(.|\n)*blind(.|\n)*known depth"):
        measured(Tasks(synthetic=renders(tmp_path / "blind", depth=False)), run)
    assert not (run / "summary.json").exists()


def test_one_image_of_each_domain(tmp_path: Path) -> None:
    """Fewer than a calibration or a picture takes, to fit on and to measure."""
    synthetic, real = renders(tmp_path / "one", 1), photos(tmp_path / "photo", 0)
    run = make_run(tmp_path / "run", synthetic, real)
    assert all(
        value is not None and math.isfinite(value) for value in numbers(measured(Tasks(synthetic=synthetic), run))
    )
    accuracy = measured(DomainAccuracy(synthetic=synthetic, real=real), run)["accuracy"]
    assert accuracy == {"trained": 0.5, "trained_reestimated": 0.5, "untrained": 0.5}  # both are the same picture
    with pytest.raises(DataError, match="a single photo has no neighbours"):
        measured(Neighbours(real=real), run)
    strict((run / "summary.json").read_text())


@pytest.mark.parametrize(
    ("classes", "known", "words"),
    [
        ((0, 0), {1: 1.0, 5: None}, ["precision at 5 needs 6 photos, and there are 2", "same class"]),
        ((0, 1), {1: 0.0, 5: None}, ["2 of 2 photos have a class of their own"]),
        ((0, 0, 0, 0), {1: 1.0, 5: None}, ["needs 6 photos, and there are 4"]),
        ((0, 1, 2, 3, 4, 5), {1: 0.0, 5: 0.0}, ["6 of 6 photos have a class of their own"]),
        ((0, 0, 1, 1, 2, 2), {5: 0.2}, []),  # five others, one of which is right
        ((3, 3, 3, 3, 3, 3, 3), {1: 1.0, 5: 1.0}, ["same class"]),
    ],
)
def test_few_photos_and_few_classes(
    run: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    classes: tuple[int, ...],
    known: dict[int, float | None],
    words: list[str],
) -> None:
    values = measured(Neighbours(real=photos(tmp_path / "photos", *classes)), run)
    for k, expected in known.items():
        row = values[f"precision_at_{k}"]
        assert isinstance(row, dict)
        assert set(row) == {"trained", "trained_reestimated", "untrained"}
        assert all(value == pytest.approx(expected) if expected else value == expected for value in row.values())
    for expected_words in words:
        assert expected_words in caplog.text
    assert words or not caplog.text
    with Image.open(run / "samples" / "neighbours.png") as picture:
        columns, rows = (picture.width - 4) // 100, (picture.height - 24) // 100
    shown = min(len(classes) - 1, 4)
    assert (columns, rows) == (1 + 3 * shown, min(len(classes), 8))
    strict((run / "summary.json").read_text())


def test_images_smaller_than_the_input_are_refused(
    run: Path, tmp_path: Path, coded_synthetic: Path, coded_real: Path
) -> None:
    synthetic, real = tmp_path / "rooms", tmp_path / "photos"
    pack(Patterns(2, "synthetic"), synthetic, size=66)
    pack(Patterns(2, "real", numbers=(0, 0)), real, size=66)
    for evaluate in (
        lambda: measured(Tasks(synthetic=synthetic), run),
        lambda: measured(Neighbours(real=real), run),
        lambda: measured(DomainAccuracy(synthetic=coded_synthetic, real=real), run),
        lambda: measured(DomainAccuracy(synthetic=synthetic, real=coded_real), run),
    ):
        with pytest.raises(DataError, match=r"smaller than the network's input(.|\n)*66 x 66"):
            evaluate()


def test_a_diverged_network_is_told(run: Path, coded_synthetic: Path, coded_real: Path) -> None:
    diverged(run)
    with pytest.raises(DataError, match="features of the network are not finite"):
        measured(Neighbours(real=coded_real), run)
    with pytest.raises(DataError, match="no task of the run can be measured"):
        measured(Tasks(synthetic=coded_synthetic), run)


def evaluations(run: Path, synthetic: Path, real: Path) -> list[Any]:
    return [
        lambda: measured(Tasks(synthetic=synthetic), run),
        lambda: measured(DomainAccuracy(synthetic=synthetic, real=real), run),
        lambda: measured(Neighbours(real=real), run),
    ]


def test_other_training_data_are_refused(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> None:
    data, mine = tmp_path / "data", tmp_path / "photos"
    shutil.copytree(coded_synthetic, data)
    shutil.copytree(coded_real, mine)
    run = make_run(tmp_path / "run", data, mine)
    for evaluate in evaluations(run, coded_synthetic, coded_real):
        evaluate()
    before = (run / "summary.json").read_bytes()
    shutil.rmtree(data)
    renders(data, 4)
    for evaluate in evaluations(run, coded_synthetic, coded_real):
        with pytest.raises(DataError, match=rf"not those that the run was trained on(.|\n)*{data}"):
            evaluate()
    shutil.rmtree(data)
    shutil.copytree(coded_synthetic, data)
    shutil.rmtree(mine)
    photos(mine, 0, 1, 2)
    with pytest.raises(DataError, match=rf"real data are not those(.|\n)*{mine}"):
        measured(DomainAccuracy(synthetic=coded_synthetic, real=coded_real), run)
    measured(Tasks(synthetic=coded_synthetic), run)  # photos take no part in it
    assert (run / "summary.json").read_bytes() != b""
    assert strict(before.decode())["tasks"] == strict((run / "summary.json").read_text())["tasks"]


def test_missing_training_data_are_said_to_be_the_run_s(
    tmp_path: Path, coded_synthetic: Path, coded_real: Path
) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "rooms")
    run = make_run(tmp_path / "run", tmp_path / "rooms", coded_real)
    (tmp_path / "rooms").rename(tmp_path / "moved")
    for evaluate in evaluations(run, coded_synthetic, coded_real):
        with pytest.raises(DataError) as caught:
            evaluate()
        assert "the training data of the run" in str(caught.value)
        assert "no such folder" in str(caught.value)
        assert f"where: {tmp_path / 'rooms'}\n" in str(caught.value)


def test_a_dataset_of_the_wrong_domain_is_refused(run: Path, coded_synthetic: Path, coded_real: Path) -> None:
    for evaluate in (
        lambda: measured(Tasks(synthetic=coded_real), run),
        lambda: measured(DomainAccuracy(synthetic=coded_synthetic, real=coded_synthetic), run),
        lambda: measured(DomainAccuracy(synthetic=coded_real, real=coded_real), run),
        lambda: measured(Neighbours(real=coded_synthetic), run),
    ):
        with pytest.raises(DataError, match="wrong domain"):
            evaluate()


def test_photos_that_the_run_did_not_read_are_taken_with_a_word(
    tmp_path: Path, coded_synthetic: Path, coded_real: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tmp_path / "run", coded_synthetic, coded_real, "model.adapted_layer=none")
    measured(DomainAccuracy(synthetic=coded_synthetic, real=coded_real), run)
    assert f"read no real data; the evaluation takes {coded_real} as it is" in caplog.text


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_results_are_given_even_if_they_cannot_be_kept(
    run: Path,
    coded_synthetic: Path,
    coded_real: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    true = files._StoredEarly

    def fails(path: Path) -> Any:
        if run in path.parents:
            raise OSError(number, os.strerror(number), str(path))
        return true(path)

    before = sorted(run.rglob("*"))
    monkeypatch.setattr(files, "_StoredEarly", fails)
    for evaluate in evaluations(run, coded_synthetic, coded_real):
        caplog.clear()
        assert None not in numbers(evaluate())
        warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        warnings = [words for words in warnings if "could not be kept" in words]
        assert len(warnings) == 1
        assert str(run) in warnings[0]
        assert os.strerror(number) in warnings[0]
    assert sorted(run.rglob("*")) == before


def test_a_run_of_another_machine_s_optimizers_is_measured_here(
    tmp_path: Path, coded_synthetic: Path, coded_real: Path
) -> None:
    """apex needs a GPU, and what is measured needs no optimizer; nor is it worth to compile it."""
    run = make_run(tmp_path / "run", coded_synthetic, coded_real)
    expected = measured(Neighbours(real=coded_real), run)
    file = run / "config.yaml"
    words = file.read_text().replace("backend: fused", "backend: apex").replace("compile: false", "compile: true")
    assert "apex" in words
    assert "compile: true" in words
    file.write_text(words)
    assert measured(Neighbours(real=coded_real), run) == expected
