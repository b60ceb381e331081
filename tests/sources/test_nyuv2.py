from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat
from scipy.ndimage import distance_transform_edt
from sources.damage import fail_to_read
from sources.planes import PlaneScene, angles, assert_matches, assert_packs, assert_wall, wall
from sources.trees.nyuv2 import CUT, FULL, IDENTITIES, REGION, UNKNOWN, cut, frame, full_view, write_frames, write_tree

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
from fastssl.faults import machine_fault
from fastssl.geometry import edge_of
from fastssl.sources import nyuv2
from fastssl.sources.nyuv2 import FRAMES, SPLITS, NyuV2Source


@pytest.fixture(scope="module")
def view() -> PlaneScene:
    return full_view()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames; not to be written to."""
    return write_tree(tmp_path_factory.mktemp("nyu"))


def check(record: Record, view: PlaneScene, number: int = 0) -> None:
    assert_matches(record, cut(view), min_known=0.999)
    assert record.depth is not None
    assert not record.depth[56:60, 160:170].any()
    assert (record.depth == 0).sum() == 40
    assert np.array_equal(record.image, frame(number)["images"][REGION])


def test_a_frame_is_the_valid_region_with_all_its_labels(dataset: Path, view: PlaneScene) -> None:
    source = NyuV2Source(dataset)
    assert (source.layout, source.domain, source.labelled, source.subset) == ("nyuv2", "real", True, None)
    assert list(source.references()) == ["0001", "0002", "0003"]
    record = source.read("0002")
    assert record.key == source.key("0002") == "0002"
    assert record.image.shape == (427, 561, 3)
    check(record, view, 1)


@pytest.mark.parametrize(("subset", "numbers"), [("train", ["0001", "0003"]), ("test", ["0002"])])
def test_subsets_are_those_of_the_splits_which_count_from_1(
    dataset: Path, view: PlaneScene, subset: str, numbers: list[str]
) -> None:
    source = NyuV2Source(dataset / FRAMES, subset=subset)
    assert list(source.references()) == numbers
    record = source.read(numbers[-1])
    assert np.array_equal(record.image, frame(int(numbers[-1]) - 1)["images"][REGION])


def test_only_one_frame_is_read_at_a_time(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    original = h5py.Dataset.__getitem__

    def recorded(self: h5py.Dataset, index: Any, *rest: Any) -> Any:
        taken.append(index)
        return original(self, index, *rest)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", recorded)
    source = NyuV2Source(dataset)
    assert not taken
    source.read("0003")
    assert taken == [2] * 4


def with_frame(tmp_path: Path, **planes: NDArray[Any]) -> Record:
    write_frames(tmp_path / FRAMES, planes)
    return NyuV2Source(tmp_path).read("0001")


def test_pixel_centres_taken_as_whole_numbers_would_be_noticed(tmp_path: Path, view: PlaneScene) -> None:
    record = with_frame(tmp_path, **frame())
    check(record, view)
    with pytest.raises(AssertionError, match="cx"):
        check(replace(record, camera=replace(CUT, cx=CUT.cx + 0.5)), view)


def test_another_datasets_camera_would_be_noticed(
    tmp_path: Path, view: PlaneScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenenet = Intrinsics(fx=554.256, fy=579.411, cx=320 - 40, cy=240 - 44)
    monkeypatch.setattr(nyuv2, "CAMERA", scenenet)
    record = with_frame(tmp_path, **frame())
    with pytest.raises(AssertionError, match="normal is off"):
        check(replace(record, camera=CUT), view)


def test_axes_in_matlabs_order_would_be_noticed(tmp_path: Path, view: PlaneScene) -> None:
    mirrored = {name: plane[:, ::-1] for name, plane in frame().items()}
    with pytest.raises(AssertionError):
        check(with_frame(tmp_path, **mirrored), view)
    with h5py.File(tmp_path / FRAMES, "r+") as file:
        depths = file["depths"][:].transpose(0, 2, 1)
        del file["depths"]
        file["depths"] = depths
    with pytest.raises(DataError, match="depths"):
        NyuV2Source(tmp_path)


def test_ray_length_taken_for_depth_would_be_noticed(tmp_path: Path, view: PlaneScene) -> None:
    planes = frame()
    planes["depths"] = np.where(planes["depths"] > 0, view.ray_length, 0).astype(np.float32)
    with pytest.raises(AssertionError, match="depth is off"):
        check(with_frame(tmp_path, **planes), view)


def test_labels_without_their_high_byte_would_be_noticed(tmp_path: Path, view: PlaneScene) -> None:
    planes = frame()
    planes["labels"] %= 256
    with pytest.raises(AssertionError):
        check(with_frame(tmp_path, **planes), view)


def test_objects_are_pairs_of_label_and_instance(dataset: Path, view: PlaneScene) -> None:
    record = NyuV2Source(dataset).read("0001")
    assert record.instance is not None
    assert record.instance.dtype == np.int32
    expected = cut(view).instance
    pairs = {(int(a), int(b)) for a, b in zip(expected.ravel(), record.instance.ravel(), strict=True)}
    assert len(pairs) == len(IDENTITIES) == len({b for _, b in pairs})


def test_depth_that_is_none_is_not_known(tmp_path: Path, view: PlaneScene) -> None:
    planes = frame()
    planes["depths"][UNKNOWN] = np.resize([np.nan, np.inf, -np.inf, -1, 0], (4, 10))
    check(with_frame(tmp_path, **planes), view)


def test_depth_in_whole_disparities_still_has_the_right_normals(tmp_path: Path, view: PlaneScene) -> None:
    """As Kinect measures, with noise of half a step; `normals_from_depth` as it stands is off by 40 degrees."""
    planes = frame()
    noise = np.random.default_rng(0).normal(0, 0.5, view.z.shape)
    planes["depths"] = (351.3 / (1092.5 - np.round(1092.5 - 351.3 / view.z + noise))).astype(np.float32)
    record = with_frame(tmp_path, **planes)
    assert record.normal is not None
    known = record.normal.any(axis=2)
    assert known.mean() > 0.95
    error = angles(record.normal, cut(view).normal)[known]
    assert error.mean() < 0.5
    assert (error < 2).mean() > 0.99


def labelled(identity: NDArray[np.int64], **planes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """A frame with these labels, of one instance each; 0 is unlabelled."""
    return frame() | {"labels": identity.astype(np.uint16), "instances": (identity > 0).astype(np.uint8)} | planes


@pytest.mark.parametrize(("distance", "mean", "p90"), [(2, 0.06, 0.12), (5, 0.15, 0.3), (10, 0.3, 0.6), (20, 0.5, 1.1)])
def test_a_wall_has_its_normals_in_whole_disparities(tmp_path: Path, distance: float, mean: float, p90: float) -> None:
    """Kinect's steps and noise of half a step; errors grow with the steps, which are a 35th of the depth at 10 m.

    Its range ends there. At 20 m, where steps are over a metre, only lines as long as the image keep to half a degree.
    """
    seen = wall(FULL, 480, 640, distance)
    noise = np.random.default_rng(0).normal(0, 0.5, seen.z.shape)
    depths = (351.3 / np.round(351.3 / seen.z + noise)).astype(np.float32)
    record = with_frame(tmp_path, **labelled(np.full((480, 640), 3), depths=depths))
    assert_wall(record, cut(seen), mean=mean, p90=p90, known=1)


def test_the_wall_would_notice_steps_of_a_millimetre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = wall(FULL, 480, 640, 2)
    depths = (351.3 / np.round(351.3 / seen.z)).astype(np.float32)
    compute = nyuv2.normals_from_depth
    monkeypatch.setattr(nyuv2, "normals_from_depth", lambda *args, step: compute(*args))
    with pytest.raises(AssertionError, match="in the mean"):
        assert_wall(with_frame(tmp_path, **labelled(np.full((480, 640), 3), depths=depths)), cut(seen))


@pytest.mark.parametrize("width", range(1, 11))
def test_unlabelled_ribbons_are_filled_so_that_each_border_has_one_contour(tmp_path: Path, width: int) -> None:
    """Four objects that meet at a cross of ribbons; the border may be anywhere in them, but once."""
    identity = np.kron([[1, 2], [3, 4]], np.ones((240, 320), np.int64))
    identity[240 - width // 2 :][:width] = 0
    identity[:, 320 - width // 2 :][:, :width] = 0
    record = with_frame(tmp_path, **labelled(identity))
    assert np.unique(record.instance).tolist() == [number * 256 + 1 for number in (1, 2, 3, 4)]
    kept = identity[REGION] > 0
    assert np.array_equal(record.instance[kept], identity[REGION][kept] * 256 + 1)
    edge = edge_of(record.instance)
    # All around the crossing, a row or column that is far from the other ribbon has one pixel of contour.
    assert (edge[:180].sum(axis=1) == 1).all()
    assert (edge[210:].sum(axis=1) == 1).all()
    assert (edge[:, :260].sum(axis=0) == 1).all()
    assert (edge[:, 300:].sum(axis=0) == 1).all()
    assert edge.sum() <= 427 + 561 + width


def test_wide_unlabelled_regions_stay_and_have_one_contour(tmp_path: Path) -> None:
    identity = np.ones((480, 640), np.int64)
    identity[:, 320:] = 2
    hole = np.zeros(identity.shape, bool)
    hole[200:260, 300:380] = True
    identity[hole] = 0
    identity[:200, 316:322] = 0  # a ribbon that leads there
    record = with_frame(tmp_path, **labelled(identity))
    unlabelled = record.instance == 0
    assert (unlabelled & ~hole[REGION]).sum() <= 6  # a row of the ribbon, where it opens into the region
    lost = hole[REGION] & ~unlabelled
    assert lost.sum() < 4 * (1 - np.pi / 4) * 8**2  # what a circle of 8 pixels leaves of four corners
    rows, columns = np.nonzero(lost)
    corners = np.abs(rows + 44 - 229.5) > 25, np.abs(columns + 40 - 339.5) > 35
    assert np.logical_and(*corners).all()
    edge = edge_of(record.instance)
    assert edge[230 - 44].sum() == 2
    assert edge[100 - 44].sum() == 1


def test_a_frame_that_is_labelled_everywhere_is_as_it_was(dataset: Path) -> None:
    record = NyuV2Source(dataset).read("0001")
    planes = frame()
    assert np.array_equal(record.instance, (planes["labels"].astype(int) * 256 + planes["instances"])[REGION])


def test_normals_go_up_to_the_border_in_a_ribbon(tmp_path: Path, view: PlaneScene) -> None:
    """Taken for an object of its own, a ribbon has normals that are off by 20 degrees in the mean, or none."""
    ribbon = distance_transform_edt(~view.edge) <= 3
    planes = frame()
    for name in ("labels", "instances"):
        planes[name][ribbon] = 0
    noise = np.random.default_rng(0).normal(0, 0.5, view.z.shape)
    planes["depths"] = (351.3 / np.round(351.3 / view.z + noise)).astype(np.float32)
    record = with_frame(tmp_path, **planes)
    inside = ribbon[REGION]
    known = record.normal.any(axis=2)
    assert known[inside].mean() > 0.95
    assert angles(record.normal, cut(view).normal)[known & inside].mean() < 2.5


@pytest.mark.parametrize(("name", "missing"), [("depths", "depth"), ("labels", "labels")])
def test_a_frame_without_depth_or_labels_is_named(tmp_path: Path, name: str, missing: str) -> None:
    """Arrays that were never written read as zeros."""
    planes = frame()
    planes[name][:] = 0
    planes["instances"] *= name != "labels"
    write_frames(tmp_path / FRAMES, frame(), planes)
    source = NyuV2Source(tmp_path)
    with pytest.raises(DataError, match=f"no {missing}") as caught:
        source.read("0002")
    assert caught.value.where == f"{tmp_path / FRAMES}: frame 0002"
    assert source.read("0001").key == "0001"


@pytest.mark.parametrize("kind", [h5py.Dataset, h5py.File])
def test_a_fault_of_the_disk_is_the_machines(dataset: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """Its words are HDF5's: in an OSError while an array is read, in a KeyError while it is looked for."""
    source = NyuV2Source(dataset)
    words = "(file read failed: time = Fri, errno = 5, error message = 'Input/output error', buf = 0x1, offset = 800)"

    def failing(*_: object) -> None:
        if kind is h5py.Dataset:
            raise OSError(5, f"Can't synchronously read data {words}")
        raise KeyError(f"Unable to synchronously open object {words}")

    monkeypatch.setattr(kind, "__getitem__", failing)
    with pytest.raises(DataError) as caught:
        source.read("0001")
    assert caught.value.where == dataset / FRAMES
    assert machine_fault(caught.value).errno == errno.EIO


