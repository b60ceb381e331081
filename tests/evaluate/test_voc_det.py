"""Detection of PASCAL VOC from a devkit to its numbers: coloured rectangles on gray, which can be learnt in seconds."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import command
from evaluate.devkits import Photo, Thing, write_devkit
from made_run import make_run, strict
from PIL import Image, ImageDraw
from scipy.io import savemat
from torch import Tensor

from fastssl.errors import DataError, UsageError
from fastssl.evaluate import VocDetection, evaluate, fine_tuning
from fastssl.evaluate.detector import Lessons
from fastssl.evaluate.fast_rcnn import FastRCNN
from fastssl.evaluate.fine_tuning import Training
from fastssl.evaluate.voc_det import PROGRESS

SPLITS = (("train", "trainval"), ("test", "test"))
COLOURS = {"bottle": "blue", "car": "red", "dog": "lime"}
SIDES = (120, 90)


def photo(generator: np.random.Generator) -> Photo:
    """Two rectangles side by side, the left or the right one sometimes difficult; their class is their colour."""
    image = Image.new("RGB", SIDES, "gray")
    things = []
    for left in (2, 62):
        x1, y1 = left + int(generator.integers(0, 15)), int(generator.integers(2, 35))
        x2, y2 = x1 + int(generator.integers(30, 42)), y1 + int(generator.integers(30, 52))
        name = str(generator.choice(list(COLOURS)))
        ImageDraw.Draw(image).rectangle((x1, y1, x2, y2), fill=COLOURS[name])
        things.append(Thing(name, (x1 + 1, y1 + 1, x2 + 1, y2 + 1), difficult=bool(generator.random() < 0.1)))
    return Photo(image, tuple(things))


def proposals(one: Photo, generator: np.random.Generator) -> Any:
    """Boxes near the objects and anywhere, as selective search has them: y1, x1, y2, x2 from 1."""
    near = [np.array(thing.box) + generator.integers(-9, 10, (25, 4)) for thing in one.things]
    corners = np.sort(generator.integers(1, SIDES, (60, 2, 2)), axis=1).reshape(60, 4)
    boxes = np.clip(np.concatenate([*near, corners]), 1, [*SIDES, *SIDES])
    return boxes[:, [1, 0, 3, 2]].astype(np.uint16)


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with VOCdevkit and the proposals of both splits."""
    folder = tmp_path_factory.mktemp("devkit")
    generator = np.random.default_rng(0)
    splits = {
        split: {f"{first + number:06d}": photo(generator) for number in range(12)}
        for split, first in (("trainval", 5), ("test", 105))
    }
    write_devkit(folder, splits, COLOURS)
    for split, photos in splits.items():
        boxes = np.empty((1, len(photos)), object)
        for number, one in enumerate(photos.values()):
            boxes[0, number] = proposals(one, generator)
        savemat(folder / f"voc_2007_{split}.mat", {"boxes": boxes})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, coded_synthetic: Path, coded_real: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return make_run(folder, coded_synthetic, coded_real, "model.init_gain=2", "model.fc_channels=64")


def given(devkit: Path, **settings: Any) -> VocDetection:
    return VocDetection(
        **{
            "devkit": devkit,
            "train_proposals": devkit / "voc_2007_trainval.mat",
            "test_proposals": devkit / "voc_2007_test.mat",
            "classes": ",".join(COLOURS),
            "scales": "90,110",
            "test_scale": 90,
            "iterations": 150,
            "lr": 0.003,
            **settings,
        }
    )


def test_defaults_are_the_protocols() -> None:
    """docs/reproduction.md, section 7: those of Fast R-CNN's code, trained for as long as Kraehenbuehl et al. do."""
    assert {field.name: field.default for field in fields(VocDetection) if field.default is not MISSING} == {
        "train_proposals": None,
        "test_proposals": None,
        "detections": None,
        "out": None,
        "year": "VOC2007",
        "classes": "all",
        "iterations": 150_000,
        "lr": 0.001,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "drop_every": 50_000,
        "drop_factor": 0.1,
        "dropout": 0.5,
        "frozen": "none",
        "batch_size": 2,
        "regions": 64,
        "foreground": 0.25,
        "foreground_overlap": 0.5,
        "background_overlap": 0.1,
        "flip": True,
        "difficult": True,
        "scales": "480,576,688,864,1200",
        "longest": 2000,
        "test_scale": 600,
        "test_longest": 1000,
        "suppression": 0.3,
        "per_image": 100,
        "mean_per_image": 40,
        "seed": 0,
        "progress": None,
    }


