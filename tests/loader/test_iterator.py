"""Real DALI pipelines on packed patterns whose planes tell where each pixel was (see patterns.py)."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from late_reading import begin
from numpy.typing import NDArray
from patterns import SIDE, CodedSource, coded_instances, coded_normals
from PIL import Image

from fastssl.batch import IMAGE_MEAN, PLANES, Batch
from fastssl.config import AugmentConfig, DataConfig
from fastssl.errors import DataError, ShardError
from fastssl.loader import (
    LoaderOptions,
    Mixture,
    RankSlice,
    ViewSettings,
    endless_plan,
    evaluation_plan,
    load_batches,
    open_mixture,
)
from fastssl.loader.images import ThreadedImages
from fastssl.loader.plan import Plan
from fastssl.shards import ShardSet, decode_sample, pack, read_samples

SIZE = 67
CPU = torch.device("cpu")


OPTIONS = LoaderOptions(device=CPU, threads=2)


def views(shards: Mixture, data: DataConfig, *, whole: bool = False) -> ViewSettings:
    return ViewSettings(data=data, augment=AugmentConfig(), stored=shards.image_size, whole=whole)


def random_plan(shards: Mixture, data: DataConfig, batch_size: int) -> Plan:
    rank_slice = RankSlice(order=shards.order(seed=5, stream=0), batch_size=batch_size)
    return endless_plan(views(shards, data), rank_slice)


def stored_pixels(batch: Batch, sample: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column in the stored image of every output pixel, as its depth tells."""
    number = np.rint(batch.depth[sample, 0].numpy().astype(np.float64) * 1000).astype(np.int64) - 1
    return number // SIDE, number % SIDE


