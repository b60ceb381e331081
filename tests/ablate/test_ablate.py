"""Grids of very small runs: killed, continued, changed, failed; and their tables against hand arithmetic."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pytest
import yaml
from commands import command
from evaluate.devkits import Photo, Thing, write_devkit
from PIL import Image
from small_runs import SMALL, assert_same, state

from fastssl.ablate import read_recipe, table_of
from fastssl.ablate.cells import check_cell
from fastssl.errors import ConfigError, UsageError
from fastssl.evaluate import NearestClasses, evaluate
from fastssl.evaluate.progress import Progress
from fastssl.evaluate.published import published_tables
from fastssl.evaluate.voc_cls import PROGRESS as VOC_PROGRESS
from fastssl.telemetry import read_metrics

RECIPES = sorted((Path(__file__).parents[2] / "tools" / "recipes").glob("*.yaml"))


def recipe(synthetic: Path, real: Path, **changes: Any) -> dict[str, Any]:
    """A row that is trained and one that is drawn, with two seeds."""
    settings: dict[str, dict[str, Any]] = {}
    for text in [*SMALL, "train.steps=2", "train.checkpoint_every=1", "train.threads=1", "train.trackers=[]"]:
        name, _, value = text.partition("=")
        section, setting = name.split(".")
        settings.setdefault(section, {})[setting] = yaml.safe_load(value)
    settings["data"] |= {"synthetic": str(synthetic), "real": str(real)}
    return {
        "title": "Two by two",
        "preset": "tiny",
        "settings": settings,
        "seeds": [0, 1],
        "rows": {
            "contours": {
                "settings": {"model": {"tasks": ["edge"], "adapted_layer": "none"}},
                "published": "contours",
            },
            "drawn": {"subject": "init:gaussian"},
        },
        "evaluations": {
            "knn": {"train": str(real), "test": str(real), "layer": "conv3"},
            "tasks": {"synthetic": str(synthetic)},
        },
        "columns": {
            "five": "knn.k_20.top_5",
            "five before": "knn.k_20.top_5.untrained",
            "contours": "tasks.edge.f",
        },
        "published": "ablation",
    } | changes


CHEAP: dict[str, Any] = {
    "method": "rotation",
    "settings": {},
    "rows": {"turned": {}, "drawn": {"subject": "init:gaussian"}},
}
"""Whose settings take little time to check."""


def written(folder: Path, content: Mapping[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content))  # which is YAML, too
    return path


def table(out: Path) -> Any:
    return json.loads((out / "table.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def grid(coded_synthetic: Path, coded_real: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and the folder of its finished grid."""
    folder = tmp_path_factory.mktemp("grid")
    path = written(folder, recipe(coded_synthetic, coded_real))
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, "ablate", path, "--out", folder / "out") == 0
    return path, folder / "out"


@pytest.fixture(autouse=True)
def settings_of_torch(torch_as_it_was: None) -> None:
    """What trainings set is set back."""


def test_the_table_has_means_and_half_ranges(grid: tuple[Path, Path]) -> None:
    """Against the runs' own summaries; columns of a row without such a number are empty."""
    _, out = grid
    rows = table(out)["rows"]
    knn = {row: [summary(out, row, seed)["knn"]["k_20"]["top_5"] for seed in (0, 1)] for row in ("contours", "drawn")}
    for row, column in (("contours", "trained"), ("drawn", "subject")):
        a, b = (found[column] for found in knn[row])
        assert rows[row]["values"]["five"] == {
            "mean": pytest.approx((a + b) / 2),
            "half_range": pytest.approx(abs(a - b) / 2),
            "count": 2,
            "seeds": {"0": a, "1": b},
        }
    before = [found["untrained"] for found in knn["contours"]]
    assert list(rows["contours"]["values"]["five before"]["seeds"].values()) == before
    assert rows["drawn"]["values"]["five before"] is None
    assert rows["drawn"]["values"]["contours"] is None
    assert rows["contours"]["values"]["contours"]["count"] == 2
    assert rows["contours"]["published"] == {"voc07_cls": 63.9, "detection": 44.8}
    assert rows["drawn"]["published"] == {}


