"""Subjects that are no run, against the libraries that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from made_run import make_run, strict

from fastssl.batch import IMAGE_MEAN
from fastssl.errors import DataError, UsageError
from fastssl.evaluate import DomainAccuracy, Matching, Tasks, evaluate, run_subject
from fastssl.evaluate.foreign import foreign_subject, gaussian
from fastssl.export.run import export_run

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def test_torchvision_gives_its_own_maps_of_images_as_it_wants_them(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    model = models.resnet18().eval()
    state = model.state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith("fc")}, tmp_path / "weights.pt")
    subject = foreign_subject(f"torchvision:resnet18={tmp_path / 'weights.pt'}", "other")
    assert subject is not None
    assert list(subject.backbone.feature_info) == ["relu", "layer1", "layer2", "layer3", "layer4"]
    assert [info.stride for info in subject.backbone.feature_info.values()] == [2, 4, 8, 16, 32]
    assert (subject.config.data.size, subject.layer) == (224, "layer4")
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        found = subject.backbone(image - torch.from_numpy(IMAGE_MEAN)[:, None, None])
        stem = model.relu(model.bn1(model.conv1((image - MEAN[:, None, None]) / DEVIATION[:, None, None])))
        layer4 = model.layer4(model.layer3(model.layer2(model.layer1(model.maxpool(stem)))))
    torch.testing.assert_close(found["relu"], stem, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["layer4"], layer4, atol=1e-4, rtol=1e-4)
    torch.save({"conv1.weight": state["conv1.weight"]}, tmp_path / "some.pt")
    with pytest.raises(DataError, match=r"weights are missing(.|\n)*no bn1.weight and \d+ more"):
        foreign_subject(f"torchvision:resnet18={tmp_path / 'some.pt'}", "other")
    with pytest.raises(DataError, match="cannot be loaded"):
        foreign_subject(f"torchvision:resnet18={tmp_path / 'gone.pt'}", "other")
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(DataError, match=r"no file of tensors alone(.|\n)*torch\.save") as refused:
        foreign_subject(f"torchvision:resnet18={tmp_path / 'text.pt'}", "other")
    assert "code" not in str(refused.value), "torch advises to load what may run any"
    with pytest.raises(UsageError, match="no such network"):
        foreign_subject("torchvision:resnet17", "other")
    with pytest.raises(UsageError, match="no convolutional stages"):
        foreign_subject("torchvision:vit_b_16", "other")


def test_timm_sees_images_as_its_weights_want_them() -> None:
    timm = pytest.importorskip("timm")
    subject = foreign_subject("timm:mobilenetv3_small_050", "other")
    assert subject is not None
    model = timm.create_model("mobilenetv3_small_050").eval()
    backbone: Any = subject.backbone
    model.load_state_dict(backbone.model.state_dict(), strict=False)
    image = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        found = subject.backbone(image - torch.from_numpy(IMAGE_MEAN)[:, None, None])
        standard = (image - MEAN[:, None, None]) / DEVIATION[:, None, None]
        expected = model.forward_intermediates(standard, intermediates_only=True)
    torch.testing.assert_close(list(found.values())[-1], expected[-1], atol=1e-4, rtol=1e-3)


@pytest.fixture
def run(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> Path:
    return make_run(tmp_path / "run", coded_synthetic, coded_real, "data.window=[1.0,1.0]", "data.gray=off")


def test_an_exported_file_has_the_numbers_of_its_run(run: Path, tmp_path: Path, coded_real: Path) -> None:
    """Of one that sees the whole image in colour, as a file of weights does."""
    file = tmp_path / "weights.safetensors"
    export_run(run, file, "safetensors")
    evaluation = Matching(real=coded_real)
    beside = {"file": file, "fresh": Path("init:gaussian")}
    found = evaluate(evaluation, run, beside)
    assert all(row.values["file"] == row.values["trained"] for row in found.rows)
    assert any(row.values["fresh"] != row.values["trained"] for row in found.rows)
    before = strict((run / "summary.json").read_text())
    alone = evaluate(evaluation, file)
    assert [row.values["subject"] for row in alone.rows] == [row.values["trained"] for row in found.rows]
    assert "subject_reestimated" in alone.rows[0].values
    assert "untrained" not in alone.rows[0].values
    assert strict((run / "summary.json").read_text()) == before


def test_what_a_subject_without_a_run_lacks_is_said(
    run: Path, tmp_path: Path, coded_synthetic: Path, coded_real: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    export_run(run, file, "safetensors")
    with pytest.raises(UsageError, match=r"needs the data that a run was trained on"):
        evaluate(DomainAccuracy(synthetic=coded_synthetic, real=coded_real), file)
    with pytest.raises(UsageError, match="needs another subject"):
        evaluate(Matching(real=coded_real), Path("init:gaussian"))
    with pytest.raises(UsageError, match="predicts neither"):
        evaluate(Tasks(synthetic=coded_synthetic), file)


def test_gaussian_weights_are_small_and_the_same_again(run: Path) -> None:
    subject = run_subject(run)
    fresh, again = gaussian(subject, "fresh"), gaussian(subject, "fresh")
    weights = torch.cat(
        [one.weight.detach().flatten() for one in fresh.backbone.modules() if isinstance(one, torch.nn.Conv2d)]
    )
    assert weights.std() == pytest.approx(0.01, rel=0.02)
    assert abs(weights.mean()) < 5e-4
    for name, value in fresh.backbone.state_dict().items():
        assert torch.equal(value, again.backbone.state_dict()[name])
    assert fresh.config == subject.config
