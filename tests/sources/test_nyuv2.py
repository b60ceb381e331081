from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.io import savemat
from sources.planes import PlaneScene, angles, assert_matches, assert_packs
from sources.trees.nyuv2 import CUT, IDENTITIES, REGION, UNKNOWN, cut, frame, full_view, write_frames, write_tree

from fastssl.batch import Intrinsics, Record
from fastssl.errors import DataError
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


def test_a_file_that_is_missing_or_damaged_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"missing(.|\n)*{FRAMES}"):
        NyuV2Source(tmp_path)
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


def test_a_damaged_frame_costs_that_frame(dataset: Path, tmp_path: Path) -> None:
    content = bytearray((dataset / FRAMES).read_bytes())
    with h5py.File(dataset / FRAMES) as file:
        piece = file["depths"].id.get_chunk_info(1)
        start = piece.byte_offset
    content[start + 40 : start + 400] = bytes(360)
    (tmp_path / FRAMES).write_bytes(content)
    source = NyuV2Source(tmp_path)
    with pytest.raises(DataError, match=FRAMES):
        source.read("0002")
    assert source.read("0001").key == "0001"


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
