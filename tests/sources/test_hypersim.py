from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from sources.planes import PlaneScene, angles, assert_matches, assert_packs, scene
from sources.trees.hypersim import (
    HEIGHT,
    REFERENCE,
    TO_GL,
    UNKNOWN,
    USUAL,
    USUAL_MATRIX,
    WIDTH,
    files,
    write_array,
    write_frame,
    write_frames,
    write_lenses,
    write_split,
)

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.geometry import edge_of, pixel_rays
from fastssl.sources.hypersim import CAMERAS, SPLIT, HypersimSource

# Rows of the dataset's own table: the usual lens, one with lens_shift 0.224, and one with horizontal_shift 0.23,
# lens_shift -0.08 and vertical_offset 0.01, whose image axes meet at 88.98 degrees.
TABLE = {
    "ai_001_001": [0.5773502886169104, 0, 0, 0, 0.4330127164626828, 0, 0, 0, -1.0],
    "ai_041_007": [0.5917716252369174, 0, 0, 0, 0.43309846467927854, 0, 0, -0.09700335889774327, -1.0249784874103218],
    "ai_042_003": [
        *(0.5813867895573526, 0, 0),
        *(0, 0.44599980827670044, -0.01189332795487541),
        *(-0.1337189640239258, 0.03567998386462623, -1.0244455108528754),
    ],
}


