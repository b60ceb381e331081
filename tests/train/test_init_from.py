"""Runs that begin with the networks of another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_run import make_run
from small_runs import quiet, settings

from fastssl.errors import ConfigError, DataError
from fastssl.train import dry_run, load_trained, start_run

UNMOVED = ["optim.lr=1e-30", "optim.discriminator_lr=1e-30", "optim.schedule=constant", "train.steps=1"]
OF_RUN = ["model.width=0.1", "model.fc_channels=16", "model.head_channels=4", *UNMOVED]


def test_weights_are_those_of_the_run_it_begins_with(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    """After a step that moves nothing; another seed alone would give others."""
    first = make_run(tmp_path / "first", coded_synthetic, coded_real)
    config = settings(coded_synthetic, coded_real, *OF_RUN, f"train.init_from={first}", "train.seed=3")
    start_run(config, tmp_path / "second", quiet)
    start_run(settings(coded_synthetic, coded_real, *OF_RUN, "train.seed=3"), tmp_path / "fresh", quiet)
    trained, begun, fresh = (
        dict(load_trained(tmp_path / name).method.networks.named_parameters()) for name in ("first", "second", "fresh")
    )
    for name, weight in trained.items():
        torch.testing.assert_close(begun[name], weight, rtol=0, atol=1e-20, msg=name)
    assert not torch.equal(fresh["backbone.layers.conv1.conv.weight"], trained["backbone.layers.conv1.conv.weight"])


def test_parts_that_the_other_run_lacks_are_fresh(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", coded_synthetic, None, "model.adapted_layer=none")
    config = settings(coded_synthetic, coded_real, *OF_RUN, f"train.init_from={first}")
    start_run(config, tmp_path / "second", quiet)
    networks = load_trained(tmp_path / "second").method.networks
    assert {name for name, _ in networks.named_children()} == {"backbone", "heads", "discriminator"}


def test_networks_of_another_form_are_refused(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", coded_synthetic, coded_real, "model.fc_channels=24")
    config = settings(coded_synthetic, coded_real, *OF_RUN, f"train.init_from={first}")
    for begin in (lambda: start_run(config, tmp_path / "second", quiet), lambda: dry_run(config, tmp_path / "second")):
        with pytest.raises(ConfigError, match=r"(?s)backbone of that run is not .*init_from.*fc6"):
            begin()
    assert not (tmp_path / "second").exists()


def test_a_run_that_is_none_is_refused(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    config = settings(coded_synthetic, coded_real, *OF_RUN, f"train.init_from={tmp_path / 'nothing'}")
    for begin in (lambda: start_run(config, tmp_path / "second", quiet), lambda: dry_run(config, tmp_path / "second")):
        with pytest.raises(DataError, match="nothing"):
            begin()
