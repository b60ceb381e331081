"""A run measured on one device and on the CPU, for the tests on both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from made_run import make_run

from fastssl.evaluate import DomainAccuracy, Evaluation, Matching, Neighbours, Tasks, evaluate, subject

TASKS = 0.02
"""Largest difference of a task's measure, relative, or absolute where it is small: decoders round differently."""
ONE_IMAGE = {"domain": 0.06, "neighbours": 0.12, "matching": 0.03}
"""By how much an accuracy changes with one image of those that are packed for tests, or with some points of them."""


def assert_numbers_of_the_cpu(
    synthetic: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """All evaluations of one run; in accuracies one image may be taken for another."""
    run = make_run(tmp_path / "run", synthetic, real)
    found = []
    for where in (torch.device("cpu"), device):
        monkeypatch.setattr(subject, "run_device", lambda where=where: where)
        found.append(
            {
                "tasks": dict(numbers(measured(Tasks(synthetic=synthetic), run))),
                "domain": dict(numbers(measured(DomainAccuracy(synthetic=synthetic, real=real), run))),
                "neighbours": dict(numbers(measured(Neighbours(real=real), run))),
                "matching": dict(numbers(measured(Matching(real=real), run))),
            }
        )
    expected, got = found
    assert got["tasks"] == pytest.approx(expected["tasks"], rel=TASKS, abs=TASKS)
    for name, change in ONE_IMAGE.items():
        assert got[name] == pytest.approx(expected[name], abs=change)
    assert all(len(values) >= 2 for values in got.values())


def measured(evaluation: Evaluation, run: Path, **beside: Path) -> dict[str, Any]:
    """An evaluation's section."""
    return evaluate(evaluation, run, beside).section()


def numbers(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, float]]:
    """Those of nested mappings, by their names one after the other."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{name}{key}.")
        elif isinstance(value, float):
            yield f"{name}{key}", value
