"""MOVi as TFDS writes it: records by TensorBoard's writer, messages by protocol buffers' own library."""

from __future__ import annotations

import pickle
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation
from sources.planes import IDENTITIES, PlaneScene, angles, assert_matches
from sources.planes import scene as plane_scene
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c as tensorboards_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError, UsageError
from fastssl.geometry import pixel_rays
from fastssl.shards import pack, read_samples
from fastssl.sources import RenderSource
from fastssl.sources.movi import MoviSource, crc32c

HEIGHT, WIDTH, FRAMES = 48, 64, 2
FOCAL_LENGTH, SENSOR_WIDTH = 35.0, 32.0  # those of MOVi-A
CAMERA = Intrinsics(
    fx=FOCAL_LENGTH / SENSOR_WIDTH * WIDTH, fy=FOCAL_LENGTH / SENSOR_WIDTH * WIDTH, cx=WIDTH / 2, cy=HEIGHT / 2
)
NO_NORMAL, TOO_FAR = (5, 6), (30, 20)
Features = dict[str, list[bytes] | list[float] | list[int]]


def example_class() -> Any:
    """`tf.train.Example` from its definition in tensorflow/core/example."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    for name, kind in (
        ("BytesList", kinds.TYPE_BYTES),
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        list_type = f".tf.{''.join(part.title() for part in name.split('_'))}"
        feature.field.add(name=name, number=number, type=kinds.TYPE_MESSAGE, type_name=list_type, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, type_name=".tf.Feature")
    features.field.add(
        name="feature",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".tf.Features.FeatureEntry",
        label=kinds.LABEL_REPEATED,
    )
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=kinds.TYPE_MESSAGE, type_name=".tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


Example = example_class()


def serialised(features: Mapping[str, Any]) -> bytes:
    example = Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        kinds = {bytes: feature.bytes_list, float: feature.float_list, int: feature.int64_list}
        kinds[type(values[0])].value.extend(values)
    data: bytes = example.SerializeToString()
    return data


def png(pixels: NDArray[Any]) -> bytes:
    """Gray or RGB of 8 or 16 bits; rows are stored as differences to the one above, as encoders do where it pays."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    rows_of_bytes = np.frombuffer(rows, np.uint8).reshape(height, -1)
    up = np.diff(rows_of_bytes, axis=0, prepend=np.zeros((1, rows_of_bytes.shape[1]), np.uint8))
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), up], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(filtered.tobytes()), b"IEND": b""}
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(metres: NDArray[np.float32]) -> bytes:
    data = BytesIO()
    Image.fromarray(metres).save(data, format="TIFF")
    return data.getvalue()


def looking(position: tuple[float, float, float], target: tuple[float, float, float]) -> NDArray[np.float64]:
    """Axes of a camera in a world whose z points up: its right, down and forward, one a row."""
    forward = np.subtract(target, position)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


POSES = (looking((7.5, -6.6, 5.4), (0, 0, 0)), looking((-9.0, 1.0, 0.6), (0.3, -0.2, 1.0)))


def quaternion(axes: NDArray[np.float64]) -> list[float]:
    """Of Blender's camera (x right, y up, looking along -z) with these axes; w first."""
    right, down, forward = axes
    to_world = np.stack([right, -down, -forward], axis=1)
    x, y, z, w = Rotation.from_matrix(to_world).as_quat()
    return [float(w), float(x), float(y), float(z)]


def scene(frame: int) -> PlaneScene:
    return plane_scene(CAMERA, HEIGHT, WIDTH, scale=1 + frame)


def codes(normal: NDArray[np.float64]) -> NDArray[np.uint16]:
    return ((normal.clip(-1, 1) + 1) * 65535 / 2).astype(np.uint16)


