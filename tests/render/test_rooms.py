"""Whole runs: the same files whatever the workers, whatever interrupts them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastssl.errors import UsageError
from fastssl.render import render_room, render_rooms
from fastssl.sources import RenderSource, open_source

SIZE, SPP = 64, 4


def render(out: Path, count: int = 3, **changes: int) -> None:
    settings = {"seed": 4, "size": SIZE, "spp": SPP, "workers": 1} | changes
    render_rooms(out, count=count, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rooms") / "new" / "out"
    render(out)
    return out


def test_a_room_is_a_complete_record() -> None:
    record = render_room(4, 1, size=SIZE, spp=SPP)
    assert record.key == "room_s00004_000001"
    assert record.image.shape == (SIZE, SIZE, 3)
    assert record.image.dtype == np.uint8
    assert 60 < record.image.mean() < 190
    assert record.image.std() > 20
    assert record.depth is not None
    assert record.camera is not None
    assert 0.2 < record.depth.min() < record.depth.max() < 10
    assert record.camera.cx == record.camera.cy == SIZE / 2
    assert len(np.unique(record.instance)) > 5


def test_a_folder_holds_what_render_room_gives(rendered: Path) -> None:
    source = open_source(rendered)
    assert isinstance(source, RenderSource)
    assert list(source.references()) == [f"room_s00004_{index:06d}" for index in range(3)]
    stored, record = source.read("room_s00004_000002"), render_room(4, 2, size=SIZE, spp=SPP)
    assert np.array_equal(stored.image, record.image)
    assert np.array_equal(stored.instance, record.instance)
    assert np.abs(stored.depth / 1000 - record.depth).max() <= 0.00051
    assert stored.camera == record.camera


def test_two_workers_in_another_order_write_the_same_files(rendered: Path, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    render(tmp_path, count=1, first=2)
    render_rooms(tmp_path, count=3, seed=4, size=SIZE, spp=SPP, workers=2, progress=lambda n, of: done.append((n, of)))
    assert contents(tmp_path) == contents(rendered)
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupted_run_leaves_whole_files_and_goes_on(rendered: Path, tmp_path: Path) -> None:
    def stop(done: int, count: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_rooms(tmp_path, count=3, seed=4, size=SIZE, spp=SPP, progress=stop)
    whole = contents(rendered)
    assert len(contents(tmp_path)) == 6
    assert contents(tmp_path).items() <= whole.items()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    lost = tmp_path / "room_s00004_000000_depth.png"
    lost.unlink()
    render(tmp_path)
    assert contents(tmp_path) == whole
    assert (tmp_path / "render.json").stat().st_mtime_ns == kept[tmp_path / "render.json"]


def test_finished_rooms_are_not_rendered_again(rendered: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in rendered.iterdir()}
    render(rendered, workers=2)
    assert {path: path.stat().st_mtime_ns for path in rendered.iterdir()} == before


@pytest.mark.parametrize(("name", "value"), [("seed", 5), ("size", 32), ("spp", 9)])
def test_a_folder_of_other_settings_is_refused(rendered: Path, name: str, value: int) -> None:
    before = contents(rendered)
    with pytest.raises(UsageError, match=rf"other settings\n.*render.json: {name}\n  seen: .*\n  expected: {value}"):
        render(rendered, **{name: value})
    assert contents(rendered) == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("draft")
    with pytest.raises(UsageError, match=r"thesis\.tex"):
        render(tmp_path)
    assert contents(tmp_path) == {"thesis.tex": b"draft"}
    with pytest.raises(UsageError, match="cannot be used"):
        render(tmp_path / "thesis.tex")


@pytest.mark.parametrize(
    "changes", [{"count": 0}, {"workers": 0}, {"seed": -1}, {"size": 8}, {"spp": 1}, {"spp": 8}, {"first": -1}], ids=str
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="out of range"):
        render(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_without_mitsuba_the_import_says_what_to_install() -> None:
    code = """
import sys
sys.modules["mitsuba"] = None
from fastssl.errors import UsageError
try:
    import fastssl.render
except UsageError as error:
    assert "fastssl[render]" in str(error)
    sys.exit(7)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
