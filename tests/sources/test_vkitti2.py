from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sources.damage import DAMAGES, fail_to_read
from sources.planes import PlaneScene, assert_matches, assert_packs, assert_wall, wall
from sources.trees.photos import write_photos
from sources.trees.vkitti2 import (
    CAMERA,
    OTHER_CAMERA,
    REFERENCE,
    SKY,
    Planes,
    centimetres,
    files,
    planes_of,
    scene,
    write_frame,
    write_intrinsics,
)

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.sources import vkitti2
from fastssl.sources.vkitti2 import Vkitti2Source

DATASETS_CAMERA = Intrinsics(fx=725.0087, fy=725.0087, cx=621.0, cy=187.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "vkitti2"
    write_frame(root, planes_of(scene()))
    write_intrinsics(root / "Scene01" / "15-deg-left", OTHER_CAMERA, CAMERA)
    return root


def check(record: Record, view: PlaneScene | None = None) -> None:
    """Depth to half a centimetre; normals, which are computed from it, to half a degree."""
    view = view or scene()
    view.z[SKY], view.normal[SKY] = 0, 0
    sky = view.z[SKY].size / view.z.size
    assert_matches(record, view, depth_tolerance=0.00501, normal_degrees=0.5, min_known=0.998 - sky)
    assert not record.depth[SKY].any()
    assert not record.normal[SKY].any()


def test_a_frame_shows_the_scene(folder: Path) -> None:
    record = Vkitti2Source(folder).read(REFERENCE)
    check(record)
    assert record.key == "scene01__15-deg-left__camera_1__00000"
    assert np.unique(record.instance).tolist() == [0, 1, 2, 3]
    assert np.abs(record.image.astype(int) - 90).max() <= 2


def test_frames_of_the_datasets_size_need_no_file_of_intrinsics(tmp_path: Path) -> None:
    view = scene(DATASETS_CAMERA, 375, 1242)
    write_frame(tmp_path, planes_of(view))
    record = Vkitti2Source(tmp_path).read(REFERENCE)
    assert record.camera == DATASETS_CAMERA
    view.z[SKY], view.normal[SKY] = 0, 0
    assert_matches(record, view, depth_tolerance=0.00501, normal_degrees=0.7, min_known=0.999)


@pytest.mark.parametrize("distance", [2, 5, 10, 20])
def test_a_wall_has_its_normals_in_centimetres(tmp_path: Path, distance: float) -> None:
    """Close up, where a step of a centimetre is coarse, a wall shows many pixels: at 2 m, lines of 519 are wanted."""
    view = wall(DATASETS_CAMERA, 375, 1242, distance)
    planes = planes_of(view, sky=False)
    write_frame(tmp_path, planes)
    assert_wall(Vkitti2Source(tmp_path).read(REFERENCE), view, mean=0.05, p90=0.1, known=1)


def test_the_wall_would_notice_steps_of_a_millimetre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = wall(DATASETS_CAMERA, 375, 1242, 2)
    write_frame(tmp_path, planes_of(view, sky=False))
    compute = vkitti2.normals_from_depth
    monkeypatch.setattr(vkitti2, "normals_from_depth", lambda *args, step: compute(*args))
    with pytest.raises(AssertionError, match="in the mean"):
        assert_wall(Vkitti2Source(tmp_path).read(REFERENCE), view)


def ray_length(planes: Planes, _: Path) -> None:
    planes["depth"] = centimetres(scene().ray_length)


def low_bytes(planes: Planes, _: Path) -> None:
    planes["depth"] = planes["depth"] & np.uint16(0xFF)


def millimetres(planes: Planes, _: Path) -> None:
    planes["depth"] = centimetres(scene().z / 10)


def mirrored(planes: Planes, _: Path) -> None:
    planes["depth"] = planes["depth"][:, ::-1].copy()


def no_sky(planes: Planes, _: Path) -> None:
    planes["depth"][SKY] = 65534


def merged_vehicles(planes: Planes, _: Path) -> None:
    planes["tracks"] = planes["tracks"] // np.uint8(2)


def other_focal_length(_: Planes, variation: Path) -> None:
    write_intrinsics(variation, CAMERA, Intrinsics(fx=80.0, fy=72.0, cx=32.5, cy=23.5))


def no_half_pixel(_: Planes, variation: Path) -> None:
    write_intrinsics(variation, CAMERA, Intrinsics(fx=74.0, fy=72.0, cx=32.0, cy=23.0))


def left_camera(_: Planes, variation: Path) -> None:
    write_intrinsics(variation, CAMERA, OTHER_CAMERA)


@pytest.mark.parametrize(
    "mistake",
    [
        ray_length,
        low_bytes,
        millimetres,
        mirrored,
        no_sky,
        merged_vehicles,
        other_focal_length,
        no_half_pixel,
        left_camera,
    ],
)
def test_the_check_would_notice(folder: Path, mistake: Callable[[Planes, Path], None]) -> None:
    planes = planes_of(scene())
    mistake(planes, folder / "Scene01" / "15-deg-left")
    write_frame(folder, planes)
    record = Vkitti2Source(folder).read(REFERENCE)
    with pytest.raises(AssertionError):
        check(record)


def test_normals_need_to_know_that_depth_is_in_centimetres(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = vkitti2.normals_from_depth
    monkeypatch.setattr(vkitti2, "normals_from_depth", lambda *args, step: compute(*args))
    record = Vkitti2Source(folder).read(REFERENCE)
    with pytest.raises(AssertionError):
        check(record)


def test_references_are_sorted(folder: Path) -> None:
    planes = planes_of(scene())
    others = [
        "Scene20/sunset/Camera_0/00003",
        "Scene01/clone/Camera_0/00010",
        "Scene01/15-deg-left/Camera_0/00002",
        "Scene01/15-deg-left/Camera_1/00001",
    ]
    for reference in others:
        write_frame(folder, planes, reference)
    for ignored in ("notes.txt", "Scene01/colors.txt", "Scene02/fog/pose.txt", "Scene1/fog/frames/rgb/Camera_0/x.jpg"):
        (folder / ignored).parent.mkdir(parents=True, exist_ok=True)
        (folder / ignored).write_text("")
    assert list(Vkitti2Source(folder).references()) == sorted([REFERENCE, *others])


@pytest.mark.parametrize(
    ("part", "references", "evidence"),
    [
        (
            "",
            ["Scene01/15-deg-left/Camera_1/00000", "Scene20/fog/Camera_0/00003"],
            "Scene01/15-deg-left/frames/rgb has",
        ),
        ("Scene01", ["15-deg-left/Camera_1/00000"], "15-deg-left/frames/rgb has"),
        ("Scene01/15-deg-left", ["Camera_1/00000"], "frames/rgb has"),
    ],
)
def test_it_is_found_whichever_part_is_given(folder: Path, part: str, references: list[str], evidence: str) -> None:
    write_frame(folder, planes_of(scene()), "Scene20/fog/Camera_0/00003")
    source = Vkitti2Source(folder / part)
    assert list(source.references()) == references
    assert len({source.key(reference) for reference in references}) == len(references)
    assert Vkitti2Source.recognise(folder / part) == f"{evidence} Camera_1"
    check(source.read(references[0]))


def apart(folder: Path) -> Path:
    """Each archive in a folder of its name, side by side."""
    root = folder.with_name("apart")
    variation = Path("Scene01/15-deg-left")
    for archive, part in {
        "rgb": "frames/rgb",
        "depth": "frames/depth",
        "instanceSegmentation": "frames/instanceSegmentation",
        "textgt": "intrinsic.txt",
    }.items():
        target = root / f"vkitti_2.0.3_{archive}" / variation / part
        target.parent.mkdir(parents=True)
        (folder / variation / part).rename(target)
    return root


def test_archives_may_be_unpacked_into_folders_of_their_own(folder: Path) -> None:
    whole = list(Vkitti2Source(folder).references())
    root = apart(folder)
    source = Vkitti2Source(root)
    assert list(source.references()) == whole == [REFERENCE]
    assert source.key(REFERENCE) == "scene01__15-deg-left__camera_1__00000"
    assert Vkitti2Source.recognise(root) == "vkitti_2.0.3_rgb/Scene01/15-deg-left/frames/rgb has Camera_1"
    check(source.read(REFERENCE))
    assert source.passed_over() == {}
    depth = root / "vkitti_2.0.3_depth/Scene01/15-deg-left/frames/depth/Camera_1/depth_00000.png"
    depth.unlink()
    with pytest.raises(DataError, match="missing") as caught:
        source.read(REFERENCE)
    assert caught.value.where == depth


def test_what_no_image_needs_is_counted(folder: Path) -> None:
    variation = folder / "Scene01/15-deg-left"
    used = ("classSegmentation/Camera_0/classgt_00000.png", "backwardSceneFlow/Camera_1/sceneFlow_00000.png")
    names = [f"frames/{name}" for name in used] + ["pose.txt"]
    for name in names:
        (variation / name).parent.mkdir(parents=True, exist_ok=True)
        (variation / name).touch()
    assert Vkitti2Source(folder).passed_over() == {}
    # An image that is missing takes its labels with it.
    for name in ("depth/Camera_1/depth_00001.png", "instanceSegmentation/Camera_1/instancegt_00001.png"):
        (variation / "frames" / name).touch()
    (variation / "frames/rgb/Camera_1/rgb_00000.png").touch()
    (folder / "vkitti_2.0.3_rgb.tar").touch()
    counts = {reason: kept.count for reason, kept in Vkitti2Source(folder).passed_over().items()}
    assert counts == {"files ending in .png": 3, "files ending in .tar": 1}
    assert Vkitti2Source(folder / "Scene01").passed_over()["files ending in .png"].count == 3


def test_photos_in_such_folders_are_not_taken_for_it(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "Scene01/a.jpg", "Scene01/clone/a.jpg")
    for path in (tmp_path / "photos", tmp_path / "photos" / "Scene01", tmp_path / "photos" / "Scene01" / "a.jpg"):
        assert not Vkitti2Source.recognise(path)
    with pytest.raises(DataError, match="one folder"):
        Vkitti2Source(tmp_path / "photos")


def test_it_packs(folder: Path, tmp_path: Path) -> None:
    assert_packs(Vkitti2Source(folder), scene(), tmp_path / "packed", depth_tolerance=0.005)


@pytest.mark.parametrize("name", ["rgb", "depth", "tracks"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error_that_names_it(
    folder: Path, name: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = files(folder)[name]
    source = Vkitti2Source(folder)
    DAMAGES[damage](path)
    if (name, damage) == ("rgb", "another kind"):
        check(source.read(REFERENCE))
        return
    with pytest.raises(DataError) as caught:
        source.read(REFERENCE)
    # Where the image is the one of another size, the planes do not fit it.
    assert caught.value.where == (files(folder)["depth"] if (name, damage) == ("rgb", "another size") else path)
    assert machine_fault(caught.value) is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["rgb", "depth", "tracks", "intrinsics"])
def test_a_fault_of_the_disk_is_the_machines(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = (files(folder) | {"intrinsics": folder / "Scene01" / "15-deg-left" / "intrinsic.txt"})[name]
    fail_to_read(path, monkeypatch)
    with pytest.raises(DataError) as caught:
        Vkitti2Source(folder).read(REFERENCE)
    assert caught.value.where == path
    assert machine_fault(caught.value).errno == errno.EIO


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no line of this frame"),
        ("frame cameraID K K K K\n0 0 74 72 32 23\n1 1 74 72 32 23\n", "no line of this frame"),
        ("frame cameraID K K K K\n0 1 74 72 32\n", "not enough values"),
        ("frame cameraID K K K K\n0 1 74 72 32 x\n", "'x'"),
        ("frame cameraID K K K K\n0 1 -74 72 32 23\n", "-74"),
        ("frame cameraID K K K K\n0 1 74 72 nan 23\n", "nan"),
        ("frame cameraID K K K K\n0 1 74 72 32 2\N{SUPERSCRIPT THREE}\n", "ascii"),
    ],
)
def test_a_damaged_file_of_intrinsics_is_an_error_that_names_it(folder: Path, text: str, message: str) -> None:
    path = folder / "Scene01" / "15-deg-left" / "intrinsic.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(DataError, match=message) as caught:
        Vkitti2Source(folder).read(REFERENCE)
    assert str(path) in str(caught.value)


def test_other_sizes_need_the_file_of_intrinsics(folder: Path) -> None:
    (folder / "Scene01" / "15-deg-left" / "intrinsic.txt").unlink()
    with pytest.raises(DataError, match=r"(?s)intrinsic\.txt.*64 x 48.*textgt"):
        Vkitti2Source(folder).read(REFERENCE)
