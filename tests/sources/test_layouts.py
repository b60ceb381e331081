"""What every layout promises, each on a tree of its own."""

from __future__ import annotations

import inspect
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources.every_tree import TREES
from sources.trees.photos import write_photos

from fastssl.batch import Record
from fastssl.cli import main
from fastssl.errors import DataError, UsageError
from fastssl.shards import read_manifest, read_samples
from fastssl.sources import LAYOUTS, FolderSource, RenderSource, open_source


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What to open of each layout's tree; not to be written to."""
    return {name: tree.write(tmp_path_factory.mktemp(name) / "data") for name, tree in TREES.items()}


def equal(one: Record, other: Record) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in Record.__dataclass_fields__)


def test_every_layout_has_a_tree_here() -> None:
    assert list(TREES) == list(LAYOUTS)


@pytest.mark.parametrize("layout", TREES)
def test_a_tree_is_claimed_by_its_own_layout_alone(trees: dict[str, Path], layout: str) -> None:
    """Besides `folder`, which takes whatever no other one does."""
    claims = [name for name, source in LAYOUTS.items() if source.recognise(trees[layout])]
    assert claims == list(dict.fromkeys([layout, "folder"]))
    source = open_source(str(trees[layout]))
    assert type(source) is LAYOUTS[layout]
    assert type(open_source(trees[layout], layout)) is LAYOUTS[layout]


@pytest.mark.parametrize("layout", TREES)
def test_nothing_is_claimed_where_there_is_nothing(tmp_path: Path, layout: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file", "empty", "file/below"):
        assert bool(LAYOUTS[layout].recognise(tmp_path / name)) == (layout == "folder")
        with pytest.raises(DataError):
            LAYOUTS[layout](tmp_path / name)


@pytest.mark.parametrize("layout", TREES)
def test_a_source_says_what_it_is(trees: dict[str, Path], layout: str) -> None:
    source = open_source(trees[layout])
    assert (source.layout, source.path, source.subset) == (layout, trees[layout], None)
    assert source.domain in ("synthetic", "real")
    assert isinstance(source.labelled, bool)
    assert source.licence
    for documented in (
        inspect.getmodule(type(source)),
        type(source),
        type(source).recognise,
        type(source).references,
        type(source).key,
        type(source).read,
    ):
        assert inspect.getdoc(documented)


@pytest.mark.parametrize("layout", TREES)
def test_references_are_the_same_every_time_and_in_other_processes(trees: dict[str, Path], layout: str) -> None:
    source = open_source(trees[layout])
    references = list(source.references())
    assert len(references) == TREES[layout].samples
    assert list(source.references()) == references
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy.references()) == references
    assert list(LAYOUTS[layout](trees[layout]).references()) == references


@pytest.mark.parametrize("layout", TREES)
def test_keys_are_legal_different_and_known_from_the_reference(trees: dict[str, Path], layout: str) -> None:
    source = open_source(trees[layout])
    references = list(source.references())
    keys = [source.key(reference) for reference in references]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[0-9a-z_-]{1,89}", key) for key in keys)
    assert [source.read(reference).key for reference in references[:2]] == keys[:2]


@pytest.mark.parametrize("layout", TREES)
def test_records_have_all_labels_or_none_and_are_the_same_in_other_processes(
    trees: dict[str, Path], layout: str
) -> None:
    source = open_source(trees[layout])
    first, *_ = source.references()
    record = source.read(first)
    height, width, channels = record.image.shape
    assert (channels, record.image.dtype) == (3, np.uint8)
    objects = [record.instance, record.edge]
    if source.labelled:
        assert record.camera is not None
        # What a shard stores is given as it is.
        depth, normal = (np.uint16, np.uint8) if layout == "render" else (np.float32, np.float32)
        assert (record.depth.shape, record.depth.dtype) == ((height, width), depth)
        assert (record.normal.shape, record.normal.dtype) == ((height, width, 3), normal)
        assert sorted(plane is None for plane in objects) == [False, True]
    else:
        assert record.depth is record.normal is record.camera is None
        assert objects == [None, None]
    assert equal(record, pickle.loads(pickle.dumps(source)).read(first))


@pytest.mark.parametrize("layout", TREES)
def test_subsets_are_those_of_the_dataset_and_any_other_is_refused(trees: dict[str, Path], layout: str) -> None:
    subsets = TREES[layout].subsets
    everything = list(open_source(trees[layout]).references())
    for subset in subsets[:1]:
        source = open_source(trees[layout], subset=subset)
        assert source.subset == subset
        references = list(source.references())
        assert 0 < len(references) < len(everything)
        assert set(references) < set(everything)
    with pytest.raises(UsageError, match=layout) as caught:
        open_source(trees[layout], layout, subset="no such")
    assert caught.value.seen == "no such"
    expected = f"one of: {', '.join(subsets)}" if subsets else "no subset: this layout has none"
    assert caught.value.expected == expected


@pytest.mark.parametrize("layout", TREES)
def test_a_reference_that_is_not_there_is_an_error(trees: dict[str, Path], layout: str) -> None:
    source = open_source(trees[layout])
    first, *_ = source.references()
    for reference in (f"{first}x", "nothing"):
        with pytest.raises(DataError):
            source.read(reference)


def test_a_folder_that_may_not_be_looked_into_is_of_no_layout_that_has_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path, "a.jpg")
    for error in (PermissionError(13, "Permission denied"), DataError("a folder cannot be listed")):

        def refused(path: Path, error: Exception = error) -> bool:
            raise error

        monkeypatch.setattr(RenderSource, "recognise", refused)
        assert isinstance(open_source(tmp_path), FolderSource)


def test_an_unknown_layout_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'folder'"):
        open_source(tmp_path, "foldr")
    with pytest.raises(UsageError, match="one of: "):
        open_source(tmp_path, "zzz")
    with pytest.raises(DataError, match="no such folder"):
        open_source(tmp_path / "missing")


@pytest.mark.parametrize(("layout", "options"), [("structured3d", ["--subset", "train"]), ("webdataset", [])])
def test_the_command_packs_it(
    trees: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, options: list[str]
) -> None:
    arguments: list[Any] = [trees[layout], tmp_path / "packed", "--size", 32, *options]
    monkeypatch.setattr(sys, "argv", ["fastssl", "shard", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    manifest = read_manifest(tmp_path / "packed")
    source = open_source(trees[layout], subset=dict(zip(options[::2], options[1::2], strict=True)).get("--subset"))
    assert (manifest.layout, manifest.domain, manifest.licence) == (layout, source.domain, source.licence)
    keys = [sample.key for sample in read_samples(tmp_path / "packed")]
    assert keys == [source.key(reference) for reference in source.references()]
