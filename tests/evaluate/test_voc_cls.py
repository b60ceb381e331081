"""Fine-tuning on VOC's classes: its parts beside NumPy and the backbone, all of it on a devkit of coloured photos."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import command
from evaluate.devkits import Photo, Thing, write_devkit
from made_run import make_run, strict
from made_weights import made_weights
from PIL import Image

from fastssl.errors import DataError, UsageError
from fastssl.evaluate import VocClassification, evaluate, fine_tuning
from fastssl.evaluate.classifier import Classifier
from fastssl.evaluate.fine_tuning import Training
from fastssl.evaluate.random_crops import CropBatches, Square, Wanted, cut, drawn_square
from fastssl.evaluate.subject import RunSubject
from fastssl.evaluate.voc_cls import classification_loss
from fastssl.layers import fold_batch_norms, rescaled
from fastssl.metrics import average_precision

COLOURS = {"bird": (200, 60, 60), "cat": (60, 200, 60), "sofa": (60, 60, 200)}
NAMES = ",".join(COLOURS)
QUICK = {"iterations": 36, "batch_size": 8, "lr": 0.04, "crops": 2}


def test_settings_are_those_of_the_protocol() -> None:
    """github.com/philkr/voc-classification, src/train_cls.py and the fillers, rates and solver that it writes."""
    settings = VocClassification(devkit=Path("devkit"))
    assert (settings.iterations, settings.batch_size, settings.crops) == (80_000, 16, 10)
    assert (settings.lr, settings.momentum, settings.weight_decay, settings.clip_norm) == (0.001, 0.9, 1e-6, 10)
    assert (settings.drop_every, settings.drop_factor) == (10_000, 0.5)
    assert (settings.dropout, settings.size, settings.train_from, settings.fc_lr_factor) == (0.5, 227, "all", 1)
    assert not settings.rescale
    network = classifier()
    rates = {id(one): group["lr"] for group in network.groups(0.001, 1.0) for one in group["params"]}
    assert {rates[id(one)] for name, one in network.named_parameters() if name.endswith("weight")} == {0.001}
    assert {rates[id(one)] for name, one in network.named_parameters() if name.endswith("bias")} == {0.002}
    rates = {id(one): group["lr"] for group in network.groups(0.001, 10.0) for one in group["params"]}
    fc = ("fc6", "fc7", "fc8")
    assert [rates[id(network.fully_connected[name].weight)] for name in fc] == pytest.approx([0.01] * 3)
    assert [rates[id(network.fully_connected[name].bias)] for name in fc] == pytest.approx([0.02] * 3)
    assert len(rates) == 16


def classifier(name: str = "alexnet", size: int = 227, dropout: float = 0.5) -> Classifier:
    backbone = made_weights(name, size=size).backbone
    return Classifier(backbone, 3, size=size, dropout=dropout, seed=0)


def test_alexnet_in_caffenets_form_has_its_own_features() -> None:
    """fc7 of one position is that of the dilated network at the centre of its map, batch norms and all."""
    backbone = made_weights("alexnet", size=227).backbone
    network = classifier().eval()
    image = torch.rand(2, 3, 227, 227) - 0.5
    with torch.no_grad():
        expected = backbone(image)["fc7"][:, :, 6, 6]
        found = network(image)
        torch.testing.assert_close(found, network.fully_connected["fc8"](expected), atol=1e-5, rtol=1e-4)
    assert expected.std() > 0.01
    assert network.words == "pool5 of stride 2 of conv5, fc6, fc7 as they come, fc8 drawn"
    assert not torch.equal(network.train()(image), network(image)), "nothing is dropped"


def test_other_backbones_get_a_linear_layer_on_their_mean() -> None:
    backbone = made_weights("vgg16", size=64).backbone
    network = classifier("vgg16", 64).eval()
    image = torch.rand(2, 3, 64, 64) - 0.5
    with torch.no_grad():
        expected = network.fully_connected["fc8"](backbone(image)["conv5"].mean((2, 3)))
        torch.testing.assert_close(network(image), expected, atol=1e-5, rtol=1e-4)
    weight, bias = (
        parameter.detach()
        for parameter in Classifier(backbone, 800, size=64, dropout=0, seed=1).fully_connected["fc8"].parameters()
    )
    assert weight.std() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(bias, torch.full((800,), 0.1))
    assert not torch.equal(network.train()(image), network(image)), "nothing is dropped"


@pytest.mark.parametrize(
    ("layer", "kept"),
    [("all", 0), ("conv1", 0), ("conv3", 4), ("fc6", 10), ("fc7", 12), ("fc8", 14)],
)
def test_layers_below_stay_as_they_are(layer: str, kept: int) -> None:
    network = classifier()
    network.freeze_below(layer)
    learns = [parameter.requires_grad for parameter in network.parameters()]
    assert learns == [False] * kept + [True] * (16 - kept)
    assert sum(len(group["params"]) for group in network.groups(1.0, 1.0)) == 16 - kept


def test_loss_is_that_of_numpy() -> None:
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(5, 4)) * 3, generator.integers(-1, 2, (5, 4))
    chances = 1 / (1 + np.exp(-scores))
    losses = np.where(labels == 1, -np.log(chances), -np.log(1 - chances))
    expected = losses[labels != 0].sum() / 5
    found = classification_loss(torch.from_numpy(scores), torch.from_numpy(labels.astype(np.int8)))
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("width", "height", "least", "most"),
    [(500, 375, 0.5, 375 / 227), (900, 800, 0.5, 2), (300, 100, 100 / 227, 100 / 227)],
)
def test_squares_are_drawn_as_the_protocol_says(width: int, height: int, least: float, most: float) -> None:
    generator = np.random.default_rng(0)
    drawn = np.array([drawn_square(width, height, 227, generator) for _ in range(4000)], np.float64)
    left, top, side, mirrored = drawn.T
    assert (left >= 0).all()
    assert (left + side <= width + 1e-9).all()
    assert (top >= 0).all()
    assert (top + side <= height + 1e-9).all()
    near = 0.01 * 227
    assert side.min() == pytest.approx(least * 227, abs=near)
    assert side.max() == pytest.approx(most * 227, abs=near)
    assert side.mean() == pytest.approx((least + most) / 2 * 227, abs=2 * near)
    assert np.mean(left / (width - side)) == pytest.approx(0.5, abs=0.02)
    assert mirrored.mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("square", [Square(3.25, 1.5, 20.0, False), Square(0, 0, 31, True), Square(7.5, 2, 5.5, False)])
def test_crops_are_bilinear(square: Square) -> None:
    """Beside torch's grid sampling of the same places, to a level of rounding."""
    pixels = np.random.default_rng(0).integers(0, 256, (31, 40, 3), np.uint8)
    left, top, side, mirrored = square
    steps = (torch.arange(16, dtype=torch.float64) + 0.5) / 16 * side
    x, y = (left + steps) / 40 * 2 - 1, (top + steps) / 31 * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
    image = torch.from_numpy(pixels).double().permute(2, 0, 1)[None]
    expected = F.grid_sample(image, grid, "bilinear", "border", align_corners=False)[0].permute(1, 2, 0)
    expected = expected.flip(1) if mirrored else expected
    np.testing.assert_allclose(cut(pixels, square, 16).astype(np.float64), expected.numpy(), atol=1.01)


