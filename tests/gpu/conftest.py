"""What needs a GPU; `make test` collects it everywhere and says why it is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from fastssl.loader.graph import decoder_kept


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True)
def as_it_was(torch_as_it_was: None) -> None:
    """One test's settings are not the next one's."""


@pytest.fixture(scope="session", autouse=True)
def one_decoder() -> Iterator[None]:
    """So that each of the others begins in a third of the time."""
    with decoder_kept(torch.device("cuda", 0)) if torch.cuda.is_available() else nullcontext():
        yield


@pytest.fixture
def gpu() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
