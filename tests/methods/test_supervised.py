"""Classes of photos: the loss by hand, photos without a class, and photos that were not trained on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from patterns import SIDE, CodedSource
from pretext_steps import held_out, is_right, method, random_photos, shuffled, trained
from small_runs import quiet

from fastssl.batch import Record
from fastssl.errors import DataError
from fastssl.methods import load_config
from fastssl.methods.supervised import Networks
from fastssl.shards import pack
from fastssl.train import start_run

CHANCE = 1 / 20
"""A class is a photo, of which the crops that are held out are others: 3 of each of 20."""


def test_photos_without_a_class_teach_nothing() -> None:
    networks = method("supervised").networks
    logits, target = np.random.default_rng(0).normal(size=(4, 10)), np.array([3, -1, 9, -1])
    known = [math.log(np.exp(logits[n]).sum()) - logits[n, target[n]] for n in (0, 2)]
    found = networks.losses(torch.tensor(logits), torch.tensor(target))["supervised"]
    assert found.item() == pytest.approx(np.mean(known), rel=1e-6)
    given = torch.tensor(logits, dtype=torch.float32, requires_grad=True)
    networks.losses(given, torch.tensor([-1, -1, -1, -1]))["supervised"].backward()
    assert given.grad is not None
    assert (given.grad == 0).all()


def test_a_class_that_the_network_does_not_know_is_refused_by_name() -> None:
    step, batch = method("supervised", "model.classes=10"), random_photos(3)
    numbers = {**batch.targets, "class_index": torch.tensor([1, 12, 0])}
    with pytest.raises(DataError, match=r"(?s)12.*0 to 9.*model\.classes to 13"):
        step({"real": replace(batch, targets=numbers)})


def test_photos_of_which_none_has_a_class_are_refused(tmp_path: Path) -> None:
    """Its loss would be 0 from the first step on, which looks like success."""

    class WithoutClasses(CodedSource):
        def read(self, reference: str) -> Record:
            return replace(super().read(reference), class_index=None)

    pack(WithoutClasses(4, "real"), tmp_path / "photos", size=SIDE)
    config = load_config("tiny", method="supervised", overrides=["data.size=67", f"data.real={tmp_path / 'photos'}"])
    with pytest.raises(DataError, match=r"no photo of the dataset has a class(.|\n)*a folder per class"):
        start_run(config, tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_the_loss_begins_at_chance() -> None:
    step = method("supervised", "model.classes=1000")
    assert step.chance(step.config) == {"supervised": pytest.approx(6.9078, abs=1e-4)}
    assert step({"real": random_photos(4)})["supervised"].item() == pytest.approx(math.log(1000), rel=0.03)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_classes_of_photos_that_were_not_trained_on_are_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not by a network that was taught the classes of other photos."""
    words = ["data.size=67", "train.steps=200"]
    assert (
        held_out(trained("supervised", tmp_path / "run", *words, data=["retrieval"]), is_right, times=1) > CHANCE + 0.15
    )
    with monkeypatch.context() as patched:
        shuffled(patched, Networks)
        run = trained("supervised", tmp_path / "shuffled", *words, data=["retrieval"])
    assert held_out(run, is_right, times=1) < CHANCE + 0.15