def test_numbers_by_hand(grid: tuple[Path, Path], tmp_path: Path) -> None:
    """0.2 and 0.5, whose mean is 0.35 and half range 0.15; one seed alone has no spread."""
    path, finished = grid
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for seed, value in ((0, 0.2), (1, 0.5)):
        file = out / "contours" / f"seed_{seed}" / "run" / "summary.json"
        content = json.loads(file.read_text())
        content["knn"]["k_20"]["top_5"] = {"trained": value, "untrained": 0.25}
        file.write_text(json.dumps(content))
    shutil.rmtree(out / "drawn" / "seed_1")
    found = table_of(read_recipe(path), out)
    shown = {name: line.shown("five", found.recipe.columns["five"].metric) for name, line in found.lines.items()}
    assert shown["contours"] == "35.0 ± 15.0"
    assert re.fullmatch(r"\d+\.\d", shown["drawn"])
    five = found.lines["contours"].values["five"]
    assert five is not None
    assert (five.mean, five.half_range) == pytest.approx((0.35, 0.15))


def test_the_page_keeps_published_figures_apart(grid: tuple[Path, Path]) -> None:
    _, out = grid
    page = (out / "table.md").read_text(encoding="utf-8")
    head, _, contours, drawn = (line.split(" | ") for line in page.splitlines() if line.startswith("|"))
    titles = ["seeds", "five (%)", "five before (%)", "contours"]
    assert head[1:5] == titles
    assert [cell.split(":")[0] for cell in head[5:]] == ["poster", "poster"]
    assert contours[0] == "| contours"
    assert [contours[5], contours[6].removesuffix(" |")] == ["63.9", "44.8"]
    five = table(out)["rows"]["contours"]["values"]["five"]
    assert contours[2] == f"{100 * five['mean']:.1f} ± {100 * five['half_range']:.1f}"
    assert drawn[1:5] == ["2 of 2", drawn[2], "-", "-"]
    assert "in all likelihood VOC 2012" in page
    assert (out / "contours" / "seed_0" / "run" / "report.html").is_file()
    assert "(contours/seed_0/run/report.html)" in page


def test_a_drawn_row_is_what_stands_beside_a_run(grid: tuple[Path, Path], coded_real: Path, tmp_path: Path) -> None:
    """`--beside NAME=init:gaussian` draws from seed 0; the seed 1 of a row is another network."""
    _, out = grid
    shutil.copytree(out / "contours" / "seed_0" / "run", tmp_path / "run")
    asked = NearestClasses(train=coded_real, test=coded_real, layer="conv3")
    beside = evaluate(asked, tmp_path / "run", {"beside": Path("init:gaussian")}).section()
    for metric in (("k_20", "top_5"), ("k_1", "top_1")):
        own = summary(out, "drawn", 0)["knn"]
        assert own[metric[0]][metric[1]]["subject"] == beside[metric[0]][metric[1]]["beside"]


