"""Evaluations on the GPU against the CPU's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluations import assert_numbers_of_the_cpu


def test_numbers_are_those_of_the_cpu(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_numbers_of_the_cpu(coded_synthetic, coded_real, tmp_path, monkeypatch, gpu)
