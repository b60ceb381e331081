from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources.damage import DAMAGES, UNREADABLE
from sources.pictures import save
from sources.planes import PlaneScene, angles, assert_matches, assert_packs, scene
from sources.trees.structured3d import (
    CAMERA,
    HALF_X,
    HALF_Y,
    HEIGHT,
    POSE,
    REFERENCE,
    UNKNOWN,
    WIDTH,
    codes_of,
    folder_of,
    write_rendering,
)

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.geometry import edge_of
from fastssl.sources.structured3d import INVALID_SCENES, Structured3DSource


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_rendering(tmp_path, REFERENCE, scene(CAMERA, HEIGHT, WIDTH))
    return tmp_path


@pytest.fixture
def view() -> PlaneScene:
    return scene(CAMERA, HEIGHT, WIDTH)


def check(record: Record, view: PlaneScene) -> None:
    assert_matches(record, view)
    assert record.depth is not None
    assert record.normal is not None
    assert (record.depth == 0).sum() == 60
    assert not record.depth[UNKNOWN].any()
    assert np.array_equal(record.normal.any(axis=2), record.depth > 0)


def test_a_rendering(tree: Path, view: PlaneScene) -> None:
    source = Structured3DSource(tree)
    assert (source.layout, source.domain, source.labelled) == ("structured3d", "synthetic", True)
    assert source.licence == "Structured3D Terms of Use"
    record = source.read(REFERENCE)
    assert record.key == "scene_00000__485142__0"
    assert record.image.tolist() == np.array(Image.open(folder_of(tree) / "rgb_rawlight.png")).tolist()
    check(record, view)


def test_a_rendering_of_the_datasets_own_size(tmp_path: Path) -> None:
    height, width = 720, 1280
    camera = Intrinsics(fx=640 / np.tan(HALF_X), fy=360 / np.tan(HALF_Y), cx=640, cy=360)
    view = scene(camera, height, width)
    write_rendering(tmp_path, REFERENCE, view)
    check(Structured3DSource(tmp_path).read(REFERENCE), view)
    path = folder_of(tmp_path) / "normal.png"
    save(path, codes_of(view.normal * [-1, 1, 1]))
    with pytest.raises(DataError, match="do not fit its depth"):
        Structured3DSource(tmp_path).read(REFERENCE)


