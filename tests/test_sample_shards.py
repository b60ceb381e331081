"""The sample shards that ship with the project: complete, attributed, and readable without fastssl."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from fastssl.shards import ShardSet, decode_sample

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "shards" / "sample"
DATASETS = {"render_train": 300, "render_val": 100, "real_train": 162, "real_val": 60, "retrieval": 120}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves that to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", DATASETS)
def test_webdataset_alone_reads_them(name: str) -> None:
    """Every sample, decoded by Pillow; keys and number are those that our reader finds."""
    shards = ShardSet(SAMPLE / name)
    tars = sorted(str(path) for path in (SAMPLE / name).glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == len(shards) == DATASETS[name]
    for i, sample in enumerate(samples):
        assert sample["__key__"] == shards.key(i)
        image = np.asarray(Image.open(BytesIO(sample["jpg"])))
        assert image.shape == (*shards.image_size, 3)
        assert ("labels.lz4" in sample) == name.startswith("render")
        assert ("cls" in sample) != name.startswith("render")


def test_the_snippet_of_the_readme_runs() -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (without_us,) = [snippet for snippet in snippets if "fastssl." not in snippet]
    done = subprocess.run([sys.executable, "-c", without_us], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 60
    assert lines[0].split()[0] == ShardSet(SAMPLE / "real_val").key(0)


def test_training_and_held_out_photographs_are_different_and_attributed() -> None:
    classes = {}
    for name in ("real_train", "real_val", "retrieval"):
        shards = ShardSet(SAMPLE / name)
        classes[name] = Counter(shards.class_index(i) for i in range(len(shards)))
    assert not set(classes["real_train"]) & (set(classes["real_val"]) | set(classes["retrieval"]))
    assert len(set(classes["real_train"]) | set(classes["real_val"])) >= 40
    assert len(classes["retrieval"]) >= 20
    assert min(classes["retrieval"].values()) >= 5
    table = (SAMPLE / "ATTRIBUTION.md").read_text(encoding="utf-8")
    numbers = {int(number) for number in re.findall(r"^\| 0*(\d+) \|", table, re.MULTILINE)}
    assert numbers == set(classes["real_train"]) | set(classes["real_val"]) | set(classes["retrieval"])


def test_rooms_are_furnished_lit_and_labelled() -> None:
    for name in ("render_train", "render_val"):
        shards = ShardSet(SAMPLE / name)
        for i in range(0, len(shards), 5):
            sample = decode_sample(shards, i)
            assert sample.depth is not None
            assert sample.valid is not None
            assert sample.edge is not None
            assert 20 < sample.image.mean() < 235, sample.key
            assert sample.valid.mean() > 0.95, sample.key
            assert 0.3 < np.median(sample.depth) < 10, sample.key
            assert 0.003 < sample.edge.mean() < 0.5, sample.key


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) <= 16 * 2**20
