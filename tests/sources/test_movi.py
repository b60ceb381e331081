from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sources.pictures import png
from sources.planes import angles, assert_matches, assert_packs
from sources.trees.movi import (
    FOCAL_LENGTH,
    FRAMES,
    HEIGHT,
    NO_NORMAL,
    POSES,
    REFERENCE,
    SECOND,
    TOO_FAR,
    TRAIN,
    VALIDATION,
    WIDTH,
    Features,
    codes,
    features_of,
    quaternion,
    scene,
    tiff,
    write_tree,
    write_videos,
)
from sources.trees.tfrecord import write_records

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.geometry import pixel_rays
from fastssl.sources.movi import MoviSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tree(tmp_path)


def check(record: Record, frame: int = 1) -> None:
    """Depth to half a step of its codes; normals far better than eight bits would give them."""
    view = scene(frame)
    view.normal[NO_NORMAL], view.z[TOO_FAR] = 0, 0
    assert_matches(record, view, depth_tolerance=0.0006, normal_degrees=0.01, min_known=0.999)
    assert not record.normal[NO_NORMAL].any()
    assert record.depth[TOO_FAR] == 0
    assert record.normal[TOO_FAR].any()


@pytest.mark.parametrize("frame", [0, 1])
def test_frames_show_the_scene(folder: Path, frame: int) -> None:
    record = MoviSource(folder).read(f"{TRAIN}/00001/{frame:02d}")
    check(record, frame)
    assert (record.image == [10, frame, 200]).all()
    assert record.key == f"movi_e-train-00000-of-00002__00001__{frame:02d}"
    assert np.unique(record.instance).tolist() == [0, 1, 2, 3]


def test_normals_agree_with_the_slopes_of_the_depth(folder: Path) -> None:
    """Whatever the conventions are: planes through the points themselves, away from contours."""
    record = MoviSource(folder).read(REFERENCE)
    points = pixel_rays(record.camera, HEIGHT, WIDTH) * record.depth[..., None]
    across, down = points[2:-2, 4:] - points[2:-2, :-4], points[4:, 2:-2] - points[:-4, 2:-2]
    normal = np.cross(down, across)
    windows = np.lib.stride_tricks.sliding_window_view(record.instance, (5, 5)).reshape(*normal.shape[:2], 25)
    flat = (windows == windows[..., :1]).all(axis=2)
    flat[TOO_FAR[0] - 4 : TOO_FAR[0] + 1, TOO_FAR[1] - 4 : TOO_FAR[1] + 1] = False
    flat[NO_NORMAL[0] - 2, NO_NORMAL[1] - 2] = False
    assert flat.mean() > 0.6
    assert angles(normal, record.normal[2:-2, 2:-2])[flat].max() < 1