def test_an_array_that_is_not_there_is_no_fault_of_the_machine(tmp_path: Path) -> None:
    write_frames(tmp_path / FRAMES, frame())
    with h5py.File(tmp_path / FRAMES, "r+") as file:
        del file["labels"]
    with pytest.raises(DataError, match="labels") as caught:
        NyuV2Source(tmp_path)
    assert machine_fault(caught.value) is None


def test_a_fault_of_the_disk_in_the_splits_is_the_machines(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_read(dataset / SPLITS, monkeypatch)
    with pytest.raises(DataError) as caught:
        NyuV2Source(dataset, subset="train")
    assert caught.value.where == dataset / SPLITS
    assert machine_fault(caught.value).errno == errno.EIO


def test_what_lies_beside_the_two_files_is_counted(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "nyu_depth_v2_raw.zip").touch()
    assert NyuV2Source(tmp_path).passed_over()["files ending in .zip"].first == ["nyu_depth_v2_raw.zip"]
    assert NyuV2Source(tmp_path / FRAMES).passed_over() == {}


def test_it_is_told_what_speaks_for_it(dataset: Path) -> None:
    assert NyuV2Source.recognise(dataset) == f"the folder has {FRAMES}"
    assert NyuV2Source.recognise(dataset / FRAMES) == f"the file is {FRAMES}"
    assert NyuV2Source.recognise(dataset / SPLITS) is None


def test_a_file_that_is_missing_or_damaged_is_named(dataset: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothere"):
        with pytest.raises(DataError, match=f"missing(.|\n)*{FRAMES}"):
            NyuV2Source(folder)
    whole = (dataset / FRAMES).read_bytes()
    for content in (b"", b"text" * 500, whole[: len(whole) // 2], whole[:1000]):
        (tmp_path / FRAMES).write_bytes(content)
        with pytest.raises(DataError, match=f"cannot be read(.|\n)*{FRAMES}"):
            NyuV2Source(tmp_path)
    with h5py.File(tmp_path / FRAMES, "w") as file:
        file["images"] = np.zeros((2, 3, 640, 480), np.uint8)
    with pytest.raises(DataError, match="depths"):
        NyuV2Source(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("depths", np.zeros((1, 640, 480), np.float64)),
        ("depths", np.zeros((2, 640, 480), np.float32)),
        ("labels", np.zeros((1, 640, 480), np.uint8)),
        ("images", np.zeros((1, 640, 480, 3), np.uint8)),
        ("images", np.uint8(3)),
        ("instances", np.zeros((1, 480, 640), np.uint8)),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, view: PlaneScene, name: str, values: Any) -> None:
    write_frames(tmp_path / FRAMES, frame())
    with h5py.File(tmp_path / FRAMES, "r+") as file:
        del file[name]
        file[name] = values
    with pytest.raises(DataError, match=f"not what its dataset says(.|\n)*{FRAMES}"):
        NyuV2Source(tmp_path)


def test_a_damaged_frame_costs_that_frame(dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray((dataset / FRAMES).read_bytes())
    with h5py.File(dataset / FRAMES) as file:
        piece = file["depths"].id.get_chunk_info(1)
        start = piece.byte_offset
    content[start + 40 : start + 400] = bytes(360)
    (tmp_path / FRAMES).write_bytes(content)
    source = NyuV2Source(tmp_path)
    with pytest.raises(DataError, match=FRAMES) as caught:
        source.read("0002")
    assert machine_fault(caught.value) is None
    assert source.read("0001").key == "0001"
    assert capfd.readouterr() == ("", "")


def test_splits_that_are_missing_damaged_or_of_other_frames_are_named(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / FRAMES).symlink_to(dataset / FRAMES)
    with pytest.raises(DataError, match=f"missing(.|\n)*{SPLITS}"):
        NyuV2Source(tmp_path, subset="train")
    for content in (b"", b"text" * 100, (dataset / SPLITS).read_bytes()[:150]):
        (tmp_path / SPLITS).write_bytes(content)
        with pytest.raises(DataError, match=SPLITS):
            NyuV2Source(tmp_path, subset="train")
    savemat(tmp_path / SPLITS, {"trainNdxs": [[1], [4]]})
    with pytest.raises(DataError, match=r"from 1 to 4(.|\n)*from 1 to 3"):
        NyuV2Source(tmp_path, subset="train")
    with pytest.raises(DataError, match="testNdxs"):
        NyuV2Source(tmp_path, subset="test")


def test_the_file_of_the_frames_may_be_given_itself(dataset: Path) -> None:
    assert NyuV2Source.recognise(dataset / FRAMES)
    assert list(NyuV2Source(dataset / FRAMES).references()) == ["0001", "0002", "0003"]


def test_it_packs_with_its_labels_though_it_is_real(dataset: Path, view: PlaneScene, tmp_path: Path) -> None:
    source = NyuV2Source(dataset, subset="train")
    assert assert_packs(source, cut(view), tmp_path / "out", min_known=0.99).domain == "real"