def test_what_is_finished_is_kept_and_what_is_not_goes_on(
    grid: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell is as if killed between its summary and its last checkpoint, one before its last evaluation."""
    path, undisturbed = grid
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    (out / "contours" / "seed_1" / "run" / "checkpoints" / "step_00000002.pt").unlink()
    record = out / "drawn" / "seed_0" / "cell.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"evaluations": {}}))
    for seed in ("contours/seed_1", "drawn/seed_0"):
        folder = out / seed / "run" / "summary.json"
        folder.write_text(json.dumps({k: v for k, v in json.loads(folder.read_text()).items() if k != "knn"}))
    kept = {file: file.stat().st_mtime_ns for file in (out / "contours" / "seed_0").rglob("*")}
    (out / "table.json").unlink()
    assert command(monkeypatch, "ablate", path, "--out", out) == 0
    assert table(out) == table(undisturbed)
    runs = (folder / "contours" / "seed_1" / "run" for folder in (out, undisturbed))
    assert_same(*(state(run, 2) for run in runs))
    assert {file: file.stat().st_mtime_ns for file in (out / "contours" / "seed_0").rglob("*")} == kept


def test_a_report_that_a_kill_has_cost_is_written(
    grid: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, undisturbed = grid
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    run = out / "contours" / "seed_1" / "run"
    summary_before = (run / "summary.json").read_bytes()
    (run / "report.html").unlink()
    assert command(monkeypatch, "ablate", path, "--out", out) == 0
    assert "<html" in (run / "report.html").read_text()
    assert (run / "summary.json").read_bytes() == summary_before
    assert table(out) == table(undisturbed)


def test_a_cell_of_other_settings_is_refused_by_name(
    grid: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = grid
    content = json.loads(path.read_text())
    content["settings"]["train"].update(steps=3)
    before = (out / "table.json").stat().st_mtime_ns
    assert command(monkeypatch, "ablate", written(tmp_path, content), "--out", out) == 2
    assert re.search(r"contours, seed 0 .* train\.steps\n.*\n  seen: 3\n  expected: 2\n", capsys.readouterr().err)
    assert (out / "table.json").stat().st_mtime_ns == before
    cell = next(cell for cell in read_recipe(path).cells if cell.row == "drawn")
    check_cell(cell, out)
    with pytest.raises(UsageError, match="drawn, seed 0 was made with another value of subject"):
        check_cell(replace(cell, subject=""), out)
    knn = NearestClasses(**{**vars(cell.evaluations["knn"]), "layer": "conv4"})
    with pytest.raises(UsageError, match=r"drawn, seed 0 was made with another value of eval knn\.layer"):
        check_cell(replace(cell, evaluations={"knn": knn}), out)


def test_failed_cells_are_missing_and_told_once(
    grid: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a row whose data are not there, both cells fail alike; the others are made, and the exit code is its own."""
    path, finished = grid
    content = json.loads(path.read_text())
    content["rows"] = {"broken": {"settings": {"data": {"synthetic": "/nowhere"}}}, "drawn": content["rows"]["drawn"]}
    out = tmp_path / "out"
    shutil.copytree(finished / "drawn" / "seed_0", out / "drawn" / "seed_0")
    assert command(monkeypatch, "ablate", written(tmp_path, content), "--out", out) == 3
    printed = capsys.readouterr()
    assert printed.err.count("/nowhere") == 1
    lines = {line.split()[0]: line for line in printed.out.splitlines() if line.startswith(("broken", "drawn"))}
    assert lines["broken"].split()[1:7] == ["0", "of", "2", "missing", "missing", "missing"]
    found = table(out)
    assert not found["complete"]
    assert found["rows"]["broken"]["values"] == {"five": None, "five before": None, "contours": None}
    assert "/nowhere" in found["rows"]["broken"]["cells"]["broken, seed 1"]
    assert found["rows"]["drawn"] == table(finished)["rows"]["drawn"]


def test_a_cell_that_is_not_finished_gives_no_number(
    grid: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever of it is there; a dry run tells how it stands, and writes nothing."""
    path, finished = grid
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    record = out / "drawn" / "seed_1" / "cell.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"evaluations": {}}))
    shutil.rmtree(out / "contours" / "seed_0")
    before = sorted(out.rglob("*"))
    found = read_recipe(path)
    monkeypatch.setattr("fastssl.ablate.read_recipe", lambda _: found)  # it takes most of the time
    assert command(monkeypatch, "ablate", path, "--out", out, "--dry-run", "--json") == 0
    cells = json.loads(capsys.readouterr().out)
    assert {(cell["row"], cell["seed"]): cell["state"] for cell in cells} == {
        ("contours", 0): "missing",
        ("drawn", 0): "finished",
        ("contours", 1): "finished",
        ("drawn", 1): "begun",
    }
    assert sorted(out.rglob("*")) == before
    lines = table_of(found, out).lines
    assert [line.num_finished for line in lines.values()] == [1, 1]
    assert lines["drawn"].states == {"drawn, seed 0": "finished", "drawn, seed 1": "missing"}
    five = lines["drawn"].values["five"]
    assert five is not None
    assert list(five.seeds) == ["0"]


@pytest.mark.parametrize(
    ("place", "value", "nearest"),
    [
        (("rows", "drawn", "subjct"), "x", "subject"),
        (("rows", "drawn", "subject"), "init:gausian", "init:gaussian"),
        (("rows", "drawn", "method"), "jigsow", "jigsaw"),
        (("rows", "turned", "published"), "contour", "contours"),
        (("settings", "train", "step"), 3, "steps"),
        (("evaluations", "kn"), {}, "knn"),
        (("evaluations", "knn", "layr"), "conv3", "layer"),
        (("columns", "x"), "knn.k_20.top_6", "knn.k_20.top_5"),
        (("columns", "x"), "knn.k_20.top_5.trainedd", "trained"),
        (("columns", "x"), "tasks.edge.g", "tasks.edge.f"),
        (("published",), "ablations", "ablation"),
        (("seed",), [1], "seeds"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_unknown_names_are_refused_with_the_nearest(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, place: tuple[str, ...], value: Any, nearest: str
) -> None:
    content = recipe(coded_synthetic, coded_real) | CHEAP
    content["rows"] = {name: dict(row) for name, row in CHEAP["rows"].items()}
    content["settings"] = {"train": {"steps": 2}}
    *sections, name = place
    inner: Any = content
    for section in sections:
        inner = inner[section]
    inner[name] = value
    with pytest.raises(ConfigError, match=re.escape(nearest)):
        read_recipe(written(tmp_path, content))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [1, 1]}, "a seed is given twice"),
        ({"settings": {"train": {"seed": 3}}}, "the seed is not a setting here"),
        ({"rows": {"a/b": {}}}, "a row cannot have this name"),
        ({"rows": {"a": {"subject": "run"}}}, "there is no such subject"),
        ({"published": "", "rows": {"a": {"published": "conv5"}}}, "the recipe names no published table"),
        ({"evaluations": {"linear": {"train": "a", "test": "b", "epochs": "many"}}}, "a value that it cannot take"),
        ({"evaluations": {"linear": {"train": "a", "tset": "b"}}}, "there is no such setting"),
    ],
)
def test_what_cannot_be_is_refused(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        read_recipe(written(tmp_path, recipe(coded_synthetic, coded_real, **CHEAP | changes)))


def test_evaluations_of_files_are_those_of_a_recipe(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """voc-cls reads a devkit by its path, which is kept, compared and told; what it learns is kept against a kill."""
    photo = Photo(Image.new("RGB", (80, 80)), (Thing("car", (1, 1, 9, 9)),))
    other = Photo(Image.new("RGB", (80, 80), (200, 90, 30)))
    photos = {split: {f"{split}1": photo, f"{split}2": other} for split in ("trainval", "test")}
    devkit = write_devkit(tmp_path, photos, ["car"])
    options = {"devkit": "VOCdevkit", "classes": "car", "iterations": 1, "batch_size": 1, "crops": 1, "size": 227}
    content = CHEAP | {"rows": {"drawn": {"subject": "init:gaussian"}}, "seeds": [3]}
    content |= {"evaluations": {"voc-cls": options}, "columns": {"ap": "voc-cls.mean_ap"}, "published": ""}
    path, out = written(tmp_path, recipe(coded_synthetic, coded_real) | content), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    kept, keep = set[Path | None](), Progress.keep
    monkeypatch.setattr(Progress, "keep", lambda self, *given: kept.add(self.path) or keep(self, *given))
    assert command(monkeypatch, "ablate", path, "--out", out) == 0
    assert kept == {out / "drawn" / "seed_3" / "run" / VOC_PROGRESS}
    found = table(out)
    assert found["columns"]["ap"]["data"] == {"devkit": str(devkit)}
    assert found["rows"]["drawn"]["values"]["ap"]["mean"] in (0.5, 1.0)  # of two photos one shows a car
    shutil.copytree(devkit, tmp_path / "copy" / "VOCdevkit")
    moved = content | {"evaluations": {"voc-cls": options | {"devkit": str(devkit)}}}
    (cell,) = read_recipe(written(tmp_path, recipe(coded_synthetic, coded_real) | moved)).cells
    check_cell(cell, out)
    moved |= {"evaluations": {"voc-cls": options | {"devkit": str(tmp_path / "copy")}}}
    (cell,) = read_recipe(written(tmp_path, recipe(coded_synthetic, coded_real) | moved)).cells
    with pytest.raises(UsageError, match=r"another value of eval voc-cls\.devkit"):
        check_cell(cell, out)


@pytest.mark.parametrize(
    ("options", "what", "where"),
    [
        ({"scores": "some.json"}, "there is no such setting", "scores"),
        ({"iterations": 0}, "out of range", "iterations"),
    ],
)
def test_options_that_do_not_fit_a_recipe_are_refused(
    tmp_path: Path, options: Mapping[str, Any], what: str, where: str
) -> None:
    content = recipe(Path("rooms"), Path("photos")) | CHEAP
    content |= {"evaluations": {"voc-cls": {"devkit": "VOCdevkit", **options}}, "columns": {"ap": "voc-cls.mean_ap"}}
    with pytest.raises(ConfigError, match=what) as refused:
        read_recipe(written(tmp_path, content))
    assert str(refused.value.where).endswith(f"evaluations.voc-cls: {where}")


def test_published_figures_are_those_of_the_sources() -> None:
    """Some by hand, and the whole ablation as docs/reproduction.md has it, section 2.5."""
    tables = published_tables()
    assert tables["ablation"].rows["conv5_more_data"] == {"voc07_cls": 68.0, "detection": 50.0}
    assert tables["ablation"].rows["fc6"] == {"voc07_cls": 66.9, "detection": 48.2}
    assert "headed VOC 2007 there, and is in all likelihood VOC 2012" in tables["ablation"].note
    assert tables["systems"].rows["cross_domain"] == {
        "poster_voc07_cls": 68.0,
        "poster_voc07_det": 52.6,
        "poster_voc12_det": 50.0,
    }
    assert tables["normals"].rows["cross_domain"]["gt2_median"] == 16.2
    assert tables["normals"].rows["zhang_cvpr17"]["gt1_mean"] == 22.1
    page = (RECIPES[0].parents[2] / "docs" / "reproduction.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\|.*\| [\d.]+ M \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert [[float(word) for word in line] for line in lines] == [
        list(row.values()) for row in tables["ablation"].rows.values()
    ]
    for table in tables.values():
        assert all(row.keys() <= table.columns.keys() for row in table.rows.values())


def test_the_recipe_of_the_ablation_has_the_papers_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = (path for path in RECIPES if path.stem == "ablation_sample")
    monkeypatch.chdir(path.parents[2])
    found = read_recipe(path)
    every = ("depth", "normal", "edge")
    expected = [(("edge",), "none"), (("depth",), "none"), (("normal",), "none")]
    expected += [(every, layer) for layer in ("none", "conv1", "conv2", "conv5", "fc6", "conv5")]
    models = [row.cells[0].config.model for row in found.rows.values()]
    assert [(model.tasks, model.adapted_layer) for model in models] == expected
    assert [list(row.published.values()) for row in found.rows.values()] == [
        list(row.values()) for row in published_tables()["ablation"].rows.values()
    ]
    *few, more = (Path(next(iter(row.cells[0].config.data.synthetic))) for row in found.rows.values())
    samples = [json.loads((data / "manifest.json").read_text())["samples"] for data in (*set(few), more)]
    assert samples == [100, 300]
    held_out = {path for one in found.evaluations.values() for path in vars(one).values() if "/" in str(path)}
    trained_on = {path for row in found.rows.values() for path in row.cells[0].config.data.real}
    assert not held_out & trained_on


def test_the_recipe_of_the_methods_has_the_papers_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = (path for path in RECIPES if path.stem == "methods_sample")
    monkeypatch.chdir(path.parents[2])
    found = read_recipe(path)
    assert len(found.rows) == 11
    methods = [row.cells[0].subject or row.cells[0].config.method for row in found.rows.values()]
    assert methods[0] == "init:gaussian"
    assert methods[1] == f"init:kraehenbuehl={path.parents[2] / 'shards' / 'sample' / 'real_train'}"
    assert set(methods[2:]) == {
        "context", "bigan", "context_encoder", "colorization", "jigsaw", "split_brain", "counting", "cross_domain",
        "supervised",
    }  # fmt: skip
    assert [cell.seed for row in found.rows.values() for cell in row.cells] == [0, 1, 2] * 11


def test_the_recipe_of_the_readme_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = RECIPES[0].parents[2]
    (block,) = re.findall(r"```yaml\n(.*?)```", (root / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(block)
    monkeypatch.chdir(root)
    found = read_recipe(tmp_path / "recipe.yaml")
    assert len(found.cells) == 12
    assert found.rows["conv5"].published == {"voc07_cls": 67.4, "detection": 49.2}


def summary(out: Path, row: str, seed: int) -> Any:
    return json.loads((out / row / f"seed_{seed}" / "run" / "summary.json").read_text(encoding="utf-8"))


def begin(path: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "fastssl", "ablate", path, "--out", out, *options]
    return processes.start(
        words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_grid_that_is_killed_goes_on_to_the_same_numbers(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, jobs: str
) -> None:
    """SIGKILL to all processes, while a cell learns and while one is finished; the weights are the same, too."""
    content = recipe(coded_synthetic, coded_real)
    content["settings"]["train"] |= {"steps": 30, "checkpoint_every": 5, "log_every": 1}
    path = written(tmp_path, content)
    assert finished(begin(path, tmp_path / "undisturbed", "--jobs", jobs))
    out = tmp_path / "killed"
    for waits_for in ("contours/seed_0/run/checkpoints/step_00000005.pt", "contours/seed_1/run/metrics.jsonl"):
        process = begin(path, out, "--jobs", jobs)
        deadline = time.monotonic() + 300
        while not (out / waits_for).exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert finished(begin(path, out, "--jobs", jobs))
    assert table(out) == table(tmp_path / "undisturbed")
    for seed in (0, 1):
        losses = [
            [line["loss/edge"] for line in read_metrics(folder / "contours" / f"seed_{seed}" / "run")]
            for folder in (out, tmp_path / "undisturbed")
        ]
        assert len(losses[0]) == 30
        assert losses[0] == losses[1]


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_ray_cluster_finds_the_same_numbers(grid: tuple[Path, Path], tmp_path: Path) -> None:
    path, undisturbed = grid
    assert finished(begin(path, tmp_path / "out", "--ray", "local"))
    assert table(tmp_path / "out") == table(undisturbed)


def finished(process: subprocess.Popen[str]) -> bool:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return True
