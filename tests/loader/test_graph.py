"""The graph's forms beside compiled code, what the first pipeline on a GPU says, and the GPU that it takes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from graph_forms import FORMS, assert_form_beside_the_cpu

from fastssl.loader import LoaderOptions, Maker
from fastssl.loader.graph import built, device_number
from fastssl.loader.iterator import checked_members


class Warns:
    """A pipeline that warns as DALI's does where its wheel lacks cuFFT and NPP, or of something else."""

    def __init__(self, words: str) -> None:
        self.words = words

    def build(self) -> None:
        warnings.warn(self.words, Warning, stacklevel=2)


def test_libraries_that_no_graph_uses_are_not_warned_of() -> None:
    built(Warns("nvidia-dali-cuda120 is no longer shipped with CUDA runtime. You need to install it"))  # type: ignore[arg-type]
    with pytest.raises(Warning, match="something else"):
        built(Warns("something else"))  # type: ignore[arg-type]


def test_a_device_without_a_number_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    named = ("cpu", "cuda", "cuda:0", "cuda:1")
    assert [device_number(torch.device(name)) for name in named] == [None, 3, 0, 1]


@pytest.mark.parametrize(
    ("device", "load_on", "paranoid", "all_checked"),
    [
        ("cpu", "gpu", False, False),
        ("cpu", "cpu", True, True),
        ("cuda", "gpu", False, True),
        ("cuda", "cpu", False, False),
        ("cuda", "cpu", True, True),
    ],
)
def test_members_that_a_gpu_decodes_are_all_compared_with_their_checksums(
    device: str, load_on: Maker, paranoid: bool, all_checked: bool
) -> None:
    options = LoaderOptions(device=torch.device(device), load_on=load_on, paranoid=paranoid)
    assert checked_members(("jpg", "cls"), options) == (("jpg", "cls") if all_checked else ())


@pytest.mark.parametrize("form", FORMS)
def test_a_form_in_half_precision_is_that_in_full(coded_synthetic: Path, coded_real: Path, form: str) -> None:
    """What is only cut out is then made by the graph's operators instead of compiled code."""
    path = coded_real if FORMS[form].whole_photos else coded_synthetic
    assert_form_beside_the_cpu(FORMS[form], path, torch.device("cpu"), half=True)