def test_batches_depend_on_their_number_alone(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)).save(path)

    def wanted(number: int) -> list[Wanted]:
        return [Wanted(path, (3, place)) for place in range(2 * number, 2 * number + 2)] if number < 5 else []

    with CropBatches(wanted, size=16, crops=3) as batches:
        every = [batches.take(number) for number in range(5)]
    with CropBatches(wanted, size=16, crops=3, threads=1) as batches:
        torch.testing.assert_close(batches.take(3), every[3], atol=0, rtol=0)
    assert every[0].shape == (6, 3, 16, 16)
    assert not torch.equal(every[0], every[1])
    assert -0.5 < every[0].mean() < 0.5


def coloured(count: int, first: int) -> dict[str, Photo]:
    """Photos in the colour of their class; the last one shows another class only as a difficult object."""
    photos = {}
    for number in range(count):
        name = list(COLOURS)[number % len(COLOURS)]
        noise = np.random.default_rng(first + number).normal(0, 25, (240, 250, 3))
        pixels = (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)
        things = [Thing(name, (10, 20, 200, 210))]
        if number == count - 1:
            things.append(Thing("bird", (1, 1, 5, 5), difficult=True))
        photos[f"{first + number:06d}"] = Photo(Image.fromarray(pixels), tuple(things))
    return photos


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"trainval": coloured(12, 5), "test": coloured(18, 100)}
    return write_devkit(tmp_path_factory.mktemp("classes_of_devkit"), splits, COLOURS)