MISTAKES: dict[str, Callable[[Record, PlaneScene], Record]] = {
    "planar depth as a distance": lambda record, view: replace(
        record, depth=(view.z**2 / view.ray_length).astype(np.float32)
    ),
    "whole angles": lambda record, _: replace(record, camera=replace(CAMERA, fx=WIDTH / 2 / np.tan(HALF_X / 2))),
    "width and height exchanged": lambda record, _: replace(record, camera=replace(CAMERA, cx=CAMERA.cy, cy=CAMERA.cx)),
    "left for right": lambda record, _: replace(record, normal=record.normal * np.float32([-1, 1, 1])),
    "up for down": lambda record, _: replace(record, normal=record.normal * np.float32([1, -1, 1])),
    "axes swapped": lambda record, _: replace(record, normal=record.normal[:, :, [2, 1, 0]]),
    "low bytes of the depth": lambda record, _: replace(
        record, depth=(np.rint(record.depth * 1000).astype(int) & 0xFF).astype(np.float32) / 1000
    ),
    "low bytes of the instances": lambda record, _: replace(record, instance=record.instance & 0xFF),
    "high bytes of the instances": lambda record, _: replace(record, instance=record.instance >> 8),
    "unknown depth as a value": lambda record, _: replace(record, depth=np.where(record.depth, record.depth, np.nan)),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_would_notice(tree: Path, view: PlaneScene, mistake: str) -> None:
    record = Structured3DSource(tree).read(REFERENCE)
    with pytest.raises(AssertionError):
        check(MISTAKES[mistake](record, view), view)


@pytest.mark.parametrize(
    ("order", "signs", "frame"),
    [
        ((0, 1, 2), (1, 1, -1), "(blue, -green, red)"),  # a right-handed frame
        ((0, 1, 2), (-1, 1, 1), "(-blue, -green, -red)"),
        ((0, 1, 2), (1, -1, 1), "(-blue, green, red)"),
        ((0, 1, 2), (-1, -1, -1), "(blue, green, -red)"),  # normals that look away
        ((2, 1, 0), (1, 1, 1), "(-red, -green, blue)"),  # blue, green, red in the file
        ((1, 2, 0), (1, -1, 1), "(green, -red, blue)"),
    ],
)
def test_other_axes_of_the_normals_are_refused_and_named(
    tree: Path, order: tuple[int, int, int], signs: tuple[int, int, int], frame: str
) -> None:
    """The file's channels, exchanged and turned over; what would read them is named."""
    path = folder_of(tree) / "normal.png"
    channels = np.array(Image.open(path)).astype(int) - 128
    channels = channels[:, :, list(order)] * np.array(signs)
    save(path, np.clip(channels + 128, 0, 255).astype(np.uint8))
    with pytest.raises(DataError, match="do not fit its depth") as error:
        Structured3DSource(tree).read(REFERENCE)
    assert error.value.where == path
    seen = str(error.value.seen)
    assert "with (-blue, -green, red);" in seen
    assert seen.endswith(f"with {frame}")


def test_normals_of_the_world_are_refused(tree: Path, view: PlaneScene) -> None:
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    path = folder_of(tree) / "normal.png"
    save(path, codes_of(view.normal @ turn))
    with pytest.raises(DataError, match="do not fit its depth"):
        Structured3DSource(tree).read(REFERENCE)


def test_normals_that_fit_nowhere_are_refused(tree: Path) -> None:
    scattered = np.random.default_rng(5).normal(size=(HEIGHT, WIDTH, 3))
    save(folder_of(tree) / "normal.png", codes_of(scattered / np.linalg.norm(scattered, axis=2)[:, :, None]))
    with pytest.raises(DataError, match="do not fit its depth"):
        Structured3DSource(tree).read(REFERENCE)


def test_one_wall_alone_and_no_depth_at_all_are_no_reason_to_refuse(tree: Path) -> None:
    """A frontal wall fits many frames equally well; without depth nothing can be said."""
    at = folder_of(tree)
    save(at / "depth.png", np.full((HEIGHT, WIDTH), 2500, np.uint16))
    save(at / "normal.png", np.full((HEIGHT, WIDTH, 3), (0, 128, 128), np.uint8))
    record = Structured3DSource(tree).read(REFERENCE)
    assert record.normal is not None
    assert (record.normal == [0, 0, -1]).all()
    save(at / "depth.png", np.zeros((HEIGHT, WIDTH), np.uint16))
    record = Structured3DSource(tree).read(REFERENCE)
    assert record.normal is not None
    assert record.normal.any(axis=2).all()


def test_codes_that_are_no_unit_vectors_or_look_away_are_not_known(tree: Path) -> None:
    path = folder_of(tree) / "normal.png"
    codes = np.array(Image.open(path))
    codes[0] = 0
    codes[1] = 128
    codes[2] = (90, 128, 128)
    codes[3] = (255, 128, 128)
    save(path, codes)
    normal = Structured3DSource(tree).read(REFERENCE).normal
    assert normal is not None
    assert not normal[:4].any()
    assert normal[4:30].any(axis=2).all()


def test_noise_in_the_depth_does_not_make_the_normals_wrong(tree: Path, view: PlaneScene) -> None:
    noisy = view.z * np.random.default_rng(2).uniform(0.9, 1.1, view.z.shape)
    noisy[:, : WIDTH // 5] = view.z[:, : WIDTH // 5]
    save(folder_of(tree) / "depth.png", np.rint(1000 * noisy).astype(np.uint16))
    normal = Structured3DSource(tree).read(REFERENCE).normal
    assert normal is not None
    known = normal.any(axis=2)
    assert angles(normal, view.normal)[known].max() < 1


def test_the_background_has_a_border_too(tree: Path) -> None:
    instance = np.full((HEIGHT, WIDTH), 65535, np.uint16)
    instance[10:20, 10:20] = 300
    save(folder_of(tree) / "instance.png", instance)
    read = Structured3DSource(tree).read(REFERENCE).instance
    assert read is not None
    assert read.max() == 65535
    assert edge_of(read).sum() == 39  # ten on each side, two of which share a pixel


def empty_rendering(folder: Path, reference: str) -> None:
    folder_of(folder, reference).mkdir(parents=True)


def test_references_are_sorted_and_invalid_scenes_left_out(tmp_path: Path) -> None:
    references = [
        *("scene_00000/485142/0", "scene_00000/485142/1", "scene_00000/485142/10", "scene_00000/490854/2"),
        *("scene_02999/7/0", "scene_03000/7/0", "scene_03249/7/0", "scene_03250/7/0", "scene_03499/7/0"),
    ]
    for reference in references[::-1]:
        empty_rendering(tmp_path, reference)
    for number in INVALID_SCENES:
        empty_rendering(tmp_path, f"scene_{number:05d}/1/0")
    (tmp_path / "scene_00001" / "2D_rendering" / "5" / "panorama" / "full").mkdir(parents=True)
    (tmp_path / "scene_00002").mkdir()
    (folder_of(tmp_path, references[0]).parent / "Thumbs.db").write_text("")
    assert list(Structured3DSource(str(tmp_path)).references()) == references
    subsets = {name: list(Structured3DSource(tmp_path, subset=name).references()) for name in ("train", "val", "test")}
    assert subsets == {"train": references[:5], "val": references[5:7], "test": references[7:]}


EVIDENCE = "scene_00000 has perspective renderings"


@pytest.mark.parametrize(
    "below",
    ["Structured3D", "structured3d", "Structured3D/Structured3D", "Structured3D_perspective_full_00/Structured3D"],
)
def test_the_folder_above_is_the_same_dataset(tree: Path, tmp_path: Path, view: PlaneScene, below: str) -> None:
    root = tmp_path / "data"
    shutil.copytree(tree / "scene_00000", root / below / "scene_00000")
    assert Structured3DSource.recognise(root) == f"{below}/{EVIDENCE}"
    source = Structured3DSource(root, subset="train")
    assert list(source.references()) == [f"{below}/{REFERENCE}"]
    record = source.read(f"{below}/{REFERENCE}")
    assert record.key == Structured3DSource(root / below).key(REFERENCE) == "scene_00000__485142__0"
    check(record, view)


def test_one_scene_is_what_it_is_in_its_folder(
    tree: Path, tmp_path: Path, view: PlaneScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rendering(tree, "scene_00001/7/0", view)
    source = Structured3DSource(tree / "scene_00000")
    assert Structured3DSource.recognise(tree / "scene_00000") == EVIDENCE
    assert list(source.references()) == [REFERENCE]
    assert source.passed_over() == {}
    check(source.read(REFERENCE), view)
    with pytest.raises(DataError, match="subset val"):
        Structured3DSource(tree / "scene_00000", subset="val")
    monkeypatch.chdir(tree / "scene_00001")
    assert list(Structured3DSource(".").references()) == ["scene_00001/7/0"]
    monkeypatch.chdir(tree / "scene_00001" / "2D_rendering")
    assert list(Structured3DSource("..").references()) == ["scene_00001/7/0"]


def test_archives_side_by_side_are_one_dataset_and_what_they_share_counts_once(tmp_path: Path) -> None:
    """As archives 08 and 09 do, which hold the same scenes."""
    eight, nine = (f"Structured3D_perspective_full_{number}/Structured3D" for number in ("08", "09"))
    shared, own = "scene_01800/7/0", "scene_01999/7/0"
    for home, references in ((eight, [shared]), (nine, [shared, "scene_01800/7/1", own])):
        for reference in references:
            empty_rendering(tmp_path / home, reference)
            (folder_of(tmp_path / home, reference) / "rgb_rawlight.png").touch()
    (tmp_path / "Structured3D_panorama_00" / "Structured3D" / "scene_00000").mkdir(parents=True)
    source = Structured3DSource(tmp_path)
    assert list(source.references()) == [f"{eight}/{shared}", f"{nine}/scene_01800/7/1", f"{nine}/{own}"]
    assert Structured3DSource.recognise(tmp_path) == f"{eight}/scene_01800 has perspective renderings"
    passed = {reason: (one.count, one.first) for reason, one in source.passed_over().items()}
    again = folder_of(Path(nine), shared) / "rgb_rawlight.png"
    assert passed == {"images that another folder of scenes has too": (1, [str(again)])}


def test_what_is_not_packed_is_counted(tree: Path, view: PlaneScene) -> None:
    for name in (
        *("bbox_3d.json", "annotation_3d.json", "2D_rendering/485142/panorama/layout.txt"),
        *("2D_rendering/485142/panorama/empty/rgb_coldlight.png", "2D_rendering/485142/perspective/full/0/layout.json"),
    ):
        (tree / "scene_00000" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "scene_00000" / name).touch()
    assert Structured3DSource(tree).passed_over() == {}
    write_rendering(tree, "scene_01155/1/0", view)
    at = folder_of(tree)
    shutil.copytree(at, at.with_name("0 (copy)"))
    os.mkfifo(at / "pipe.png")
    passed = {reason: (one.count, one.first[0]) for reason, one in Structured3DSource(tree).passed_over().items()}
    below = "scene_00000/2D_rendering/485142/perspective/full"
    invalid = folder_of(Path(), "scene_01155/1/0") / "rgb_rawlight.png"
    assert passed == {
        "files ending in .json": (1, f"{below}/0 (copy)/layout.json"),
        "files ending in .png": (5, f"{below}/0 (copy)/depth.png"),
        "files ending in .txt": (1, f"{below}/0 (copy)/camera_pose.txt"),
        "images of scenes that the dataset calls invalid": (1, str(invalid)),
        "special files (pipes, sockets, devices)": (1, f"{below}/0/pipe.png"),
    }


def test_a_camera_is_read_as_editors_leave_it(tree: Path, view: PlaneScene) -> None:
    (folder_of(tree) / "camera_pose.txt").write_bytes(f"\ufeff{POSE}\r\n\r\n".encode())
    check(Structured3DSource(tree).read(REFERENCE), view)


def test_a_camera_that_is_a_pipe_is_not_waited_on_and_a_fault_of_the_machine_stays_one(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr("fastssl.sources.lists.open_regular", failing)
        with pytest.raises(DataError) as caught:
            Structured3DSource(tree).read(REFERENCE)
    assert machine_fault(caught.value) is not None
    path = folder_of(tree) / "camera_pose.txt"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file") as caught:
        Structured3DSource(tree).read(REFERENCE)
    assert (caught.value.where, machine_fault(caught.value)) == (path, None)


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    empty_rendering(tmp_path / "train only", "scene_00000/1/0")
    with pytest.raises(DataError, match="subset test"):
        Structured3DSource(tmp_path / "train only", subset="test")
    (tmp_path / "panoramas" / "scene_00001" / "2D_rendering" / "5" / "panorama" / "full").mkdir(parents=True)
    for name in ("panoramas", "missing"):
        with pytest.raises(DataError, match="no perspective renderings"):
            Structured3DSource(tmp_path / name)


def test_folders_with_the_names_of_scenes_are_not_taken_for_it(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "scene_00000").mkdir(parents=True)
    (tmp_path / "pictures" / "scene_00000" / "2D_rendering").write_text("a file")
    (tmp_path / "panoramas" / "scene_00001" / "2D_rendering" / "5" / "panorama" / "full").mkdir(parents=True)
    for name in ("pictures", "pictures/scene_00000/2D_rendering", "panoramas"):
        assert not Structured3DSource.recognise(tmp_path / name), name


PLANES_AND_DAMAGES = [(plane, damage) for plane in ("depth", "normal", "instance") for damage in DAMAGES]
PLANES_AND_DAMAGES += [("rgb_rawlight", damage) for damage in UNREADABLE]


@pytest.mark.parametrize(("plane", "damage"), PLANES_AND_DAMAGES)
def test_a_damaged_plane_is_named(tree: Path, plane: str, damage: str) -> None:
    path = folder_of(tree) / f"{plane}.png"
    DAMAGES[damage](path)
    with pytest.raises(DataError) as error:
        Structured3DSource(tree).read(REFERENCE)
    assert error.value.where == path


def test_an_image_of_another_size_than_its_planes_is_refused(tree: Path) -> None:
    DAMAGES["another size"](folder_of(tree) / "rgb_rawlight.png")
    with pytest.raises(DataError, match=r"depth\.png(.|\n)*96 x 53"):
        Structured3DSource(tree).read(REFERENCE)


@pytest.mark.parametrize(
    "content",
    [
        *("", "words", "é", POSE.rpartition(" ")[0], f"{POSE} 1"),
        *(POSE.replace(str(HALF_X), "40"), POSE.replace(str(HALF_X), "-0.5"), POSE.replace(str(HALF_Y), "nan")),
    ],
)
def test_a_damaged_camera_is_named(tree: Path, content: str) -> None:
    path = folder_of(tree) / "camera_pose.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as error:
        Structured3DSource(tree).read(REFERENCE)
    assert error.value.where == path
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        Structured3DSource(tree).read(REFERENCE)


def test_it_packs(tmp_path: Path, view: PlaneScene) -> None:
    for reference in (REFERENCE, "scene_00000/485142/1", "scene_03300/7/0"):
        write_rendering(tmp_path / "data", reference, view)
    source = Structured3DSource(tmp_path / "data", subset="train")
    assert assert_packs(source, view, tmp_path / "out", depth_tolerance=0.0005001).samples == 2