@pytest.mark.parametrize("normal_filter", ["nearest", "linear"])
@pytest.mark.parametrize("window", [(0.5, 1.0), (SIZE / SIDE, SIZE / SIDE), (0.2, 0.4)])
def test_all_planes_stay_aligned_over_three_epochs(
    coded_synthetic: Path, window: tuple[float, float], normal_filter: str
) -> None:
    """Every plane of an output pixel belongs to the stored pixel that its depth names: smaller, cut out and larger."""
    shards = open_mixture(coded_synthetic)
    data = DataConfig.model_validate({"size": SIZE, "window": window, "gray": "off", "normal_filter": normal_filter})
    # Half a code of 1 / 127.5; a neighbouring pixel is 0.006 or more away. Blended normals lie up to half a pixel off.
    tolerance = 0.005 if normal_filter == "nearest" else 0.011
    number = {shards.datasets[0].key(i): i for i in range(len(shards))}
    normals = coded_normals()
    flips = 0
    for batch in islice(load_batches(shards, random_plan(shards, data, 4), OPTIONS), 3 * 3):
        for i, key in enumerate(batch.keys):
            known = batch.depth[i, 0].numpy() > 0
            rows, columns = stored_pixels(batch, i)
            rows, columns = np.where(known, rows, 0), np.where(known, columns, 0)
            middle = rows[SIZE // 2]
            flipped = columns[SIZE // 2, 0] > columns[SIZE // 2, -1]
            flips += flipped
            assert (np.diff(columns[SIZE // 2]) * (-1 if flipped else 1) >= 0).all()
            assert (middle == middle[0]).all()

            expected = normals[rows, columns] * ([-1, 1, 1] if flipped else [1, 1, 1])
            valid = batch.valid[i, 0].numpy()
            got = batch.normal[i].numpy().transpose(1, 2, 0)
            assert np.abs(got - expected)[valid].max() < tolerance
            lost = (rows >= SIDE - 5) & (columns >= SIDE - 5)
            assert (valid == (known & ~lost)).all()
            assert (got[lost] == 0).all()

            # Image: red and green are the stored column and row. Half an output pixel of the window is allowed.
            image = batch.image[i].numpy().transpose(1, 2, 0) + IMAGE_MEAN
            pixel = (columns.max() - columns.min()) / SIZE
            inner = np.s_[3:-3, 3:-3]
            for channel, place in ((0, columns), (1, rows)):
                error = image[..., channel] * (SIDE - 1) - place
                assert np.abs(error[known & valid]).max() < 2.5 + pixel
                assert abs(error[inner].mean()) < 0.7
            assert abs(image[..., 2].mean() - 20 * number[key] / 255) < 0.02
    assert 5 < flips < 32


def test_window_of_the_network_size_is_cut_out_exactly(coded_synthetic: Path) -> None:
    """Against Pillow: no resampling where the window has the size of the input."""
    shards = open_mixture(coded_synthetic)
    data = DataConfig(size=SIZE, window=(SIZE / SIDE, SIZE / SIDE), gray="off")
    number = {shards.datasets[0].key(i): i for i in range(len(shards))}
    for batch in islice(load_batches(shards, random_plan(shards, data, 3), OPTIONS), 4):
        for i, key in enumerate(batch.keys):
            rows, columns = stored_pixels(batch, i)
            sample = decode_sample(shards.datasets[0], number[key])
            assert sample.edge is not None
            inside = batch.depth[i, 0].numpy() > 0
            expected = sample.image[rows, columns] / 255 - IMAGE_MEAN
            assert np.abs(batch.image[i].numpy().transpose(1, 2, 0) - expected)[inside].max() < 1e-6
            assert (batch.edge[i, 0].numpy() == sample.edge[rows, columns])[inside].all()
            assert batch.stored_edge_fraction[i] == pytest.approx(sample.edge.mean(), abs=1e-6)
            assert (batch.stored_size, batch.stored_edge_count[i].item()) == (sample.edge.shape, sample.edge.sum())


def test_no_contour_is_lost_when_the_image_gets_smaller(coded_synthetic: Path) -> None:
    """The whole image at half its size: a cell is a contour if any of its four pixels is."""
    shards = open_mixture(coded_synthetic)
    data = DataConfig(size=35, window=(70 / SIDE, 70 / SIDE), gray="off")
    plan = evaluation_plan(views(shards, data), len(shards), 4)
    first = (SIDE - 70) // 2
    batches = list(load_batches(shards, plan, OPTIONS))
    edges = torch.cat([batch.edge for batch in batches])[:, 0].numpy()
    for i in range(len(shards)):
        ids = coded_instances(i)
        contour = np.zeros((SIDE, SIDE), dtype=bool)
        contour[:, :-1] |= ids[:, :-1] != ids[:, 1:]
        contour[:-1] |= ids[:-1] != ids[1:]
        window = contour[first : first + 70, first : first + 70]
        assert (edges[i] == window.reshape(35, 2, 35, 2).any(axis=(1, 3))).all()


def test_normals_of_a_mirrored_plane_are_those_of_the_mirrored_scene(coded_synthetic: Path) -> None:
    """A plane seen in a mirror has the mirrored normal: within 1 degree, over every flipped pixel."""
    shards = open_mixture(coded_synthetic)
    data = DataConfig(size=SIZE, window=(0.6, 0.9), flip=1.0, gray="off")
    mirror = np.diag([-1.0, 1.0, 1.0])
    for batch in islice(load_batches(shards, random_plan(shards, data, 4), OPTIONS), 3):
        for i in range(4):
            rows, columns = stored_pixels(batch, i)
            valid = batch.valid[i, 0].numpy()
            truth = coded_normals()[rows[valid], columns[valid]] @ mirror
            cosine = (batch.normal[i].numpy().transpose(1, 2, 0)[valid] * truth).sum(axis=-1)
            assert np.rad2deg(np.arccos(np.clip(cosine, -1, 1))).max() < 1.0


@pytest.mark.parametrize("gray", ["per_sample", "per_batch"])
def test_gray_images_are_one_channel_three_times(coded_synthetic: Path, gray: str) -> None:
    shards = open_mixture(coded_synthetic)
    data = DataConfig.model_validate({"size": SIZE, "window": (SIZE / SIDE, SIZE / SIDE), "gray": gray})
    number = {shards.datasets[0].key(i): i for i in range(len(shards))}
    chosen = []
    for batch in islice(load_batches(shards, random_plan(shards, data, 4), OPTIONS), 12):
        assert (batch.image[:, :1] == batch.image).all()
        for i, key in enumerate(batch.keys):
            rows, columns = stored_pixels(batch, i)
            inside = batch.depth[i, 0].numpy() > 0
            stored = decode_sample(shards.datasets[0], number[key]).image[rows, columns] / 255 - IMAGE_MEAN
            errors = np.abs(batch.image[i, 0].numpy()[..., None] - stored)[inside].max(axis=0)
            assert errors.min() < 1e-6
            chosen.append(int(errors.argmin()))
    per_batch = np.array(chosen).reshape(12, 4)
    assert set(chosen) == {0, 1, 2}
    assert (per_batch == per_batch[:, :1]).all() == (gray == "per_batch")


def test_photos_come_with_their_classes_and_without_a_copy(coded_real: Path) -> None:
    shards = open_mixture(coded_real)
    plan = evaluation_plan(views(shards, DataConfig(size=SIZE, gray="off"), whole=True), len(shards), 4)
    batches = list(load_batches(shards, plan, OPTIONS, ("class_index",)))
    assert [len(batch.keys) for batch in batches] == [4, 4, 1]
    assert torch.cat([batch.class_index for batch in batches]).tolist() == [i // 2 for i in range(9)]
    image = batches[0].image
    assert image.shape == (4, 3, SIZE, SIZE)
    assert image.dtype == torch.float32
    assert image.is_contiguous(memory_format=torch.channels_last)
    stored = Image.fromarray(decode_sample(shards.datasets[0], 3).image)
    smaller = np.asarray(stored.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) / 255 - IMAGE_MEAN
    assert np.abs(image[3].numpy().transpose(1, 2, 0) - smaller).max() < 1.5 / 255


def test_batches_stay_as_they_are_while_the_pipeline_goes_on(coded_synthetic: Path) -> None:
    """The graph must not write the next batches into memory that it handed over."""
    shards = open_mixture(coded_synthetic)
    batches = load_batches(shards, random_plan(shards, DataConfig(size=SIZE), 4), OPTIONS)
    kept = [next(batches) for _ in range(6)]
    copies = [batch.image.clone() for batch in kept]
    for _ in range(20):
        next(batches)
    assert all(torch.equal(batch.image, copy) for batch, copy in zip(kept, copies, strict=True))


def damage(source: Path, target: Path, sample: int, member: str, content: bytes) -> Path:
    """A copy of a dataset in which one member was overwritten from its start; sizes stay."""
    shutil.copytree(source, target)
    shards = ShardSet(target)
    tar = target / shards.shard_name(sample)
    view = shards.member(sample, member).tobytes()
    packed = tar.read_bytes()
    at = packed.index(view)
    tar.write_bytes(packed[:at] + content + view[len(content) :] + packed[at + len(view) :])
    return target


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("jpg", b"not an image", "cut short or not a JPEG"),
        ("jpg", b"\xff\xd8\xff\xdb" + b"\0" * 400, "a JPEG is damaged"),
        ("labels.lz4", b"\xf0" * 64, "target block"),
    ],
)
def test_a_damaged_member_is_named(
    coded_synthetic: Path, tmp_path: Path, member: str, content: bytes, message: str
) -> None:
    shards = open_mixture(damage(coded_synthetic, tmp_path / "damaged", 6, member, content))
    plan = evaluation_plan(views(shards, DataConfig(size=SIZE)), len(shards), 4)
    with pytest.raises(ShardError, match=message) as raised:
        list(load_batches(shards, plan, OPTIONS))
    assert "000001.tar" in str(raised.value)
    assert "coded_006" in str(raised.value)


def test_photos_have_no_targets_to_train_on(coded_real: Path) -> None:
    shards = open_mixture(coded_real)
    plan = evaluation_plan(views(shards, DataConfig(size=SIZE)), len(shards), 4)
    with pytest.raises(DataError, match="no target planes"):
        next(load_batches(shards, plan, OPTIONS, PLANES))


def test_raw_targets_give_the_same_batches(coded_synthetic: Path, tmp_path: Path) -> None:
    """Packed without compression, read by both readers, and larger."""
    packing: dict[str, object] = {"size": SIDE, "samples_per_shard": 4, "jpeg_quality": 98}
    manifest = pack(CodedSource(11, "synthetic"), tmp_path / "raw", target_codec="raw", **packing)
    assert manifest.statistics.member_bytes["labels.raw"].min == 5 * SIDE * SIDE + SIDE * SIDE // 8
    data = DataConfig(size=SIZE, window=(0.6, 1.0))
    made = []
    for path in (coded_synthetic, tmp_path / "raw"):
        shards = open_mixture(path)
        made.append(list(islice(load_batches(shards, random_plan(shards, data, 4), OPTIONS), 4)))
    for lz4, raw in zip(*made, strict=True):
        assert lz4.keys == raw.keys
        for plane in ("image", "depth", "normal", "edge", "valid"):
            assert torch.equal(getattr(lz4, plane), getattr(raw, plane))
    for ours, theirs in zip(read_samples(coded_synthetic), read_samples(tmp_path / "raw"), strict=True):
        assert np.array_equal(ours.depth, theirs.depth)
        assert np.array_equal(ours.edge, theirs.edge)


def test_positions_are_those_of_the_sequence_whatever_the_ranks(coded_real: Path) -> None:
    """Where the run began, each rank's part of each global batch; in an evaluation they number the samples."""
    shards, wanted = open_mixture(coded_real), ("position",)
    settings, order = views(shards, DataConfig(size=SIZE)), shards.order(seed=5, stream=1)
    found = []
    for rank in (0, 1):
        rank_slice = RankSlice(order=order, batch_size=3, rank=rank, world_size=2)
        with load_batches(shards, endless_plan(settings, rank_slice, position=100), OPTIONS, wanted) as batches:
            found.append([batch.position.tolist() for batch in islice(batches, 2)])
    assert found == [[[100, 101, 102], [106, 107, 108]], [[103, 104, 105], [109, 110, 111]]]
    every = load_batches(shards, evaluation_plan(settings, len(shards), 4), OPTIONS, wanted)
    assert torch.cat([batch.position for batch in every]).tolist() == list(range(len(shards)))


@pytest.mark.parametrize("prefetch", [1, 3])
def test_batches_that_are_only_cut_out_are_begun_ahead(
    coded_synthetic: Path, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    """As many as the options say, beside the one that is asked for; with a graph DALI does so by itself."""
    begun, submit = [], ThreadedImages.submit
    monkeypatch.setattr(ThreadedImages, "submit", lambda *given: begun.append(1) or submit(*given))
    options = LoaderOptions(device=torch.device("cpu"), threads=2, prefetch=prefetch)
    batches = begin(coded_synthetic, options, targets=False, window=(115 / SIDE, 115 / SIDE))
    for number in range(1, 4):
        next(batches)
        assert len(begun) == number + prefetch