@pytest.fixture
def run(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> Path:
    return make_run(tmp_path / "run", coded_synthetic, coded_real, "model.init_gain=1.4142", "model.fc_channels=32")


def test_training_follows_the_settings(run: Path, devkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schedule and the solver as they are when a training begins, by the defaults."""
    begun: list[tuple[Training, torch.optim.Optimizer, torch.nn.Module]] = []

    def begins(self: Training, networks: torch.nn.Module, optimizer: torch.optim.Optimizer, *_: object) -> None:
        begun.append((self, optimizer, networks))
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "run", begins)
    monkeypatch.setattr(RunSubject, "baselines", lambda _: ())
    with pytest.raises(KeyboardInterrupt):
        evaluate(VocClassification(devkit=devkit, classes=NAMES), run)
    ((training, optimizer, networks),) = begun
    assert (training.steps, training.clip_norm) == (80_000, 10)
    factors = [training.lr_factor(step) for step in (0, 9_999, 10_000, 19_999, 20_000, 79_999)]
    assert factors == [1, 1, 0.5, 0.5, 0.25, 0.5**7]
    assert all((group["momentum"], group["weight_decay"]) == (0.9, 1e-6) for group in optimizer.param_groups)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.001, 0.002]
    assert networks.training
    assert all(parameter.requires_grad for parameter in networks.parameters())


def test_rescaled_layers_learn_as_fast_as_one_another(run: Path, devkit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gradients are as long relative to their weights, for a random gradient of the last map, on its crops."""
    seen: list[tuple[Any, Any, list[torch.Tensor]]] = []

    def kept(backbone: Any, images: list[torch.Tensor]) -> Any:
        seen.append((backbone, rescaled(backbone, images), images))
        return copy.deepcopy(seen[-1][1])  # the classifier takes fc6 and fc7 out of it

    def begins(self: Training, networks: Any, *_: object) -> None:
        learnt = dict(networks.named_parameters())
        for name, weight in seen[-1][1].layers["conv3"].named_parameters():
            assert torch.equal(learnt[f"backbone.layers.conv3.{name}"], weight)
        raise KeyboardInterrupt

    monkeypatch.setattr(Training, "run", begins)
    monkeypatch.setattr(RunSubject, "baselines", lambda _: ())
    monkeypatch.setattr("fastssl.evaluate.voc_cls.rescaled", kept)
    with pytest.raises(KeyboardInterrupt):
        evaluate(VocClassification(devkit=devkit, classes=NAMES, rescale=True), run)
    ((before, after, images),) = seen
    assert [len(one) for one in images] == [16] * 10
    assert spread_of_ratios(after, images[:3]) < 1.5 < 3 < spread_of_ratios(fold_batch_norms(before), images[:3])


def spread_of_ratios(backbone: Any, images: list[torch.Tensor]) -> float:
    """The largest of the layers' ratios of gradient to weight over the smallest."""
    backbone.requires_grad_(True)
    weights = [module.weight for module in backbone.modules() if isinstance(module, torch.nn.Conv2d)]
    squares, generator = np.zeros(len(weights)), torch.Generator().manual_seed(0)
    for batch in images:
        last = backbone(batch)[backbone.last]
        found = torch.autograd.grad(last, weights, torch.randn(last.shape, generator=generator))
        squares += [float(one.square().mean()) for one in found]
    ratios = np.sqrt(squares / [float(weight.detach().square().mean()) for weight in weights])
    return float(ratios.max() / ratios.min())


def labels_of(place: int) -> list[int]:
    """Of the 18 photos of `coloured`, for the class at this place."""
    return [1 if number % 3 == place else 0 if (number, place) == (17, 0) else -1 for number in range(18)]


def by_chance(labels: Mapping[str, Sequence[int]]) -> float:
    """The mean AP that one in a thousand random rankings reaches."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        each = []
        for values in labels.values():
            counted = np.array([value == 1 for value in values if value != 0])
            each.append(average_precision(generator.random(len(counted)), counted))
        found.append(np.mean(each))
    return float(np.quantile(found, 0.999))


def test_colours_are_learnt_and_a_kill_costs_nothing(
    run: Path, devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = VocClassification(devkit=devkit, classes=NAMES, **QUICK)
    monkeypatch.setattr(RunSubject, "baselines", lambda _: ())
    whole = evaluate(evaluation, run)
    section = strict((run / "summary.json").read_text())["voc-cls"]
    labels = {name: labels_of(place) for place, name in enumerate(COLOURS)}
    assert by_chance(labels) < 0.7
    assert section["mean_ap"]["trained"] >= 0.9
    assert section["mean_ap_11_point"]["trained"] >= 0.9
    assert section["one_crop"]["mean_ap"]["trained"] >= 0.8
    each = [section["classes"][name]["ap"]["trained"] for name in COLOURS]
    assert np.mean(each) == pytest.approx(section["mean_ap"]["trained"])
    assert section["conditions"]["deviations"]["iterations"] == "36 instead of 80000"
    assert "not those of the protocol: classes" in caplog.text
    assert not (run / "voc_cls.pt").exists()

    made: list[int] = []
    take = CropBatches.take

    def dies(self: CropBatches, number: int) -> torch.Tensor:
        made.append(number)
        if made.count(24) == 1 and number == 24:
            raise KeyboardInterrupt
        return take(self, number)

    monkeypatch.setattr(CropBatches, "take", dies)
    monkeypatch.setattr(fine_tuning, "_KEEP_EVERY_S", 0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, run)
    assert (run / "voc_cls.pt").exists()
    assert evaluate(evaluation, run).rows == whole.rows
    assert made.count(23) == 1
    assert made.count(24) == 2


def write_scores(path: Path, devkit: Path, **changes: float | None) -> Path:
    """Scores of the test photos by their order and of all classes alike, but for some changed ones of bird."""
    identities = (devkit / "VOC2007/ImageSets/Main/test.txt").read_text().split()
    scores = {identity: dict.fromkeys(COLOURS, -float(place)) for place, identity in enumerate(identities)}
    content: dict[str, dict[str, float | None]] = {**scores}
    for identity, score in changes.items():
        content[identity.removeprefix("photo")]["bird"] = score
    path.write_text(json.dumps(content))
    return path


def test_scores_of_others_are_scored(
    devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranked by their order, whose every third shows a class: precisions n / (3 n - 2 + place) in fractions."""
    options = ("eval", "voc-cls", "--devkit", devkit, "--classes", NAMES)
    scores = write_scores(tmp_path / "scores.json", devkit)
    assert command(monkeypatch, *options, "--scores", scores, "--json") == 0
    section = strict(capsys.readouterr().out)
    each = [np.mean([n / (3 * n - 2 + place) for n in range(1, 7)]) for place in range(3)]
    assert section["mean_ap"]["predictions"] == pytest.approx(np.mean(each))
    found = [section["classes"][name]["ap"]["predictions"] for name in COLOURS]
    assert found == pytest.approx(each)
    # The last photo, where bird is difficult, does not count for it, whatever its score.
    write_scores(scores, devkit, photo000117=100)
    assert command(monkeypatch, *options, "--scores", scores) == 0
    assert f"bird (%, higher is better){each[0] * 100:>18.1f}".split() in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]
    # Of equal scores those of other photos come first.
    write_scores(scores, devkit, photo000100=-5)
    assert command(monkeypatch, *options, "--scores", scores, "--json") == 0
    section = strict(capsys.readouterr().out)
    expected = np.mean([1 / 3, 2 / 6, 3 / 7, 4 / 10, 5 / 13, 6 / 16])
    assert section["classes"]["bird"]["ap"]["predictions"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a file of scores is damaged"),
        ("[" * 100_000, "a file of scores is damaged"),
        ('{"000100": {"bird": 1%s}}' % ("0" * 400), r"no finite number(.|\n)*photo 000100, bird"),
        ("{}", r"a score is missing(.|\n)*seen: nothing"),
        ("[]", r"a score is missing(.|\n)*photo 000100, bird"),
        ('{"000100": {"bird": 1, "cat": NaN}}', r"no finite number(.|\n)*photo 000100, cat(.|\n)*nan"),
        ('{"000100": {"bird": true}}', r"no finite number(.|\n)*photo 000100, bird(.|\n)*True"),
        ('{"000100": {"bird": 1, "cat": 0, "sofa": 2}}', r"a score is missing(.|\n)*photo 000101, bird"),
    ],
)
def test_scores_that_are_none(devkit: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "scores.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        evaluate(VocClassification(devkit=devkit, classes=NAMES, scores=path), None)


def test_a_run_or_scores_not_both(
    devkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("eval", "voc-cls", "--devkit", devkit, "--classes", NAMES)
    assert command(monkeypatch, *options) == 2
    assert "nothing to measure" in capsys.readouterr().err
    scores = write_scores(tmp_path / "scores.json", devkit)
    assert command(monkeypatch, *options, "--scores", scores, tmp_path) == 2
    assert "scored without a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoiled", "options", "message"),
    [  # data that are spoiled have the exit code 3, and settings 2
        ("ImageSets/Main/test.txt", (), "the list of a split is missing"),
        ("ImageSets/Main/cat_trainval.txt", (), "the list of a class is missing"),
        ("JPEGImages/000103.jpg", (), "a photo that the devkit lists is missing"),
        (None, ("--train-from", "fc9"), "the network has no such layer"),
        (None, ("--size", "211"), "the fc6 of the network does not take images of this size"),
        (None, ("--size", "224"), "the network does not take images of this size"),
    ],
)
def test_bad_input_is_named_before_anything_is_learnt(
    run: Path,
    tmp_path: Path,
    spoiled: str | None,
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = write_devkit(tmp_path, {"trainval": coloured(3, 5), "test": coloured(4, 100)}, COLOURS)
    if spoiled is not None:
        (root / "VOC2007" / spoiled).unlink()
    arguments = ("eval", "voc-cls", run, "--devkit", root, "--classes", NAMES, *options)
    assert command(monkeypatch, *arguments) == (3 if spoiled else 2)
    told = capsys.readouterr().err
    assert message in told
    assert spoiled is None or Path(spoiled).name in told


def test_settings_out_of_range(devkit: Path) -> None:
    for name, value in {"iterations": 0, "lr": float("nan"), "dropout": 1.0, "weight_decay": -1.0, "size": 32}.items():
        with pytest.raises(UsageError, match=f"out of range(.|\n)*--{name.replace('_', '-')}"):
            VocClassification(devkit=devkit, **{name: value})
    with pytest.raises(UsageError, match=r"no such class(.|\n)*--classes(.|\n)*aeroplane"):
        VocClassification(devkit=devkit, classes="kat")


def test_an_alexnet_of_torchvision_goes_through(devkit: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """fc6 to fc8 are drawn, fc8 alone learns; what it learns is kept in a folder of its own as long as it has to be."""
    pytest.importorskip("torchvision")
    kept = tmp_path / "kept"
    evaluation = VocClassification(
        devkit=devkit, classes=NAMES, iterations=1, batch_size=2, crops=1, train_from="fc8", progress=kept
    )
    found = evaluate(evaluation, Path("torchvision:alexnet"))
    assert all(0 < row.values["subject"] <= 1 for row in found.rows)
    assert found.conditions["network"] == {"subject": "pool5 of stride 2 of conv5, fc6, fc7, fc8 drawn"}
    assert list(kept.iterdir()) == []
    assert "nothing keeps" not in caplog.text
