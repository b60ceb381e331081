"""Damaged images cost themselves and nothing else, whoever makes a GPU's batches; with the cases of the CPU's test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from damaged import KINDS, PIXEL_KINDS, assert_a_failed_batch_is_made_again, assert_costs_those_samples

from fastssl.loader import Maker

MAKERS = ("cpu", "gpu")


@pytest.mark.parametrize("load_on", MAKERS)
@pytest.mark.parametrize("kind", [kind for kind, (member, _, _) in KINDS.items() if member == "jpg"])
@pytest.mark.parametrize("damaged", [[6], [5, 6, 10]])
def test_a_damaged_image_costs_that_sample(
    coded_synthetic: Path, tmp_path: Path, gpu: torch.device, kind: str, damaged: Sequence[int], load_on: Maker
) -> None:
    paranoid = KINDS[kind][2]
    assert_costs_those_samples(coded_synthetic, tmp_path, kind, damaged, paranoid=paranoid, device=gpu, load_on=load_on)


@pytest.mark.parametrize("kind", [kind for kind, (member, _, _) in KINDS.items() if member != "jpg"])
def test_checksums_find_damaged_targets(coded_synthetic: Path, tmp_path: Path, gpu: torch.device, kind: str) -> None:
    """A GPU inflates blocks without a word about damage, so their checksums are compared, asked for or not."""
    assert_costs_those_samples(coded_synthetic, tmp_path, kind, [6], paranoid=False, device=gpu, load_on="gpu")


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_damaged_pixels_cost_that_sample(coded_pixels: Path, tmp_path: Path, gpu: torch.device, kind: str) -> None:
    assert_costs_those_samples(coded_pixels, tmp_path, kind, [6], paranoid=False, device=gpu, load_on="gpu")


@pytest.mark.parametrize("load_on", MAKERS)
@pytest.mark.parametrize("damaged", [[6], [5, 6, 10]])
def test_a_batch_that_fails_is_made_again(
    coded_synthetic: Path,
    tmp_path: Path,
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    damaged: Sequence[int],
    load_on: Maker,
) -> None:
    assert_a_failed_batch_is_made_again(coded_synthetic, tmp_path, damaged, monkeypatch, gpu, load_on=load_on)
