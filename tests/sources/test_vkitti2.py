from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sources.planes import IDENTITIES, PlaneScene, assert_matches
from sources.planes import scene as plane_scene

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError, UsageError
from fastssl.shards import pack, read_samples
from fastssl.sources import vkitti2
from fastssl.sources.vkitti2 import Vkitti2Source

HEIGHT, WIDTH = 48, 64
CAMERA = Intrinsics(fx=74.0, fy=72.0, cx=32.5, cy=23.5)
DATASETS_CAMERA = Intrinsics(fx=725.0087, fy=725.0087, cx=621.0, cy=187.5)
REFERENCE = "Scene01/15-deg-left/Camera_1/00000"
SKY = (slice(0, 4), slice(0, 6))
Planes = dict[str, NDArray[np.generic]]


def scene(camera: Intrinsics = CAMERA, height: int = HEIGHT, width: int = WIDTH) -> PlaneScene:
    """12 to 32 m away, as streets are."""
    return plane_scene(camera, height, width, scale=8)


def centimetres(metres: NDArray[np.float64]) -> NDArray[np.uint16]:
    stored = np.round(metres * 100).astype(np.uint16)
    stored[SKY] = 65535
    return stored


def planes_of(view: PlaneScene) -> Planes:
    """What a frame's files hold. Numbers of vehicles are small; neighbours differ by one."""
    tracks = np.select([view.instance == name for name in IDENTITIES], range(4)).astype(np.uint8)
    return {"rgb": np.full((*view.z.shape, 3), 90, np.uint8), "depth": centimetres(view.z), "tracks": tracks}


def files(root: Path, reference: str = REFERENCE) -> dict[str, Path]:
    scene_name, variation, camera, number = reference.split("/")
    frames = root / scene_name / variation / "frames"
    return {
        "rgb": frames / "rgb" / camera / f"rgb_{number}.jpg",
        "depth": frames / "depth" / camera / f"depth_{number}.png",
        "tracks": frames / "instanceSegmentation" / camera / f"instancegt_{number}.png",
    }


def write_frame(root: Path, planes: Planes, reference: str = REFERENCE) -> None:
    for name, path in files(root, reference).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(planes[name])
        if name == "tracks":
            image.putpalette([value for number in range(256) for value in (number * 37 % 256, number, 255 - number)])
            assert image.mode == "P"
        image.save(path)


def write_intrinsics(folder: Path, *cameras: Intrinsics) -> Path:
    """The first pixel's centre is at 0, so half a pixel is missing. The right camera is the second line of a frame."""
    lines = ["frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"]
    for frame in range(3):
        for number, camera in enumerate(cameras):
            lines.append(f"{frame} {number} {camera.fx} {camera.fy} {camera.cx - 0.5} {camera.cy - 0.5}")
    path = folder / "intrinsic.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


OTHER_CAMERA = Intrinsics(fx=30.0, fy=31.0, cx=32.0, cy=24.0)


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
    source = Vkitti2Source(folder)
    assert list(source.references()) == sorted([REFERENCE, *others])
    keys = {source.key(reference) for reference in source.references()}
    assert len(keys) == 5
    assert all(re.fullmatch(r"[0-9a-z_-]{1,89}", key) for key in keys)


def test_layouts_are_told_apart(folder: Path, tmp_path: Path) -> None:
    assert Vkitti2Source.recognise(folder)
    assert not Vkitti2Source.recognise(folder / "Scene01")
    assert not Vkitti2Source.recognise(tmp_path / "missing")
    (tmp_path / "photos" / "Scene01").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "Scene01" / "a.jpg")
    assert not Vkitti2Source.recognise(tmp_path / "photos")
    assert not Vkitti2Source.recognise(tmp_path / "photos" / "Scene01" / "a.jpg")
    with pytest.raises(DataError, match="one folder"):
        Vkitti2Source(tmp_path / "photos")


def test_there_are_no_subsets(folder: Path) -> None:
    assert Vkitti2Source(folder).subset is None
    with pytest.raises(UsageError, match="vkitti2"):
        Vkitti2Source(folder, subset="train")


def test_it_pickles(folder: Path) -> None:
    source = pickle.loads(pickle.dumps(Vkitti2Source(folder)))
    assert source.labelled
    check(source.read(REFERENCE))


def test_it_packs(folder: Path, tmp_path: Path) -> None:
    manifest = pack(Vkitti2Source(folder), tmp_path / "packed", size=32)
    assert (manifest.samples, manifest.layout, manifest.domain) == (1, "vkitti2", "synthetic")
    (sample,) = read_samples(tmp_path / "packed")
    assert sample.key == "scene01__15-deg-left__camera_1__00000"
    assert 0.9 < sample.valid.mean() < 1
    assert sample.edge.any()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def shrink(path: Path) -> None:
    with Image.open(path) as image:
        smaller = image.resize((WIDTH - 1, HEIGHT), Image.Resampling.NEAREST)
    smaller.save(path)


def gray(path: Path) -> None:
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(path)


@pytest.mark.parametrize("name", ["rgb", "depth", "tracks"])
@pytest.mark.parametrize("damage", [Path.unlink, shorten, lambda path: path.write_bytes(b""), shrink])
def test_a_damaged_file_is_an_error_that_names_it(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    path = files(folder)[name]
    source = Vkitti2Source(folder)
    damage(path)
    with pytest.raises(DataError) as caught:
        source.read(REFERENCE)
    # Where the image is the one of another size, the planes do not fit it.
    blamed = path if not (name == "rgb" and damage is shrink) else files(folder)["depth"]
    assert str(blamed) in str(caught.value)


@pytest.mark.parametrize("name", ["depth", "tracks"])
def test_a_plane_of_another_kind_is_an_error_that_names_it(folder: Path, name: str) -> None:
    gray(files(folder)[name])
    with pytest.raises(DataError, match="mode L") as caught:
        Vkitti2Source(folder).read(REFERENCE)
    assert files(folder)[name].name in str(caught.value)


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