def features_of(frames: int = FRAMES, number: int = 0) -> Features:
    """A video: what `movi_*.py` of Kubric makes of the scenes that are seen in each frame."""
    scenes = [scene(frame) for frame in range(frames)]
    distances = np.stack([view.ray_length for view in scenes])
    distances[:, *TOO_FAR] = 70
    low, high = np.float32(distances.min()), np.float32(distances.max())
    worlds = [codes(view.normal @ axes) for view, axes in zip(scenes, POSES, strict=False)]
    for world in worlds:
        world[NO_NORMAL] = 32767
    segmentations = [sum((view.instance == name) * i for i, name in enumerate(IDENTITIES)) for view in scenes]
    pictures = [np.full((HEIGHT, WIDTH, 3), (10 * number, frame, 200), np.uint8) for frame in range(frames)]
    return {
        "metadata/video_name": [b"1234"],
        "metadata/num_frames": [frames],
        "metadata/depth_range": [float(low), float(high)],
        "camera/focal_length": [FOCAL_LENGTH],
        "camera/sensor_width": [SENSOR_WIDTH],
        "camera/field_of_view": [0.85755605],
        "camera/positions": [0.0] * 3 * frames,
        "camera/quaternions": [value for axes in POSES[:frames] for value in quaternion(axes)],
        "instances/bboxes/ragged_row_lengths_0": [3, 0, 200],
        "forward_flow": np.random.default_rng(0).integers(0, 65536, 500).tolist(),
        "video": [png(picture) for picture in pictures],
        "depth": [png(np.round((d - low) / (high - low) * 65535).astype(np.uint16)) for d in distances],
        "normal": [png(world) for world in worlds],
        "segmentations": [png(np.asarray(plane).astype(np.uint8)) for plane in segmentations],
    }


def write(path: Path, *videos: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for video in videos:
            writer.write(serialised(video))


TRAIN, SECOND, VALIDATION = (
    "movi_e-train.tfrecord-00000-of-00002",
    "movi_e-train.tfrecord-00001-of-00002",
    "movi_e-validation.tfrecord-00000-of-00001",
)
REFERENCE = f"{TRAIN}/00001/01"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "movi_e" / "256x256" / "1.0.0"
    root.mkdir(parents=True)
    (root / "features.json").write_text("{}")
    write(root / TRAIN, features_of(), features_of(number=1))
    write(root / SECOND, features_of(number=2))
    write(root / VALIDATION, features_of(number=3))
    return root


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
    write(folder / TRAIN, features)
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
    write(folder / TRAIN, features)
    check(MoviSource(folder).read(f"{TRAIN}/00000/01"))
    mistake(features)
    write(folder / TRAIN, features)
    record = MoviSource(folder).read(f"{TRAIN}/00000/01")
    with pytest.raises(AssertionError):
        check(record)


def test_depth_in_metres_is_told_by_its_mode(folder: Path) -> None:
    """Kubric's renderer writes float32 TIFF; Blender's background is 1e10 away."""
    features = features_of()
    distance = scene(1).ray_length.astype(np.float32)
    distance[TOO_FAR] = 1e10
    features["depth"] = [tiff(distance), tiff(distance)]
    write(folder / TRAIN, features)
    check(MoviSource(folder).read(f"{TRAIN}/00000/01"))


def test_a_range_that_the_background_stretched_leaves_no_depth(folder: Path) -> None:
    features = features_of()
    features["metadata/depth_range"] = [1.0, 1e10]
    features["depth"] = [png(np.zeros((HEIGHT, WIDTH), np.uint16))] * FRAMES
    write(folder / TRAIN, features)
    record = MoviSource(folder).read(f"{TRAIN}/00000/01")
    assert not record.depth.any()
    assert record.normal.any(axis=2).mean() > 0.99


def test_normals_that_face_away_are_not_known(folder: Path) -> None:
    features = features_of()
    normal = scene(1).normal.copy()
    normal[10:20] *= -1
    features["normal"][1] = png(codes(normal @ POSES[1]))
    write(folder / TRAIN, features)
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
    keys = {MoviSource(folder).read(reference).key for reference in MoviSource(folder).references()}
    assert len(keys) == 8
    assert all(re.fullmatch(r"[0-9a-z_-]{1,89}", key) for key in keys)


def test_an_unknown_subset_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="one of: train, validation"):
        MoviSource(folder, subset="test")