@pytest.mark.parametrize(
    ("world", "seen"), [((0, -1, 0), (0, 0, -1)), ((0, -0.6, 0.8), (0, -0.8, -0.6)), ((-0.6, -0.8, 0), (-0.6, 0, -0.8))]
)
def test_a_camera_turned_up_a_right_angle_looks_along_the_worlds_y(
    folder: Path, world: tuple[float, ...], seen: tuple[float, ...]
) -> None:
    """Blender's camera looks down at rest; turned by 90 degrees about x it looks along y, and z is up."""
    features = features_of(1)
    features["camera/quaternions"] = [np.sqrt(0.5).item(), np.sqrt(0.5).item(), 0.0, 0.0]
    features["normal"] = [png(np.tile(codes(np.array(world)), (HEIGHT, WIDTH, 1)))]
    write_videos(folder / TRAIN, features)
    record = MoviSource(folder).read(f"{TRAIN}/00000/00")
    assert np.abs(record.normal[HEIGHT // 2, WIDTH // 2] - seen).max() < 1e-4


def wrong_camera(features: Features) -> None:
    features["camera/focal_length"] = [1.1 * FOCAL_LENGTH]


def planar_z(features: Features) -> None:
    low, high = features["metadata/depth_range"]
    z = scene(1).z
    features["depth"][1] = png(np.round((z - low) / (high - low) * 65535).astype(np.uint16))


def low_bytes(features: Features) -> None:
    with Image.open(BytesIO(features["depth"][1])) as image:
        features["depth"][1] = png(np.array(image) & 0xFF)


def high_bytes(features: Features) -> None:
    features["normal"][1] = png(codes(scene(1).normal @ POSES[1]) & 0xFF00)


def camera_frame(features: Features) -> None:
    features["normal"][1] = png(codes(scene(1).normal))


def mirrored(features: Features) -> None:
    features["normal"][1] = png(codes((scene(1).normal * [-1, 1, 1]) @ POSES[1]))


def up_and_down(features: Features) -> None:
    features["normal"][1] = png(codes((scene(1).normal * [1, -1, 1]) @ POSES[1]))


def w_last(features: Features) -> None:
    w, x, y, z = quaternion(POSES[1])
    features["camera/quaternions"][4:] = [x, y, z, w]


def inverse_rotation(features: Features) -> None:
    w, x, y, z = quaternion(POSES[1])
    features["camera/quaternions"][4:] = [w, -x, -y, -z]


@pytest.mark.parametrize(
    "mistake",
    [
        wrong_camera,
        planar_z,
        low_bytes,
        high_bytes,
        camera_frame,
        mirrored,
        up_and_down,
        w_last,
        inverse_rotation,
    ],
)
def test_the_check_would_notice(folder: Path, mistake: Callable[[Features], None]) -> None:
    features = features_of()
    write_videos(folder / TRAIN, features)
    check(MoviSource(folder).read(f"{TRAIN}/00000/01"))
    mistake(features)
    write_videos(folder / TRAIN, features)
    record = MoviSource(folder).read(f"{TRAIN}/00000/01")
    with pytest.raises(AssertionError):
        check(record)


def test_depth_in_metres_is_told_by_its_mode(folder: Path) -> None:
    """Kubric's renderer writes float32 TIFF; Blender's background is 1e10 away."""
    features = features_of()
    distance = scene(1).ray_length.astype(np.float32)
    distance[TOO_FAR] = 1e10
    features["depth"] = [tiff(distance), tiff(distance)]
    write_videos(folder / TRAIN, features)
    check(MoviSource(folder).read(f"{TRAIN}/00000/01"))


def test_a_range_that_the_background_stretched_leaves_no_depth(folder: Path) -> None:
    features = features_of()
    features["metadata/depth_range"] = [1.0, 1e10]
    features["depth"] = [png(np.zeros((HEIGHT, WIDTH), np.uint16))] * FRAMES
    write_videos(folder / TRAIN, features)
    record = MoviSource(folder).read(f"{TRAIN}/00000/01")
    assert not record.depth.any()
    assert record.normal.any(axis=2).mean() > 0.99


def test_normals_that_face_away_are_not_known(folder: Path) -> None:
    features = features_of()
    normal = scene(1).normal.copy()
    normal[10:20] *= -1
    features["normal"][1] = png(codes(normal @ POSES[1]))
    write_videos(folder / TRAIN, features)
    record = MoviSource(folder).read(f"{TRAIN}/00000/01")
    assert not record.normal[10:20].any()
    assert record.normal[20:].any(axis=2).all()


def test_references_come_file_by_file(folder: Path) -> None:
    frames = [f"{TRAIN}/00000/00", f"{TRAIN}/00000/01", f"{TRAIN}/00001/00", f"{TRAIN}/00001/01"]
    second = [f"{SECOND}/00000/00", f"{SECOND}/00000/01"]
    validation = [f"{VALIDATION}/00000/00", f"{VALIDATION}/00000/01"]
    assert list(MoviSource(folder).references()) == frames + second + validation
    assert list(MoviSource(folder, subset="train").references()) == frames + second
    assert list(MoviSource(folder, subset="validation").references()) == validation


def test_a_folder_above_is_the_same_dataset(folder: Path) -> None:
    """`folder` is movi_e/256x256/1.0.0."""
    keys = [MoviSource(folder).key(reference) for reference in MoviSource(folder).references()]
    for above, version in ((0, "256x256/1.0.0"), (1, "movi_e/256x256/1.0.0")):
        path = folder.parents[above + 1]
        assert MoviSource.recognise(path) == f"{version} has {TRAIN}"
        source = MoviSource(path)
        assert source.path == path
        assert [source.key(reference) for reference in source.references()] == keys
        check(source.read(REFERENCE))
        assert source.passed_over() == {}
    assert MoviSource.recognise(folder) == f"it has {TRAIN}"


def test_of_several_versions_one_is_asked_for(folder: Path) -> None:
    top = folder.parents[2]
    for other in ("movi_e/128x128/1.0.0", "movi_a/128x128/1.0.0"):
        (top / other).mkdir(parents=True)
        write_videos(top / other / TRAIN, features_of(1))
    assert MoviSource.recognise(top) == f"movi_a/128x128/1.0.0 has {TRAIN}, and 2 more"
    with pytest.raises(DataError, match="several versions") as caught:
        MoviSource(top)
    assert caught.value.seen == "movi_a/128x128/1.0.0, movi_e/128x128/1.0.0, movi_e/256x256/1.0.0"
    with pytest.raises(DataError, match=r"128x128/1\.0\.0, 256x256/1\.0\.0"):
        MoviSource(top / "movi_e")
    assert len(list(MoviSource(top / "movi_a").references())) == 1


def test_what_is_no_file_of_the_version_is_counted(folder: Path) -> None:
    for name in ("dataset_info.json", "instances-material_label.labels.txt"):
        (folder / name).touch()
    assert MoviSource(folder).passed_over() == MoviSource(folder, subset="train").passed_over() == {}
    (folder / f"{TRAIN}_.gstmp").touch()
    (folder.parent / "notes.txt").touch()
    os.mkfifo(folder / "movi_e-test.tfrecord-00000-of-00001")
    for path, below in ((folder, ""), (folder.parents[1], "256x256/1.0.0/")):
        passed = {reason: (one.count, one.first) for reason, one in MoviSource(path).passed_over().items()}
        notes = {"files ending in .txt": (1, ["256x256/notes.txt"])} if below else {}
        assert passed == notes | {
            "files ending in .gstmp": (1, [f"{below}{TRAIN}_.gstmp"]),
            "special files (pipes, sockets, devices)": (1, [f"{below}movi_e-test.tfrecord-00000-of-00001"]),
        }


def test_other_folders_are_not_taken_for_it(folder: Path, tmp_path: Path) -> None:
    deeper = tmp_path / "1" / "movi_e" / "256x256"
    deeper.mkdir(parents=True)
    for path in (tmp_path / "1", tmp_path / "missing"):
        assert MoviSource.recognise(path) is None
        with pytest.raises(DataError, match=rf"no TFRecord files(.|\n)*{path.name}(.|\n)*1\.0\.0"):
            MoviSource(path)


def test_it_pickles_without_the_video_read_last(folder: Path) -> None:
    source = MoviSource(folder, subset="train")
    assert source.labelled
    source.read(REFERENCE)
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert list(copy.references()) == list(source.references())
    check(copy.read(REFERENCE))


def test_it_packs(tmp_path: Path) -> None:
    (tmp_path / "movi").mkdir()
    write_videos(tmp_path / "movi" / TRAIN, features_of(1), features_of(1, number=1))
    manifest = assert_packs(MoviSource(tmp_path / "movi"), scene(0), tmp_path / "packed", depth_tolerance=0.0006)
    assert manifest.samples == 2


def replace(name: str, value: Any) -> Callable[[Features], None]:
    def change(features: Features) -> None:
        features[name] = value

    return change


def forget(name: str) -> Callable[[Features], None]:
    return lambda features: features.pop(name)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        *[
            (name, forget(name), "lacks a feature")
            for name in ("video", "depth", "normal", "segmentations", "camera/quaternions", "metadata/depth_range")
        ],
        ("depth", lambda features: features["depth"].pop(), "unlike length"),
        ("camera/quaternions", replace("camera/quaternions", [1.0, 0.0, 0.0, 0.0]), "16 bytes"),
        ("camera/quaternions", replace("camera/quaternions", [float("nan")] * 8), "finite"),
        ("", replace("camera/quaternions", [0.0] * 8), "no sense"),
        ("", replace("camera/focal_length", [0.0]), "no sense"),
        ("", replace("metadata/depth_range", [5.0, 1.0]), "no sense"),
        ("metadata/depth_range", replace("metadata/depth_range", [1, 2]), "lacks a feature"),
        ("video, frame 1", replace("video", [b"no image"] * 2), "cannot be read"),
        ("depth, frame 1", replace("depth", [features_of()["depth"][0][:-300]] * 2), "does not decode"),
        ("depth, frame 1", replace("depth", [png(np.zeros((HEIGHT, WIDTH), np.uint8))] * 2), "mode L"),
        ("normal, frame 1", replace("normal", [png(np.zeros((HEIGHT, WIDTH, 3), np.uint8))] * 2), "mode RGB"),
        ("normal, frame 1", replace("normal", [png(np.zeros((HEIGHT, 9, 3), np.uint16))] * 2), "9 x 48"),
        ("segmentations, frame 1", replace("segmentations", [png(np.zeros((HEIGHT, WIDTH), np.uint16))] * 2), "I;16"),
    ],
)
def test_an_odd_video_is_an_error_that_names_record_and_feature(
    folder: Path, name: str, change: Callable[[Features], object], message: str
) -> None:
    features = features_of()
    change(features)
    write_videos(folder / TRAIN, features_of(), features)
    source = MoviSource(folder)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        source.read(REFERENCE)
    assert f"{TRAIN}: record 1" in str(caught.value)
    assert name in str(caught.value)
    check(source.read(f"{TRAIN}/00000/01"))