def test_rectangles_are_found(
    devkit: Path,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two in three at least, where a network that learns for one step finds nothing; files say the same."""
    measured = evaluate(given(devkit, out=tmp_path), run)
    mean, *each = measured.rows
    assert mean.values["trained"] > 0.6
    assert [row.metric.name for row in each] == list(COLOURS)
    assert mean.values["trained"] == pytest.approx(np.mean([row.values["trained"] for row in each]))
    conditions = measured.conditions
    assert conditions["deviations"] == {
        "classes": "bottle,car,dog instead of all",
        "iterations": "150 instead of 150000",
        "lr": "0.003 instead of 0.001",
        "scales": "90,110 instead of 480,576,688,864,1200",
        "test_scale": "90 instead of 600",
    }
    assert "not those of the protocol: classes bottle" in caplog.text
    assert not (run / PROGRESS).exists()
    assert strict((run / "summary.json").read_text())["voc-det"]["mean_ap"] == mean.values
    options = ("--devkit", devkit, "--classes", ",".join(COLOURS), "--json")
    assert command(monkeypatch, "eval", "voc-det", *options, "--detections", tmp_path / "trained") == 0
    scored = strict(capsys.readouterr().out)
    assert scored["mean_ap"] == {"predictions": mean.values["trained"]}
    chance = evaluate(given(devkit, iterations=1), run).rows[0].values["trained"]
    assert chance < 0.2


def test_a_killed_training_finds_the_same(
    devkit: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    loss = Lessons.loss

    def dies(lessons: Lessons, network: FastRCNN, step: int) -> Tensor:
        steps.append(step)
        if steps.count(3) == 2:
            steps.append(-1)
            raise KeyboardInterrupt
        return loss(lessons, network, step)

    evaluate(given(devkit, iterations=5, out=tmp_path / "whole"), run)
    other = given(devkit, iterations=5, out=tmp_path / "other", difficult=False)
    evaluate(other, run)
    monkeypatch.setattr(fine_tuning, "_KEEP_EVERY_S", 0)
    monkeypatch.setattr(Lessons, "loss", dies)
    again = given(devkit, iterations=5, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        evaluate(again, run)
    assert (run / PROGRESS).exists()
    evaluate(again, run)
    assert steps == [0, 1, 2, 3, 4, 0, 1, 2, 3, -1, 3, 4], "those of the first network are not made again"
    for name in COLOURS:
        file = f"comp4_det_test_{name}.txt"
        for column in ("trained", "untrained"):
            assert (tmp_path / "again" / column / file).read_bytes() == (
                tmp_path / "whole" / column / file
            ).read_bytes()
        assert (tmp_path / "other" / "trained" / file).read_bytes() != (
            tmp_path / "whole" / "trained" / file
        ).read_bytes(), "difficult objects are learnt from unless they are dropped"


def test_detections_in_2012_are_scored_by_the_area(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: of two cats one is found first, then comes a wrong one, then the other. 1/2 + 1/2 x 2/3, and at 11
    recalls, six of them up to a half, (6 + 5 x 2/3) / 11."""
    image = Image.new("RGB", (20, 20))
    things = (Thing("cat", (1, 1, 10, 10)), Thing("cat", (11, 11, 20, 20)), Thing("cat", (1, 11, 9, 20), True))
    shown = []
    for year, split in (("VOC2012", "val"), ("VOC2007", "test")):
        root = write_devkit(tmp_path / year, {split: {"2008_000001": Photo(image, things)}}, ["cat"], year)
        lines = ["0.9 1 1 10 10", "0.8 1 1 10 10", "0.85 1 11 9 20", "0.1 11 11 20 20"]
        (tmp_path / f"comp4_det_{split}_cat.txt").write_text("".join(f"2008_000001 {line}\n" for line in lines))
        options = ("--devkit", root, "--year", year, "--classes", "cat", "--detections", tmp_path, "--json")
        assert command(monkeypatch, "eval", "voc-det", *options) == 0
        shown.append(strict(capsys.readouterr().out)["classes"]["cat"]["predictions"])
    assert shown == pytest.approx([5 / 6, (6 + 5 * 2 / 3) / 11])


def without_photo(root: Path) -> None:
    (root / "VOCdevkit/VOC2007/JPEGImages/000007.jpg").unlink()


def no_photo(root: Path) -> None:
    (root / "VOCdevkit/VOC2007/JPEGImages/000007.jpg").write_bytes(b"gray")


def other_split(root: Path) -> None:
    (root / "voc_2007_trainval.mat").write_bytes((root / "voc_2007_test.mat").read_bytes())
    (root / "VOCdevkit/VOC2007/ImageSets/Main/trainval.txt").write_text("000005\n")


def without_proposals(root: Path) -> None:
    (root / "voc_2007_test.mat").unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_photo, "000007.jpg"),
        (no_photo, "a photo cannot be read"),
        (other_split, "are those of other photos"),
        (without_proposals, "the file of proposed boxes is missing"),
    ],
)
def test_data_that_cannot_be_used_are_named(
    devkit: Path,
    run: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(shutil.copytree(devkit, tmp_path / "voc"))
    damage(root)
    boxes = [f"--{split}-proposals={root}/voc_2007_{name}.mat" for split, name in SPLITS]
    arguments = ("eval", "voc-det", run, "--devkit", root, *boxes, "--classes", "car")
    assert command(monkeypatch, *arguments) == 3
    assert words in capsys.readouterr().err


def test_objects_beyond_their_photos_are_told(
    devkit: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(devkit, tmp_path / "voc"))
    annotation = sorted((root / "VOCdevkit/VOC2007/Annotations").iterdir())[0]
    text, count = re.subn("<xmin>[^<]*", "<xmin>0", annotation.read_text())
    annotation.write_text(text)
    monkeypatch.setattr(Training, "run", lambda *_: pytest.fail("now it would learn"))
    for folder, words in ((devkit, ""), (root, f"{count} objects reach beyond their photos, such as one of ")):
        caplog.clear()
        with pytest.raises(pytest.fail.Exception):
            evaluate(given(folder, classes="car"), run)
        assert ("reach beyond" in caplog.text) == bool(words)
        assert words in caplog.text


def test_what_cannot_be_measured_is_told_before_anything_learns(
    devkit: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"needs proposed boxes(.|\n)*--train-proposals"):
        evaluate(VocDetection(devkit=devkit), run)
    with pytest.raises(UsageError, match=r"needs proposed boxes(.|\n)*--test-proposals"):
        evaluate(VocDetection(devkit=devkit, train_proposals=devkit), run)
    with pytest.raises(DataError, match=r"that counts(.|\n)*seen: cat, test(.|\n)*--classes"):
        evaluate(given(devkit, classes="car,cat"), run)
    for name, value in (("lr", 0.0), ("iterations", 0), ("dropout", 1.0), ("scales", "600,x"), ("foreground", 1.5)):
        with pytest.raises(UsageError, match=f"--{name}"):
            given(devkit, **{name: value})
    with pytest.raises(UsageError, match=r"shows an object(.|\n)*seen: 0\.25 of 1"):
        given(devkit, regions=1)
    with pytest.raises(UsageError, match=r"--background-overlap(.|\n)*less than(.|\n)*0\.5"):
        given(devkit, background_overlap=0.5)
    (tmp_path / "file").touch()
    monkeypatch.setattr(Training, "run", lambda *_: pytest.fail("something was learnt"))
    with pytest.raises(FileExistsError):
        evaluate(given(devkit, classes="car", out=tmp_path / "file"), run)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UsageError, match="pip install torchvision"):
        evaluate(given(devkit), run)