def rotation(x: float, y: float, z: float) -> NDArray[np.float64]:
    """By degrees about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians([x, y, z])), np.sin(np.radians([x, y, z]))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def tree(folder: Path) -> PlaneScene:
    return write_frames(folder, REFERENCE)


def check(record: Record, view: PlaneScene) -> None:
    """As close as the 11 bits of a float16 allow, which is 2 to 4 mm for this room."""
    assert_matches(record, view, depth_tolerance=float(view.z.max()) * 2**-11 + 1e-6)
    assert record.depth is not None
    assert record.normal is not None
    known = record.depth > 0
    assert (np.abs(record.depth - view.z)[known] <= view.z[known] * 2**-11 + 1e-6).all()
    assert not known[UNKNOWN].any()
    assert np.array_equal(record.normal.any(axis=2), known)
    assert known.sum() == known.size - 60


def test_a_frame_of_the_usual_lens(tmp_path: Path) -> None:
    view = tree(tmp_path)
    source = HypersimSource(tmp_path)
    assert (source.layout, source.domain, source.labelled, source.licence) == (
        *("hypersim", "synthetic", True),
        "CC-BY-SA-3.0",
    )
    assert list(source.references()) == [REFERENCE]
    record = source.read(REFERENCE)
    assert record.key == "ai_001_001__cam_00__0007"
    check(record, view)


@pytest.mark.parametrize(
    "turn", [(0, 0, 0), (12.6, 0, 0), (0, -13, 0), (3, 7, 0), (-20, 15, 9)], ids=lambda turn: f"{turn}"
)
@pytest.mark.parametrize("centre", [(0, 0), (5.5, -4)], ids=lambda centre: f"{centre}")
def test_a_tilted_lens_is_a_pinhole_along_the_normal_of_its_image_plane(
    tmp_path: Path, turn: tuple[float, float, float], centre: tuple[float, float]
) -> None:
    """The room as a camera with an off-centre principal point sees it, stored in a frame that is turned against it."""
    camera = replace(USUAL, cx=USUAL.cx + centre[0], cy=USUAL.cy + centre[1], fx=1.05 * USUAL.fx)
    view = scene(camera, HEIGHT, WIDTH)
    pinhole = np.array(
        [
            [WIDTH / 2 / camera.fx, 0, (WIDTH / 2 - camera.cx) / camera.fx],
            [0, -HEIGHT / 2 / camera.fy, (HEIGHT / 2 - camera.cy) / camera.fy],
            [0, 0, 1],
        ]
    )
    turned = TO_GL @ rotation(*turn)
    write_frame(tmp_path, "ai_001_001/cam_00/0000", view, turned=turned)
    write_lenses(tmp_path, {"ai_001_001": 3.7 * turned @ pinhole})
    check(HypersimSource(tmp_path).read("ai_001_001/cam_00/0000"), view)
    write_lenses(tmp_path, {"ai_001_001": USUAL_MATRIX})
    with pytest.raises(AssertionError):
        check(HypersimSource(tmp_path).read("ai_001_001/cam_00/0000"), view)


@pytest.mark.parametrize("name", TABLE)
def test_lenses_of_the_datasets_own_table(tmp_path: Path, name: str) -> None:
    """A wall is seen where the true rays meet it; its depth is along the normal of the image plane, skew or not."""
    matrix = np.reshape(TABLE[name], (3, 3))
    wall, offset = np.array([0.3, -0.4, 0.8660254]), -3.0  # n . p = offset, n towards the camera
    columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    uv = np.stack([2 * columns / WIDTH - 1, 1 - 2 * rows / HEIGHT, np.ones_like(columns)], axis=2)
    rays = uv @ matrix.T
    points = rays * (offset / (rays @ wall))[:, :, None]
    write_frame(tmp_path, f"{name}/cam_00/0000", scene(USUAL, HEIGHT, WIDTH))
    paths = files(tmp_path, f"{name}/cam_00/0000")
    write_array(paths["depth_meters"], np.linalg.norm(points, axis=2).astype(np.float16))
    write_array(paths["normal_cam"], np.broadcast_to(wall, points.shape).astype(np.float16))
    write_lenses(tmp_path, TABLE)
    record = HypersimSource(tmp_path).read(f"{name}/cam_00/0000")
    assert record.depth is not None
    assert record.normal is not None
    assert record.camera is not None

    right, up, _ = matrix.T / np.linalg.norm(matrix, axis=0)[:, None]
    forward = -np.cross(right, up) / np.linalg.norm(np.cross(right, up))
    depth = points @ forward
    assert np.abs(record.depth / depth - 1).max() < 2**-11 + 1e-6
    # X halves the angle between the image's rows and what is perpendicular to its columns.
    x = right + np.cross(-up, forward)
    x /= np.linalg.norm(x)
    axes = np.stack([x, np.cross(forward, x), forward])
    assert angles(record.normal, axes @ wall).max() < 0.05  # of float16
    # The intrinsics, without skew, meet the true rays: exactly without it, nearly with it.
    skew = abs(np.degrees(np.arcsin(right @ up)))
    off = angles(pixel_rays(record.camera, HEIGHT, WIDTH), points @ axes.T)
    assert off.max() < (1e-3 if skew < 1e-3 else 0.35 * skew)
    normal = record.normal[0, 0].astype(np.float64)
    plane = (pixel_rays(record.camera, HEIGHT, WIDTH) * depth[:, :, None]) @ normal
    assert np.abs(plane / offset - 1).max() < (1e-3 if skew < 1e-3 else 0.02)


def test_a_plain_row_of_the_table_is_the_camera_of_60_degrees(tmp_path: Path) -> None:
    view = scene(USUAL, HEIGHT, WIDTH)
    write_frame(tmp_path, "ai_001_001/cam_00/0000", view)
    write_lenses(tmp_path, TABLE)
    check(HypersimSource(tmp_path).read("ai_001_001/cam_00/0000"), view)


MISTAKES: dict[str, Callable[[Record, PlaneScene], Record]] = {
    "the distance as depth": lambda record, view: replace(record, depth=view.ray_length.astype(np.float32)),
    "background as not a number": lambda record, _: replace(record, depth=np.where(record.depth, record.depth, np.nan)),
    "another focal length": lambda record, _: replace(record, camera=replace(USUAL, fx=1.1 * USUAL.fx)),
    "y upwards": lambda record, _: replace(record, normal=record.normal * np.float32([1, -1, 1])),
    "z backward": lambda record, _: replace(record, normal=record.normal * np.float32([1, 1, -1])),
    "mirrored": lambda record, _: replace(record, normal=record.normal * np.float32([-1, 1, 1])),
    "axes swapped": lambda record, _: replace(record, normal=record.normal[:, :, [1, 0, 2]]),
    "low bytes of the instances": lambda record, _: replace(record, instance=record.instance & 0xFF),
    "high bytes of the instances": lambda record, _: replace(record, instance=record.instance >> 8),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_would_notice(tmp_path: Path, mistake: str) -> None:
    view = tree(tmp_path)
    record = HypersimSource(tmp_path).read(REFERENCE)
    with pytest.raises(AssertionError):
        check(MISTAKES[mistake](record, view), view)


def test_normals_in_another_frame_would_be_noticed(tmp_path: Path) -> None:
    view = tree(tmp_path)
    write_frame(tmp_path, REFERENCE, view, turn_normals=False)
    with pytest.raises(AssertionError):
        check(HypersimSource(tmp_path).read(REFERENCE), view)


def test_surfaces_modelled_inside_out_are_turned_over_and_grazing_normals_are_not_known(tmp_path: Path) -> None:
    tree(tmp_path)
    path = files(tmp_path)["normal_cam"]
    towards = -pixel_rays(USUAL, HEIGHT, WIDTH) @ TO_GL
    towards /= np.linalg.norm(towards, axis=2, keepdims=True)
    across = np.cross(towards, [0.0, 1.0, 0.0])
    across /= np.linalg.norm(across, axis=2, keepdims=True)

    def leaning(degrees: float) -> NDArray[np.float32]:
        """Normals read where those stored make this angle with the way to the camera."""
        stored = np.cos(np.radians(degrees)) * towards + np.sin(np.radians(degrees)) * across
        write_array(path, stored.astype(np.float16))
        normal = HypersimSource(tmp_path).read(REFERENCE).normal
        assert normal is not None
        if normal.any():
            facing = stored if degrees < 90 else -stored
            assert angles(normal, facing @ TO_GL).max() < 0.1
        return normal

    assert leaning(0).all(axis=2).any()
    assert leaning(85).any(axis=2).all()
    assert not leaning(93).any()
    assert not leaning(99.5).any()
    assert leaning(101).any(axis=2).all()
    assert leaning(180).any(axis=2).all()


def test_lengths_of_normals_and_of_distances(tmp_path: Path) -> None:
    view = tree(tmp_path)
    paths = files(tmp_path)
    normal, distance = view.normal @ TO_GL, view.ray_length.copy()
    normal[0] = 0
    normal[1] *= 0.3
    normal[2] *= 1.4
    normal[3] = np.inf
    distance[4] = np.inf
    distance[5] = 0
    write_array(paths["normal_cam"], normal.astype(np.float16))
    write_array(paths["depth_meters"], distance.astype(np.float16))
    record = HypersimSource(tmp_path).read(REFERENCE)
    assert record.normal is not None
    assert record.depth is not None
    known = record.normal.any(axis=2)
    assert not known[[0, 1, 3]].any()
    assert known[2].all()
    assert np.allclose(np.linalg.norm(record.normal[known], axis=1), 1, atol=1e-6)
    assert not record.depth[4:6].any()
    assert record.depth[6:].all()


def test_what_nobody_labelled_has_a_border_too(tmp_path: Path) -> None:
    tree(tmp_path)
    instance = np.full((HEIGHT, WIDTH), -1, np.int16)
    instance[10:20, 10:20] = 300
    write_array(files(tmp_path)["semantic_instance"], instance)
    read = HypersimSource(tmp_path).read(REFERENCE).instance
    assert read is not None
    assert np.array_equal(read, instance)
    assert edge_of(read).sum() == 39  # ten on each side, two of which share a pixel


def image_of(folder: Path, color: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    paths = files(folder)
    write_array(paths["color"], color.astype(np.float16))
    if valid is not None:
        write_array(paths["depth_meters"], np.where(valid, 2, np.nan).astype(np.float16))
    return HypersimSource(folder).read(REFERENCE).image


def test_tone_mapping_takes_the_90th_percentile_of_brightness_to_four_fifths(tmp_path: Path) -> None:
    tree(tmp_path)
    valid = np.ones((HEIGHT, WIDTH), bool)
    valid[:8] = False
    color = np.zeros((HEIGHT, WIDTH, 3))
    color[:8] = 900  # the background: as bright as it likes
    ramp = np.linspace(0.5, 2.5, valid.sum())
    color[8:] = np.random.default_rng(1).permutation(ramp).reshape(HEIGHT - 8, WIDTH, 1)
    color[20, 20] = (2.5, 0, 0.5)
    image = image_of(tmp_path, color, valid)
    assert (image[:8] == 255).all()
    stored = color.astype(np.float16).astype(np.float64)
    ninetieth = np.sort((stored @ [0.3, 0.59, 0.11])[valid])[int(0.9 * valid.sum())]
    expected = 255 * np.minimum(0.8 * (stored / ninetieth) ** (1 / 2.2), 1)
    assert np.abs(image - expected).max() <= 0.51 + 0.1
    at = np.abs(stored[:, :, 0] - ninetieth).argmin()
    assert image.reshape(-1, 3)[at].tolist() == [204, 204, 204]


def test_tone_mapping_at_its_borders(tmp_path: Path) -> None:
    tree(tmp_path)
    everywhere = np.ones((HEIGHT, WIDTH), bool)
    assert not image_of(tmp_path, np.full((HEIGHT, WIDTH, 3), 5e-5), everywhere).any()
    assert (image_of(tmp_path, np.full((HEIGHT, WIDTH, 3), 0.25), ~everywhere) == 136).all()  # 255 * 0.25 ** (1 / 2.2)
    color = np.full((HEIGHT, WIDTH, 3), 0.25)
    color[0, 0], color[0, 1], color[0, 2] = np.nan, np.inf, -1
    image = image_of(tmp_path, color, everywhere)
    assert image[0, :4, 0].tolist() == [0, 255, 0, 204]


def test_references_are_sorted_and_folders_without_frames_passed_over(tmp_path: Path) -> None:
    references = [
        *("ai_001_001/cam_00/0000", "ai_001_001/cam_00/0012", "ai_001_001/cam_01/0003"),
        "ai_002_001/cam_00/0001",
    ]
    write_frames(tmp_path, *reversed(references))
    (tmp_path / "ai_001_002" / "_detail" / "mesh").mkdir(parents=True)
    (tmp_path / "ai_002_001" / "images" / "scene_cam_00_final_preview").mkdir()
    (tmp_path / "ai_002_001" / "images" / "scene_cam_00_final_hdf5" / "frame.0001.residual.hdf5").write_bytes(b"")
    source = HypersimSource(str(tmp_path))
    assert list(source.references()) == references


def test_subsets_are_those_of_the_split(tmp_path: Path) -> None:
    write_frames(
        tmp_path, "ai_001_001/cam_00/0000", "ai_001_001/cam_00/0001", "ai_001_002/cam_00/0010", "ai_002_001/cam_00/0000"
    )
    with pytest.raises(DataError, match=SPLIT):
        HypersimSource(tmp_path, subset="train")
    write_split(
        tmp_path,
        [
            ["ai_001_001", "cam_00", 0, True, "", "train"],
            ["ai_001_001", "cam_00", 1, False, "CONTENT FLAGGED FOR REMOVAL", ""],
            ["ai_001_002", "cam_00", 10, True, "", "val"],
            ["ai_001_002", "cam_00", 11, True, "", "val"],
            ["ai_002_001", "cam_00", 0, True, "", "test"],
        ],
    )
    chosen = {subset: list(HypersimSource(tmp_path, subset=subset).references()) for subset in ("train", "val", "test")}
    assert chosen == {
        "train": ["ai_001_001/cam_00/0000"],
        "val": ["ai_001_002/cam_00/0010"],
        "test": ["ai_002_001/cam_00/0000"],
    }
    assert list(HypersimSource(tmp_path).references()) == sorted(chain.from_iterable(chosen.values()))


def test_a_subset_without_frames_is_refused(tmp_path: Path) -> None:
    tree(tmp_path)
    write_split(tmp_path, [["ai_001_001", "cam_00", 7, True, "", "train"]])
    with pytest.raises(DataError, match="subset val"):
        HypersimSource(tmp_path, subset="val")


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frames of Hypersim"):
        HypersimSource(tmp_path)
    with pytest.raises(DataError, match="no frames of Hypersim"):
        HypersimSource(tmp_path / "missing")


@pytest.mark.parametrize("place", ["hypersim", "hypersim/ai_001_001", "", "hypersim/analysis", "analysis"])
def test_one_scene_finds_its_tables_in_it_and_above_it(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "hypersim"
    view = write_frames(root, REFERENCE, "ai_001_002/cam_00/0001")
    write_split(root, [["ai_001_001", "cam_00", 7, True, "", "train"]])
    (tmp_path / place).mkdir(exist_ok=True)
    for table in (CAMERAS, SPLIT):
        (root / table).rename(tmp_path / place / table)
    assert HypersimSource.recognise(root / "ai_001_001") == "ai_001_001 has rendered images"
    source = HypersimSource(root / "ai_001_001", subset="train")
    assert list(source.references()) == [REFERENCE]
    record = source.read(REFERENCE)
    assert record.key == "ai_001_001__cam_00__0007"
    check(record, view)
    assert source.passed_over() == {}
    monkeypatch.chdir(root / "ai_001_001" / "images")
    assert list(HypersimSource("..").references()) == [REFERENCE]


def test_scenes_may_lie_where_the_datasets_tools_have_them(tmp_path: Path) -> None:
    view = write_frames(tmp_path / "scenes", REFERENCE)
    (tmp_path / "scenes" / CAMERAS).rename(tmp_path / CAMERAS)
    source = HypersimSource(tmp_path)
    assert HypersimSource.recognise(tmp_path) == "scenes/ai_001_001 has rendered images"
    assert list(source.references()) == [f"scenes/{REFERENCE}"]
    record = source.read(f"scenes/{REFERENCE}")
    assert record.key == HypersimSource(tmp_path / "scenes").key(REFERENCE) == "ai_001_001__cam_00__0007"
    check(record, view)
    assert source.passed_over() == {}


def test_what_is_not_packed_is_counted(tmp_path: Path) -> None:
    write_frames(tmp_path, REFERENCE, "ai_001_001/cam_00/0008", "ai_001_002/cam_00/0001")
    scene_folder = tmp_path / "ai_001_001"
    for name in (
        *("_detail/metadata_scene.csv", "_detail/cam_00/camera_keyframe_positions.hdf5"),
        *("images/scene_cam_00_final_preview/frame.0007.tonemap.jpg",),
        *("images/scene_cam_00_geometry_hdf5/frame.0007.position.hdf5",),
    ):
        (scene_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (scene_folder / name).touch()
    assert HypersimSource(tmp_path).passed_over() == {}
    write_split(
        tmp_path,
        [
            ["ai_001_001", "cam_00", 7, True, "", "train"],
            ["ai_001_001", "cam_00", 8, False, "CONTENT FLAGGED FOR REMOVAL", ""],
            ["ai_001_002", "cam_00", 1, True, "", "val"],
        ],
    )
    (scene_folder / "images" / "frame.0007.color.hdf5").touch()
    write_frame(tmp_path / "scenes", "ai_001_003/cam_00/0001", scene(USUAL, HEIGHT, WIDTH))
    withheld = "ai_001_001/images/scene_cam_00_final_hdf5/frame.0008.color.hdf5"
    for subset in (None, "train"):
        passed = HypersimSource(tmp_path, subset=subset).passed_over()
        assert {reason: (one.count, one.first[0]) for reason, one in passed.items()} == {
            "files ending in .hdf5": (5, "ai_001_001/images/frame.0007.color.hdf5"),
            f"frames that {SPLIT} does not release": (1, withheld),
        }


def test_tables_are_read_as_editors_leave_them(tmp_path: Path) -> None:
    view = tree(tmp_path)
    write_split(
        tmp_path, [["ai_001_001", "cam_00", 7, True, "", "train"], ["ai_001_001", "cam_00", 8, True, "", "val"]]
    )
    for table in (tmp_path / CAMERAS, tmp_path / SPLIT):
        header, *rows = table.read_text().splitlines()
        spoilt = ["\ufeff" + header.replace(",", ", "), "", *(row.replace(",", " ,") for row in rows), "  ", ",,,", ""]
        table.write_bytes("\r\n".join(spoilt).encode())
    source = HypersimSource(tmp_path, subset="train")
    assert list(source.references()) == [REFERENCE]
    check(source.read(REFERENCE), view)


@pytest.mark.parametrize("frame", ["nan", "inf", "7.5", ""])
def test_frames_that_are_no_whole_numbers_are_named(tmp_path: Path, frame: str) -> None:
    tree(tmp_path)
    write_split(tmp_path, [["ai_001_001", "cam_00", frame, True, "", "train"]])
    with pytest.raises(DataError, match=f"{SPLIT}(.|\n)*'{frame}'"):
        HypersimSource(tmp_path)


def test_a_fault_of_the_machine_is_no_missing_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("fastssl.sources.hypersim.open_regular", failing)
        with pytest.raises(DataError) as caught:
            HypersimSource(tmp_path)
    assert machine_fault(caught.value) is not None
    (tmp_path / CAMERAS).unlink()
    os.mkfifo(tmp_path / CAMERAS)
    with pytest.raises(DataError, match="not a regular file") as caught:
        HypersimSource(tmp_path)
    assert (caught.value.where, machine_fault(caught.value)) == (tmp_path / CAMERAS, None)


def test_the_table_of_lenses_is_needed_whole(tmp_path: Path) -> None:
    write_frames(tmp_path, "ai_001_001/cam_00/0000", "ai_041_008/cam_00/0000")
    source = HypersimSource(tmp_path)
    with pytest.raises(DataError, match=r"lacks a scene(.|\n)*ai_041_008(.|\n)*apple/ml-hypersim"):
        source.read("ai_041_008/cam_00/0000")
    table = tmp_path / CAMERAS
    text = table.read_text()
    table.unlink()
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*contrib/mikeroberts3000"):
        HypersimSource(tmp_path)
    table.write_text(text.replace("M_cam_from_uv_21", "M_cam"))
    with pytest.raises(DataError, match="M_cam_from_uv_21"):
        HypersimSource(tmp_path)
    table.write_text(text.replace("-1.0", "minus one", 1))
    with pytest.raises(DataError, match="'minus one'"):
        HypersimSource(tmp_path)
    for wrong in ("1.0", "0.0", "nan"):
        table.write_text(text.replace("-1.0", wrong, 1))
        with pytest.raises(DataError, match="ai_001_001"):
            HypersimSource(tmp_path)
    table.write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(DataError, match=CAMERAS):
        HypersimSource(tmp_path)


def test_a_damaged_split_is_named(tmp_path: Path) -> None:
    tree(tmp_path)
    write_split(tmp_path, [["ai_001_001", "cam_00", "seven", True, "", "train"]])
    with pytest.raises(DataError, match=f"{SPLIT}(.|\n)*'seven'"):
        HypersimSource(tmp_path)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "no HDF5": lambda path: path.write_bytes(b"words " * 100),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "damaged inside": lambda path: path.write_bytes(damaged(path.read_bytes())),
    "another name": lambda path: rewrite(path, lambda file, values: file.create_dataset("data", data=values)),
    "a group": lambda path: rewrite(path, lambda file, values: file.create_group("dataset")),
    "another size": lambda path: rewrite(path, lambda file, values: file.create_dataset("dataset", data=values[:-1])),
    "flat": lambda path: rewrite(path, lambda file, values: file.create_dataset("dataset", data=values.ravel())),
    "another kind": lambda path: rewrite(
        path,
        lambda file, values: file.create_dataset(
            "dataset", data=values.view(np.uint16 if values.dtype.kind == "f" else np.float16)
        ),
    ),
}


def rewrite(path: Path, change: Callable[[h5py.File, NDArray[Any]], object]) -> None:
    with h5py.File(path) as file:
        values = file["dataset"][()]
    with h5py.File(path, "w") as file:
        change(file, values)


def damaged(content: bytes) -> bytes:
    """The same file with noise over its compressed data, which start with the mark of zlib's best compression."""
    start = content.index(b"\x78\xda") + 20
    return content[:start] + bytes(range(100)) + content[start + 100 :]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("plane", ["color", "depth_meters", "normal_cam", "semantic_instance"])
