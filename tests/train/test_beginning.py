"""Trainings that begin with weights drawn by their own first images, as the loader gives them."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import processes
import pytest
import torch
from made_run import make_run
from small_runs import assert_same, quiet, settings, state

from fastssl.config import Config, write_config
from fastssl.errors import ConfigError, UsageError
from fastssl.evaluate import Matching, evaluate, run_subject
from fastssl.evaluate.foreign import foreign_subject, kraehenbuehl
from fastssl.layers import initialise_by_data
from fastssl.loader import LoaderOptions, training_domains
from fastssl.methods import METHODS, Constrained, StepContext, find_method, load_config
from fastssl.train import beginning, load_trained, resume_run, start_run
from fastssl.train.beginning import begun_method

NARROW = ["model.width=0.05", "model.fc_channels=16", "model.head_channels=4"]
DRAWN = [*NARROW, "model.init=kraehenbuehl"]
QUICK = ("cross_domain", "colorization", "split_brain")
UNMOVED = ["optim.lr=1e-30", "optim.discriminator_lr=1e-30", "optim.schedule=constant", "train.steps=1"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights by 32 images, to save time."""
    monkeypatch.setattr(beginning, "_BATCHES", 2)


def test_a_training_begins_with_weights_by_its_first_images(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    """After a step that moves nothing: those by 10 batches of 16, as the training's own loader gives them."""
    config = settings(coded_synthetic, coded_real, *DRAWN, *UNMOVED)
    start_run(config, tmp_path / "run", quiet)
    wide = config.model_copy(update={"data": config.data.model_copy(update={"batch_synthetic": 16})})
    domain = training_domains(find_method("cross_domain").domains(wide), wide)["synthetic"]
    with domain.training_batches(LoaderOptions(device=torch.device("cpu"))) as batches:
        images = [batch.image.clone() for batch in islice(batches, 10)]
    method = find_method("cross_domain")(config, StepContext(config, torch.device("cpu")))
    other = {name: value.clone() for name, value in method.backbone.named_parameters()}
    initialise_by_data(method.backbone, images, torch.Generator().manual_seed(0))
    trained = dict(load_trained(tmp_path / "run").method.backbone.named_parameters())
    for name, value in method.backbone.named_parameters():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-12, msg=name)
    assert not torch.allclose(other["layers.conv1.conv.weight"], trained["layers.conv1.conv.weight"])
    untrained = run_subject(tmp_path / "run").untrained().backbone
    for name, value in untrained.named_parameters():
        torch.testing.assert_close(value, trained[name], rtol=0, atol=1e-12, msg=name)


@pytest.mark.usefixtures("few")
def test_a_run_that_goes_on_is_not_drawn_again(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    config = settings(coded_synthetic, coded_real, *DRAWN, "train.steps=4", "train.checkpoint_every=2")
    for name in ("undisturbed", "resumed"):
        start_run(config, tmp_path / name, quiet)
    assert_same(state(tmp_path / "undisturbed", 4), state(tmp_path / "resumed", 4))
    (tmp_path / "resumed" / "checkpoints" / "step_00000004.pt").unlink()
    resume_run(tmp_path / "resumed", quiet)
    assert_same(state(tmp_path / "undisturbed", 4), state(tmp_path / "resumed", 4))


@pytest.mark.soak
def test_two_ranks_begin_as_one_does(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    config = settings(coded_synthetic, coded_real, *DRAWN, *UNMOVED)
    start_run(config, tmp_path / "one", quiet)
    write_config(config, tmp_path / "config.yaml")
    words = ["train", "--gpus", "2", "--config", tmp_path / "config.yaml", "--out", tmp_path / "two"]
    process = processes.start([sys.executable, "-m", "fastssl", *map(str, words)], stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    one, two = (dict(load_trained(tmp_path / name).method.networks.named_parameters()) for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-12, msg=name)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.soak) for name in METHODS]
)
def test_every_method_keeps_its_form(name: str, coded_synthetic: Path, coded_real: Path) -> None:
    config = small(name, coded_synthetic, coded_real)
    context = StepContext(config, torch.device("cpu"))
    domains = training_domains(find_method(name).domains(config), config)
    method = begun_method(config, context, domains, LoaderOptions(device=torch.device("cpu")), resumed=False)
    convolutions = [one for one in method.backbone.modules() if isinstance(one, torch.nn.Conv2d)]
    assert isinstance(method.networks, Constrained) == (name in ("split_brain", "colorization"))
    if isinstance(method.networks, Constrained):
        for one in convolutions:
            held = method.networks.constrained(one, one.weight)
            torch.testing.assert_close(one.weight, held, atol=1e-5 * float(held.detach().abs().max()), rtol=0)
    assert not convolutions[-1].weight.isnan().any()


def small(name: str, synthetic: Path, real: Path) -> Config:
    config: Config = load_config(
        "tiny",
        method=name,
        overrides=[
            *(f"data.synthetic={synthetic}", f"data.real={real}", "data.size=67"),
            *DRAWN[: None if name == "cross_domain" else 2],
            "model.init=kraehenbuehl",
        ],
    )
    return config


def test_two_beginnings_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave one of them out"):
        load_config("tiny", overrides=["model.init=kraehenbuehl", "train.init_from=run"])


@pytest.mark.usefixtures("few")
def test_a_subject_with_weights_by_data_stands_beside_others(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", coded_synthetic, coded_real, *NARROW)
    photos = f"init:kraehenbuehl={coded_real}"
    beside = {"drawn": Path("init:kraehenbuehl"), "again": Path("init:kraehenbuehl"), "photos": Path(photos)}
    rows = evaluate(Matching(real=coded_real), run, beside).rows
    assert all(row.values["drawn"] == row.values["again"] for row in rows)
    assert any(row.values["drawn"] != row.values["trained"] for row in rows)
    assert any(row.values["drawn"] != row.values["photos"] for row in rows)
    with pytest.raises(UsageError, match="no such way to draw weights"):
        evaluate(Matching(real=coded_real), run, {"drawn": Path("init:orthogonal")})
    foreign = foreign_subject("torchvision:resnet18", "other")
    assert foreign is not None
    with pytest.raises(UsageError, match=r"knows none(.|\n)*init:kraehenbuehl=PHOTOS"):
        kraehenbuehl(foreign, "drawn")
