"""A run of every backbone that is new, from shards to evaluations, report and resuming."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_runs import SMALL, assert_same, quiet, state

from fastssl.evaluate import DomainAccuracy, Neighbours, Tasks, evaluate
from fastssl.methods import load_config
from fastssl.report import write_report
from fastssl.train import resume_run, start_run

SAMPLE = Path(__file__).parents[2] / "shards" / "sample"
# Name, frozen layer, adapted layer and side of the images.
OTHERS = [
    ("resnet50", "none", "conv5", 96),
    ("vgg16", "conv1", "conv4", 64),
    ("timm:mobilenetv3_small_050", "blocks_0", "blocks_3", 67),
]
SOME = [("resnet50", "conv1", "conv4", 67), ("timm:test_vit", "none", "blocks_2", 64)]


@pytest.mark.parametrize(
    ("name", "frozen", "adapted", "size"),
    [*SOME, *(pytest.param(*other, marks=pytest.mark.soak) for other in OTHERS)],
)
def test_a_run_is_trained_resumed_evaluated_and_reported(
    tmp_path: Path, torch_as_it_was: None, name: str, frozen: str, adapted: str, size: int
) -> None:
    paths = [f"data.synthetic={SAMPLE / 'render_train'}", f"data.real={SAMPLE / 'real_train'}", f"data.size={size}"]
    model = [f"model.backbone={name}", f"model.adapted_layer={adapted}", f"model.frozen={frozen}"]
    train = ["train.steps=2", "train.checkpoint_every=1", "train.picture_every=1", "train.deterministic=true"]
    run = tmp_path / "run"
    start_run(load_config("tiny", overrides=[*SMALL, *paths, *model, *train]), run, quiet)
    shutil.copytree(run, tmp_path / "resumed")
    (tmp_path / "resumed" / "checkpoints" / "step_00000002.pt").unlink()
    resume_run(tmp_path / "resumed", quiet)
    assert_same(state(run, 2), state(tmp_path / "resumed", 2))
    found = evaluate(Neighbours(real=SAMPLE / "retrieval"), run).section()
    assert found["conditions"]["layer"] == adapted
    accuracy = DomainAccuracy(synthetic=SAMPLE / "render_val", real=SAMPLE / "real_val")
    assert 0 <= evaluate(accuracy, run).section()["accuracy"]["trained"] <= 1
    assert set(evaluate(Tasks(synthetic=SAMPLE / "render_val"), run).section()) >= {"depth", "normal", "edge"}
    assert write_report(run).is_file()
