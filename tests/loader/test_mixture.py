from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from patterns import SIDE, CodedSource
from PIL import Image

from fastssl.config import AugmentConfig, DataConfig
from fastssl.errors import ConfigError, DataError
from fastssl.loader import (
    LoaderOptions,
    Mixture,
    RankSlice,
    ViewSettings,
    check_class_numbers,
    endless_plan,
    evaluation_domain,
    load_batches,
    open_domain,
    open_mixture,
    training_domains,
)
from fastssl.methods import find_method, load_config
from fastssl.shards import ShardSet, pack
from fastssl.shards.cache import Cache
from fastssl.sources import ClassesSource


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patterns with targets."""
    out = tmp_path_factory.mktemp("few") / "few"
    pack(CodedSource(3, "synthetic"), out, size=SIDE, samples_per_shard=2)
    return out


def views(shards: Mixture) -> ViewSettings:
    data = DataConfig(size=67, window=(67 / SIDE, 67 / SIDE))
    return ViewSettings(data=data, augment=AugmentConfig(), stored=shards.image_size)


def test_samples_are_numbered_dataset_after_dataset(coded_synthetic: Path, few: Path) -> None:
    first, second = ShardSet(coded_synthetic), ShardSet(few)
    both = Mixture([first, second])
    assert (len(both), both.image_size, both.has_targets) == (14, (SIDE, SIDE), True)
    expected = [(dataset, i) for dataset in (first, second) for i in range(len(dataset))]
    for number, (dataset, i) in enumerate(expected):
        assert both.place(number) == dataset.place(i)
        stored = both.read(number, ["jpg"], lambda num_bytes: np.empty(num_bytes, np.uint8))
        assert (stored.key, stored.class_index) == (dataset.key(i), dataset.class_index(i))
        assert np.array_equal(stored.members["jpg"], dataset.member(i, "jpg"))


def test_batches_hold_the_datasets_by_their_weights(coded_synthetic: Path, few: Path) -> None:
    shards = open_mixture({str(coded_synthetic): 3, str(few): 1})
    keys = [dataset.key(i) for dataset in shards.datasets for i in range(len(dataset))]
    rank_slice = RankSlice(order=shards.order(seed=0, stream=0), batch_size=8)
    settings = ViewSettings(
        data=DataConfig(size=67, window=(67 / SIDE, 67 / SIDE)), augment=AugmentConfig(), stored=shards.image_size
    )
    options = LoaderOptions(device=torch.device("cpu"), threads=2)
    plan = [samples for samples, _ in islice(endless_plan(settings, rank_slice).steps, 11)]
    for batch, samples in zip(
        islice(load_batches(shards, endless_plan(settings, rank_slice), options), 11), plan, strict=True
    ):
        assert batch.keys == tuple(keys[i] for i in samples.tolist())
        assert abs((samples >= 11).sum() - 2) <= 1
    counts = Counter(np.concatenate(plan).tolist())
    assert [counts[i] for i in range(11)] == [6] * 11
    assert sum(counts[i] for i in range(11, 14)) == 22


def test_datasets_that_do_not_fit_together_are_refused(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    pack(CodedSource(3, "synthetic"), tmp_path / "small", size=32)
    with pytest.raises(DataError, match="image sizes"):
        open_mixture({str(coded_synthetic): 1, str(tmp_path / "small"): 1})
    with pytest.raises(DataError, match="members"):
        open_mixture({str(coded_synthetic): 1, str(coded_real): 1})


def test_labelled_images_serve_as_photos_too(few: Path, coded_synthetic: Path) -> None:
    shards = open_mixture({str(few): 1, str(coded_synthetic): 1})
    rank_slice = RankSlice(order=shards.order(seed=0, stream=1), batch_size=4)
    settings = ViewSettings(
        data=DataConfig(size=67, window=(67 / SIDE, 67 / SIDE)), augment=AugmentConfig(), stored=shards.image_size
    )
    options = LoaderOptions(device=torch.device("cpu"), threads=1)
    batch = next(iter(load_batches(shards, endless_plan(settings, rank_slice), options, ("class_index",))))
    assert batch.class_index.tolist() == [-1] * 4


def test_a_remote_dataset_is_shuffled_within_its_cache_and_fetched_ahead(
    coded_synthetic: Path, bucket: str, tmp_path: Path
) -> None:
    import fsspec

    filesystem, root = fsspec.core.url_to_fs(f"{bucket}/coded")
    for path in coded_synthetic.iterdir():
        filesystem.put_file(str(path), f"{root}/{path.name}")
    local = open_mixture(coded_synthetic)
    shard = max(entry.bytes for entry in local.datasets[0].manifest.shards)
    small = Mixture([ShardSet(f"{bucket}/coded", Cache(tmp_path / "small", 2 * shard))])
    with pytest.raises(ConfigError, match=r"data\.shuffle_buffer"):
        small.training_plan(views(small), RankSlice(order=small.order(seed=0, stream=0), batch_size=4))
    remote = Mixture([ShardSet(f"{bucket}/coded", Cache(tmp_path / "large", 10 * shard))])
    options = LoaderOptions(device=torch.device("cpu"), threads=1)
    made = []
    for shards in (local, remote):
        rank_slice = RankSlice(order=shards.order(seed=0, stream=0, buffer=4), batch_size=4)
        plan = shards.training_plan(views(shards), rank_slice)
        made.append(list(islice(load_batches(shards, plan, options), 6)))
    for expected, got in zip(*made, strict=True):
        assert got.keys == expected.keys
        assert torch.equal(got.image, expected.image)
        assert torch.equal(got.depth, expected.depth)


def test_a_dataset_of_the_wrong_domain_is_refused(coded_synthetic: Path, coded_real: Path) -> None:
    assert len(open_domain(coded_synthetic, "synthetic")) == 11
    assert len(open_domain({str(coded_real): 1.0}, "real")) == 9
    with pytest.raises(DataError, match=r"wrong domain(.|\n)*seen: photos(.|\n)*as --real"):
        open_domain({str(coded_real): 1.0}, "synthetic")
    with pytest.raises(DataError, match=rf"wrong domain\n  where: {coded_synthetic}\n  seen: rendered"):
        open_domain(coded_synthetic, "real")


def test_one_folder_by_two_spellings_is_refused(coded_synthetic: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(coded_synthetic)
    for other in (str(tmp_path / "link"), f"file://{coded_synthetic}", f"{coded_synthetic}/../{coded_synthetic.name}"):
        with pytest.raises(ConfigError, match="given twice"):
            open_mixture({str(coded_synthetic): 1.0, other: 1.0})


def test_datasets_that_number_their_classes_differently_are_refused_where_classes_count(tmp_path: Path) -> None:
    """A folder that lacks a class numbers those behind it anew; photos without classes are mixed as before."""
    for folder, names in (("all", "abc"), ("fewer", "ac"), ("first", "ab"), ("others", "d")):
        for name in names:
            (tmp_path / "from" / folder / name).mkdir(parents=True)
            Image.new("RGB", (80, 80)).save(tmp_path / "from" / folder / name / "0.png")
        pack(ClassesSource(tmp_path / "from" / folder), tmp_path / folder, size=80)
    datasets = {name: ShardSet(tmp_path / name) for name in ("all", "fewer", "first", "others")}
    check_class_numbers(datasets["all"], datasets["first"])
    with pytest.raises(DataError, match=r"(?s)differently.*fewer.*c is class 1.*class 2, as in .*all"):
        check_class_numbers(*datasets.values())
    with pytest.raises(DataError, match=r"(?s)differently.*others.*class 0 is d.*: a, as in .*first"):
        check_class_numbers(datasets["first"], datasets["others"])
    for method in ("supervised", "rotation"):
        paths = f"data.real={{{tmp_path / 'all'}: 1, {tmp_path / 'fewer'}: 2}}"
        config = load_config("tiny", method=method, overrides=[paths, "data.size=67"])
        requests = find_method(method).domains(config)
        with pytest.raises(DataError, match="differently") if method == "supervised" else nullcontext():
            training_domains(requests, config)
    assert len(evaluation_domain("real", config.data.datasets("real"), config, ()).samples) == 5
    with pytest.raises(DataError, match="differently"):
        evaluation_domain("real", config.data.datasets("real"), config, ["class_index"])