def test_a_damaged_file_is_named(tmp_path: Path, plane: str, damage: str) -> None:
    tree(tmp_path)
    source = HypersimSource(tmp_path)
    path = files(tmp_path)[plane]
    DAMAGES[damage](path)
    if (plane, damage) == ("color", "another size"):
        path = files(tmp_path)["depth_meters"]  # the other files do not fit the image
    with pytest.raises(DataError) as error:
        source.read(REFERENCE)
    assert error.value.where == path


def test_folders_with_the_names_of_scenes_are_not_taken_for_it(tmp_path: Path) -> None:
    photos = tmp_path / "photos" / "ai_001_001"
    photos.mkdir(parents=True)
    (photos / "images").write_text("a file")
    for path in (tmp_path / "photos", photos, photos / "images"):
        assert not HypersimSource.recognise(path)


def test_it_packs(tmp_path: Path) -> None:
    view = write_frames(tmp_path / "hypersim", "ai_001_001/cam_00/0000", "ai_001_002/cam_00/0001")
    manifest = assert_packs(
        HypersimSource(tmp_path / "hypersim"), view, tmp_path / "out", depth_tolerance=0.004, normal_degrees=0.1
    )
    assert (manifest.samples, manifest.licence) == (2, "CC-BY-SA-3.0")