def test_a_file_that_is_cut_short_ends_the_references(folder: Path) -> None:
    data = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"{SECOND}: record 0"):
        list(MoviSource(folder).references())


def test_a_damaged_record_costs_its_frames(folder: Path) -> None:
    data = bytearray((folder / TRAIN).read_bytes())
    data[-5] ^= 0x10
    (folder / TRAIN).write_bytes(data)
    with pytest.raises(DataError, match=f"(?s)data of a record is damaged.*{TRAIN}: record 1"):
        MoviSource(folder).read(f"{TRAIN}/00001/00")
    check(MoviSource(folder).read(f"{TRAIN}/00000/01"))


def test_a_record_of_something_else_is_refused(folder: Path) -> None:
    write_records(folder / TRAIN, b"\x0a\xff")
    with pytest.raises(DataError, match=f"(?s)not a tf.train.Example.*{TRAIN}: record 0"):
        MoviSource(folder).read(f"{TRAIN}/00000/00")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (f"{TRAIN}/00002/00", "no such record"),
        (f"{TRAIN}/00000/02", "no such frame"),
        ("movi_e-train.tfrecord-00009-of-00002/00000/00", "cannot be read"),
        (TRAIN, "not of this dataset"),
    ],
)
def test_what_is_not_there_is_an_error(folder: Path, reference: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MoviSource(folder).read(reference)