def test_layouts_are_told_apart(folder: Path, tmp_path: Path) -> None:
    assert MoviSource.recognise(folder)
    assert not MoviSource.recognise(folder.parent)
    assert not MoviSource.recognise(tmp_path / "missing")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.jpg")
    assert not MoviSource.recognise(tmp_path / "photos")
    with pytest.raises(DataError, match=r"1\.0\.0"):
        MoviSource(tmp_path / "photos")
    with pytest.raises(DataError, match="missing"):
        MoviSource(tmp_path / "missing")
    with pytest.raises(DataError):
        RenderSource(folder)


def test_it_pickles_without_the_video_read_last(folder: Path) -> None:
    source = MoviSource(folder, subset="train")
    assert source.labelled
    source.read(REFERENCE)
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert list(copy.references()) == list(source.references())
    check(copy.read(REFERENCE))


def test_it_packs(folder: Path, tmp_path: Path) -> None:
    manifest = pack(MoviSource(folder, subset="train"), tmp_path / "packed", size=32)
    assert (manifest.samples, manifest.layout, manifest.domain) == (6, "movi", "synthetic")
    samples = list(read_samples(tmp_path / "packed"))
    assert samples[3].key == "movi_e-train-00000-of-00002__00001__01"
    assert samples[3].valid.mean() > 0.99
    assert samples[3].edge.any()


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
        ("video, frame 1", replace("video", [b"no image"] * 2), "does not decode"),
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
    write(folder / TRAIN, features_of(), features)
    source = MoviSource(folder)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        source.read(REFERENCE)
    assert f"{TRAIN}: record 1" in str(caught.value)
    assert name in str(caught.value)
    check(source.read(f"{TRAIN}/00000/01"))


def flip(position: int) -> Callable[[bytearray], object]:
    def change(data: bytearray) -> None:
        data[position] ^= 0x10

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip(3), "the length of a record is damaged"),
        (flip(9), "the length of a record is damaged"),
        (flip(2000), "the data of a record is damaged"),
        (flip(-1), "the data of a record is damaged"),
        (lambda data: data.__delitem__(slice(-1, None)), "cut short"),
        (lambda data: data.__delitem__(slice(500, None)), "cut short"),
        (lambda data: data.__delitem__(slice(7, None)), "cut short"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_record(
    folder: Path, change: Callable[[bytearray], object], message: str
) -> None:
    whole = (folder / SECOND).read_bytes()
    data = bytearray(whole)
    change(data)
    (folder / SECOND).write_bytes(whole + bytes(data))
    with pytest.raises(DataError, match=message) as caught:
        MoviSource(folder).read(f"{SECOND}/00001/00")
    assert f"{SECOND}: record 1" in str(caught.value)
    assert MoviSource(folder).read(f"{SECOND}/00000/00")


def test_a_file_that_is_cut_short_ends_the_references(folder: Path) -> None:
    data = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"{SECOND}: record 0"):
        list(MoviSource(folder).references())


@pytest.mark.parametrize("example", [b"\x0a\xff", b"\x0b", b"\xff" * 20, b"\x0a\x06\x0a\x04\x0a\x02\xff\xfe"])
def test_a_record_of_something_else_is_refused(folder: Path, example: bytes) -> None:
    with (folder / TRAIN).open("wb") as file:
        RecordWriter(file).write(example)
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


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),  # this and the next two: RFC 3720, B.4
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_checksums_are_those_of_the_standard(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@pytest.mark.parametrize("size", [1, 2, 3, 5, 4095, 4096, 4097, 8191, 30011])
def test_checksums_of_any_length_are_those_of_a_loop_over_bytes(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert crc32c(data) == tensorboards_crc32c(data)
