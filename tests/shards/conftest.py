from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastssl.shards import pack

# For `analytic_rooms`: packing workers inherit the path and import the source from it.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rooms in three shards; not to be written to."""
    from analytic_rooms import RoomSource

    out = tmp_path_factory.mktemp("packed") / "rooms"
    pack(RoomSource(Path("rooms"), 7), out, size=32, samples_per_shard=3)
    return out


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Thirteen photos in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(13):
        pixels = rng.integers(0, 255, (30, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo-{number:02d}.jpg")
    return folder
