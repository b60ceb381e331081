"""The parts of a detector and of its measure, beside pixels that are counted, NumPy, and the backbone itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat
from torch import Tensor

from fastssl.backbones import build_backbone
from fastssl.batch import IMAGE_MEAN
from fastssl.config import BackboneSettings
from fastssl.errors import DataError, UsageError
from fastssl.evaluate.boxes import clipped, mirrored, moved, offsets_to, overlaps
from fastssl.evaluate.detections import Detections, Objects, read_detections, right_ones, write_detections
from fastssl.evaluate.detector import Detecting, Lessons, Photo
from fastssl.evaluate.fast_rcnn import AlexNetMaps, FastRCNN, Found, boxes_of_regions, loss_of_regions, scaled, together
from fastssl.evaluate.proposals import read_proposals
from fastssl.evaluate.regions import Chosen, Offsets, Sampling, regions_of
from fastssl.layers import fold_batch_norms
from fastssl.metrics import interpolated_at_11_points

WIDTH, HEIGHT = 40, 30


def drawn_boxes(generator: np.random.Generator, count: int, least: int = 0) -> NDArray[np.float64]:
    """Boxes in an image of 40 x 30, whose sides are at least so much."""
    x1, y1 = generator.integers(0, WIDTH - least, count), generator.integers(0, HEIGHT - least, count)
    x2, y2 = generator.integers(x1 + least, WIDTH), generator.integers(y1 + least, HEIGHT)
    return np.stack([x1, y1, x2, y2], axis=1).astype(np.float64)


def mask(box: Sequence[float]) -> NDArray[np.bool_]:
    x1, y1, x2, y2 = map(int, box)
    found = np.zeros((HEIGHT, WIDTH), bool)
    found[y1 : y2 + 1, x1 : x2 + 1] = True
    return found


def counted_overlap(box: Sequence[float], other: Sequence[float]) -> float:
    return float((mask(box) & mask(other)).sum() / (mask(box) | mask(other)).sum())


def test_overlaps_are_those_of_counted_pixels() -> None:
    generator = np.random.default_rng(0)
    boxes, others = drawn_boxes(generator, 30), drawn_boxes(generator, 20)
    expected = [[counted_overlap(box, other) for other in others] for box in boxes]
    np.testing.assert_allclose(overlaps(torch.from_numpy(boxes), torch.from_numpy(others)), expected, rtol=1e-12)
    for box, seen in zip(boxes, mirrored(torch.from_numpy(boxes), WIDTH).tolist(), strict=True):
        np.testing.assert_array_equal(mask(seen), mask(box)[:, ::-1])


def test_a_box_moved_by_its_offsets_is_the_target() -> None:
    generator = np.random.default_rng(1)
    boxes, targets = (torch.from_numpy(drawn_boxes(generator, 50, least=1)).float() for _ in range(2))
    torch.testing.assert_close(moved(boxes, offsets_to(boxes, targets)), targets, rtol=1e-5, atol=1e-4)
    # Twice as wide, half as high, its centre 5 of 10 pixels to the right and 2 of 20 up.
    found = offsets_to(torch.tensor([[10.0, 10, 20, 30]]), torch.tensor([[10.0, 13, 30, 23]]))
    np.testing.assert_allclose(found, [[0.5, -0.1, np.log(2), -np.log(2)]], rtol=1e-6)
    single = torch.tensor([[7.0, 7, 7, 7]])
    assert offsets_to(single, torch.tensor([[7.0, 6, 9, 9]])).isfinite().all()
    assert clipped(torch.tensor([[-3.0, 2, 50, 29.5]]), WIDTH, HEIGHT).tolist() == [[0, 2, 39, 29]]


def devkit_flags(found: Detections, objects: dict[str, Objects]) -> list[bool]:
    """VOCevaldet.m, detection by detection: tp and fp of the sorted ones, those that are neither left out."""
    seen = {image: [False] * len(own.boxes) for image, own in objects.items()}
    flags = []
    for number in sorted(range(len(found.scores)), key=lambda one: -found.scores[one]):
        image, most, best = found.images[number], -np.inf, -1
        for one, box in enumerate(objects[image].boxes if image in objects else []):
            overlap = counted_overlap(found.boxes[number], box)
            if overlap > most:
                most, best = overlap, one
        if most < 0.5:
            flags.append(False)
        elif not objects[image].difficult[best]:
            flags.append(not seen[image][best])
            seen[image][best] = True
    return flags


def devkit_precision(flags: list[bool], count: int) -> float:
    """VOCevaldet.m of 2007: the mean over recalls of 0, 0.1, ... 1 of the highest precision from there on."""
    right = np.cumsum(flags)
    recall, precision = right / count, right / np.arange(1, len(flags) + 1)
    highest = [precision[recall * 10 >= tenth - 1e-6] for tenth in range(11)]
    return sum(part.max() if len(part) else 0 for part in highest) / 11


def test_right_detections_are_those_of_the_devkit() -> None:
    generator = np.random.default_rng(2)
    met = np.zeros(3, int)
    for _ in range(20):
        objects = {
            image: Objects(drawn_boxes(generator, 3, least=8), generator.random(3) < 0.4) for image in ("a", "b")
        }
        images = [*generator.choice(["a", "b"], 40), "c"]
        boxes = drawn_boxes(generator, 41, least=8)
        near = generator.random(41) < 0.7  # near an object: moved by a pixel or two
        for number in np.flatnonzero(near[:40]):
            own = objects[images[number]].boxes[generator.integers(3)] + generator.integers(-2, 3, 4)
            boxes[number] = np.clip(own, 0, [WIDTH - 1, HEIGHT - 1] * 2)
        found = Detections(images, generator.integers(0, 12, 41) / 12, boxes)
        expected = devkit_flags(found, objects)
        assert right_ones(found, objects).tolist() == expected
        count = max(1, sum(int((~own.difficult).sum()) for own in objects.values()))
        precision = interpolated_at_11_points(right_ones(found, objects), count)
        assert precision == pytest.approx(devkit_precision(expected, count))
        met += (sum(expected), len(expected) - sum(expected), 41 - len(expected))
    assert (met > 50).all(), "right, wrong and left out"


def test_half_is_enough_duplicates_are_wrong_and_difficult_ones_left_out() -> None:
    """By hand: an object of 10 x 10 pixels and a difficult one. 5 of its 10 rows are an overlap of exactly a half."""
    objects = {"a": Objects(np.array([[0.0, 0, 9, 9], [20, 0, 29, 9]]), np.array([False, True]))}
    boxes = [[0, 0, 9, 4], [0, 0, 9, 9], [20, 0, 29, 9], [0, 0, 9, 3], [0, 0, 9, 8]]
    scores = np.array([0.5, 0.9, 0.8, 1.0, 0.7])
    found = Detections(["a"] * 5, scores, np.array(boxes, np.float64))
    assert right_ones(found, objects).tolist() == [False, True, False, False]
    alone = Detections(["a"], scores[:1], found.boxes[:1])
    assert right_ones(alone, objects).tolist() == [True]


def test_files_of_detections_give_back_what_they_were_made_of(tmp_path: Path) -> None:
    found = {
        "cat": Detections(["000005", "x_1"], np.array([0.1, 1 / 3]), np.array([[0.0, 0.25, 3, 4], [1, 2, 33.33, 5]])),
        "dog": Detections([], np.zeros(0), np.zeros((0, 4))),
    }
    write_detections(tmp_path / "out", "test", found)
    text = (tmp_path / "out" / "comp4_det_test_cat.txt").read_text()
    assert text.splitlines()[0] == "000005 0.1 1.00 1.25 4.00 5.00"
    again = read_detections(tmp_path / "out", "test", ["cat", "dog"], ["000005", "x_1"])
    for name, (images, scores, boxes) in found.items():
        assert again[name].images == images
        np.testing.assert_allclose(again[name].scores, scores, rtol=1e-8)
        np.testing.assert_allclose(again[name].boxes, boxes, atol=1e-9)
    with pytest.raises(DataError, match=r"cannot be read(.|\n)*comp4_det_val_cat.txt"):
        read_detections(tmp_path / "out", "val", ["cat"], [])
    for line in (
        "000006 0.5 1 1 2 2",
        "000005 0.5 1 1 2",
        "000005 nan 1 1 2 2",
        "000005 0.5 3 1 2 2",
        "000005 a 1 1 2 2",
    ):
        (tmp_path / "comp4_det_test_cat.txt").write_text(f"000005 0.5 1 1 2 2\n{line}\n")
        with pytest.raises(DataError, match=r"no detection(.|\n)*cat.txt:2") as error:
            read_detections(tmp_path, "test", ["cat"], ["000005"])
        assert error.value.exit_code == 3


SAMPLING = Sampling(count=64, foreground_fraction=0.25, foreground_overlap=0.5, background_least=0.1)


def regions(seed: int = 3, count: int = 400) -> tuple[NDArray[np.float64], Tensor, Any]:
    generator = np.random.default_rng(seed)
    objects = np.array([[2.0, 2, 17, 17], [20, 5, 37, 28]])
    proposals = drawn_boxes(generator, count, least=5)
    classes = torch.tensor([3, 1])
    return objects, classes, regions_of(torch.from_numpy(objects), classes, torch.from_numpy(proposals).float())


def test_regions_are_drawn_by_their_overlap() -> None:
    objects, classes, found = regions()
    all_overlaps = np.array([[counted_overlap(box, one) for one in objects] for box in found.boxes.numpy()])
    nearest = all_overlaps.argmax(axis=1)
    np.testing.assert_allclose(found.overlap, all_overlaps.max(axis=1))
    offsets = Offsets.of([found], 3, 0.5, flip=True)
    chosen = SAMPLING.draw(found, offsets, np.random.default_rng(4), None)
    rows = [np.flatnonzero((found.boxes == box).all(dim=1).numpy())[0] for box in chosen.boxes]
    assert len(set(rows)) == 64, "without replacement"
    assert (found.overlap[rows[:16]] >= 0.5).all()
    assert ((found.overlap[rows[16:]] >= 0.1) & (found.overlap[rows[16:]] < 0.5)).all()
    assert chosen.classes.tolist() == [*classes[nearest[rows[:16]]].tolist(), *[0] * 48]
    restored = chosen.offsets * offsets.deviation[chosen.classes] + offsets.mean[chosen.classes]
    targets = torch.from_numpy(objects[nearest[rows[:16]]]).float()
    torch.testing.assert_close(moved(chosen.boxes[:16], restored[:16]), targets, rtol=1e-4, atol=1e-3)
    seen = SAMPLING.draw(found, offsets, np.random.default_rng(4), WIDTH)
    torch.testing.assert_close(seen.boxes, mirrored(chosen.boxes, WIDTH))
    restored = seen.offsets * offsets.deviation[seen.classes] + offsets.mean[seen.classes]
    mirrored_targets = mirrored(targets, WIDTH)
    torch.testing.assert_close(moved(seen.boxes[:16], restored[:16]), mirrored_targets, rtol=1e-4, atol=1e-3)


def test_few_regions_are_all_taken_and_none_below_the_least_overlap() -> None:
    objects = torch.tensor([[0.0, 0, 9, 9]])
    # Overlaps of 1 (the object), 0.5, 0.1, 0.09 and 0.
    proposals = torch.tensor([[0.0, 0, 9, 4], [0, 0, 9, 0], [0, 0, 8, 0], [20, 20, 29, 29]])
    found = regions_of(objects, torch.tensor([2]), proposals)
    chosen = SAMPLING.draw(found, Offsets.of([found], 2, 0.5, flip=False), np.random.default_rng(0), None)
    assert sorted(chosen.boxes[:2].tolist()) == [[0, 0, 9, 4], [0, 0, 9, 9]]
    assert chosen.boxes[2:].tolist() == [[0, 0, 9, 0]]
    assert chosen.classes.tolist() == [2, 2, 0]
    nothing = regions_of(objects[:0], torch.zeros(0, dtype=torch.int64), proposals)
    assert not SAMPLING.usable(nothing)
    assert SAMPLING.usable(found)


def test_offsets_are_normalised_over_all_regions_of_a_class() -> None:
    every = [regions(seed)[2] for seed in (5, 6)]
    found = Offsets.of(every, 3, 0.5, flip=True)
    for number in (1, 3):
        rows = []
        for image in every:
            near = ((image.overlap >= 0.5) & (image.classes == number)).numpy()
            (bx1, by1, bx2, by2), (tx1, ty1, tx2, ty2) = (
                part[near].double().numpy().T for part in (image.boxes, image.targets)
            )
            width, height = bx2 - bx1, by2 - by1
            x, y = ((tx1 + tx2) - (bx1 + bx2)) / 2 / width, ((ty1 + ty2) - (by1 + by2)) / 2 / height
            w, h = np.log((tx2 - tx1) / width), np.log((ty2 - ty1) / height)
            rows += [np.stack([side * x, y, w, h], axis=1) for side in (1, -1)]
        values = np.concatenate(rows)
        np.testing.assert_allclose(found.mean[number], values.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(found.deviation[number], values.std(axis=0), rtol=1e-5)
    assert found.mean[2].tolist() == [0] * 4, "no region of this class"
    assert found.deviation[2].tolist() == [1] * 4


def alexnet() -> Any:
    torch.manual_seed(0)
    backbone = build_backbone(BackboneSettings(width=0.1, fc_channels=16)).eval()
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
        elif isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return backbone


def detector(backbone: Any, **settings: Any) -> FastRCNN:
    given = {"num_classes": 2, "fc_channels": 16, "dropout": 0.5, "frozen": "none", "seed": 0, **settings}
    return FastRCNN(backbone, **given)


def test_positions_of_alexnets_map_lie_at_multiples_of_16_pixels() -> None:
    maps = AlexNetMaps(fold_batch_norms(alexnet()))
    for convolution in maps.convolutions.values():  # what a position sees, whatever the weights are
        torch.nn.init.ones_(convolution.weight)
    image = torch.rand(1, 3, 257, 289)
    with torch.no_grad():
        found = maps(image)
        assert found.shape[2:] == (17, 19)
        # Both ends are multiples of 16, so a mirror changes nothing but the order.
        torch.testing.assert_close(maps(image.flip(2, 3)), found.flip(2, 3), rtol=1e-4, atol=0)


def test_the_fully_connected_layers_are_the_backbones_own() -> None:
    """At a position, a 6 x 6 convolution of dilation 2 sees every other place of the pooled map from 5 before it on."""
    backbone = alexnet()
    image = torch.rand(1, 3, 227, 227) - 0.5
    with torch.no_grad():
        features = backbone(image)
        pooled = torch.nn.functional.max_pool2d(features["conv5"].relu(), 3, 1, 1)
        network = detector(backbone).eval()
        hidden = network.fc7(network.fc6(pooled[:, :, 1:12:2, 1:12:2].flatten(1)).relu()).relu()
    torch.testing.assert_close(hidden[0], features["fc7"][0, :, 6, 6], rtol=1e-4, atol=1e-4)
    assert hidden.std() > 0.01


def test_a_region_of_six_by_six_positions_is_pooled_as_it_is() -> None:
    """From the pixel 32 to 112 of 16 each: RoI pooling takes the six positions 2 to 7, one a bin."""
    network = detector(alexnet()).eval()
    image = torch.rand(2, 3, 160, 144)
    with torch.no_grad():
        found = network(image, torch.tensor([[1.0, 32, 16, 112, 96]]))
        own = network.maps(image)[1, :, 1:7, 2:8]
        hidden = network.fc7(network.fc6(own.flatten()).relu()).relu()
    torch.testing.assert_close(found.scores[0], network.scores(hidden))
    torch.testing.assert_close(found.offsets[0], network.offsets(hidden).view(3, 4))


def test_other_backbones_are_padded_and_get_layers_of_their_own() -> None:
    settings = BackboneSettings(backbone="vgg16", width=0.1, fc_channels=16)
    torch.manual_seed(0)
    network = detector(build_backbone(settings).eval(), frozen="conv1").eval()
    assert network.words == "vgg16, batch norms folded, RoI pooling of conv5, fc6 and fc7 drawn"
    image = torch.rand(1, 3, 50, 70)
    padded = torch.zeros(1, 3, 64, 80)
    padded[:, :, :50, :70] = image
    with torch.no_grad():
        torch.testing.assert_close(network.maps(image), network.maps(padded))
    loss = network(image, torch.tensor([[0.0, 3, 3, 40, 40]])).scores.sum()
    loss.backward()
    learning = [name for name, parameter in network.named_parameters() if parameter.grad is not None]
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert all("conv1" in name for name in frozen)
    assert len(frozen) == 4
    assert len(learning) > 20
    with pytest.raises(UsageError, match="no such layer"):
        detector(alexnet(), frozen="conv9")


def test_a_stride_is_that_of_the_map_whatever_the_backbone_says() -> None:
    """Of timm's models it is rounded: 29 of 176 pixels and a map of 6 x 6."""
    backbone = build_backbone(BackboneSettings(backbone="timm:resnet10t"), post_relu=True).eval()
    assert backbone.feature_info[backbone.last].stride == 29
    assert detector(backbone).maps.stride == 32


def test_layers_are_drawn_and_biases_learn_at_twice_the_rate() -> None:
    torch.manual_seed(0)
    network = detector(build_backbone(BackboneSettings(width=0.1, fc_channels=512)), num_classes=20)
    assert network.scores.weight.shape == (21, 512)
    assert network.offsets.weight.shape == (84, 512)
    assert network.scores.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert network.offsets.weight.std().item() == pytest.approx(0.001, rel=0.05)
    weights, biases = network.parameter_groups(0.001, 5e-4)
    assert (weights["lr"], weights["weight_decay"]) == (0.001, 5e-4)
    assert (biases["lr"], biases["weight_decay"]) == (0.002, 0)
    assert {parameter.dim() for parameter in biases["params"]} == {1}
    assert len(weights["params"]) == len(biases["params"]) == 9, "conv1 to conv5, fc6, fc7, scores, offsets"
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_loss_is_that_of_numpy() -> None:
    generator = np.random.default_rng(7)
    scores, offsets, targets = (generator.normal(size=shape) for shape in ((6, 4), (6, 4, 4), (6, 4)))
    classes = np.array([2, 0, 3, 1, 0, 0])
    expected = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(6), classes]
    for row in np.flatnonzero(classes):
        away = np.abs(offsets[row, classes[row]] - targets[row])
        expected[row] += np.where(away < 1, away**2 / 2, away - 0.5).sum()
    found = Found(torch.from_numpy(scores), torch.from_numpy(offsets))
    chosen = Chosen(torch.zeros(6, 4), torch.from_numpy(classes), torch.from_numpy(targets))
    assert loss_of_regions(found, chosen).item() == pytest.approx(expected.mean())


def test_images_are_scaled_by_their_shorter_side_unless_they_get_too_long() -> None:
    pixels = np.full((375, 500, 3), 51, np.uint8)
    image, scale = scaled(pixels, 600, 1000, torch.device("cpu"))
    assert (image.shape, scale) == ((3, 600, 800), 1.6)
    np.testing.assert_allclose(image[:, 300, 400], 0.2 - IMAGE_MEAN, atol=1e-6)
    image, scale = scaled(pixels[:200], 600, 1000, torch.device("cpu"))
    assert (image.shape, scale) == ((3, 400, 1000), 2.0)
    both = together([image, torch.ones(3, 500, 20)])
    assert both.shape == (2, 3, 500, 1000)
    assert both[0, :, 400:].abs().max() == both[1, :, :, 20:].abs().max() == 0


class Known(torch.nn.Module):
    """A network that knows the scores of the regions of each photo, one after the other; boxes stay."""

    def __init__(self, scores: Sequence[Tensor]) -> None:
        super().__init__()
        self._scores = iter(scores)

    def forward(self, images: Tensor, boxes: Tensor) -> Found:
        scores = next(self._scores)
        return Found(scores.log(), torch.zeros(len(boxes), scores.shape[1], 4))


def fast_rcnn_test(scores: Sequence[Any], boxes: Sequence[Any], per_image: int, mean: int) -> list[tuple[int, float]]:
    """A class's detections as the loop of Fast R-CNN's `test_net` finds them, with its growing threshold."""
    top: list[float] = []
    threshold, kept = -np.inf, []
    for own, places in zip(scores, boxes, strict=True):
        above = np.flatnonzero(own > threshold)
        above = above[np.argsort(-own[above], kind="stable")][:per_image]
        top = sorted([*top, *own[above]])
        if len(top) > mean * len(scores):
            top = top[len(top) - mean * len(scores) :]
            threshold = top[0]
        kept.append((own[above], places[above]))
    found = []
    for number, (own, places) in enumerate(kept):
        left = [(score, box) for score, box in zip(own, places, strict=True) if score > threshold]
        while left:
            (score, box), *others = left
            found.append((number, float(score)))
            left = [(one, other) for one, other in others if counted_overlap(box, other) <= 0.3]
    return found


def test_detections_are_those_of_fast_rcnns_loop(tmp_path: Path) -> None:
    generator = np.random.default_rng(8)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    boxes = [drawn_boxes(generator, 30, least=4) for _ in range(6)]
    scores = [torch.from_numpy(generator.dirichlet(np.ones(3), 30)).float() for _ in range(6)]
    nothing = torch.zeros(0, 4)
    photos = [
        Photo(str(n), tmp_path / "a.png", (WIDTH, HEIGHT), nothing, nothing[:, 0].long(), torch.from_numpy(own).float())
        for n, own in enumerate(boxes)
    ]
    testing = Detecting(scale=64, longest=200, per_image=12, mean_per_image=7, suppression=0.3)
    plain = Offsets(torch.zeros(3, 4), torch.ones(3, 4))
    network: Any = Known(scores)
    found = testing.detect(network, photos, plain, ["cat", "dog"], "subject")
    for column, name in enumerate(("cat", "dog"), start=1):
        own = [one[:, column].numpy() for one in scores]
        expected = fast_rcnn_test(own, boxes, 12, 7)
        assert [int(image) for image in found[name].images] == [number for number, _ in expected]
        np.testing.assert_allclose(found[name].scores, [score for _, score in expected], rtol=1e-5)
        assert 10 < len(expected) < 6 * 7
    network = Known([torch.full((30, 3), torch.nan)])
    with pytest.raises(DataError, match="not finite"):
        testing.detect(network, photos, plain, ["cat", "dog"], "subject")


def test_offsets_that_are_learnt_lead_to_the_objects() -> None:
    objects, _, found = regions()
    offsets = Offsets.of([found], 3, 0.5, flip=True)
    chosen = SAMPLING.draw(found, offsets, np.random.default_rng(4), None)
    learnt = torch.zeros(64, 4, 4)
    learnt[torch.arange(64), chosen.classes] = chosen.offsets
    boxes = boxes_of_regions(Found(torch.zeros(64, 4), learnt), chosen.boxes, offsets, WIDTH, HEIGHT)
    for row in range(16):
        box = boxes[row, chosen.classes[row] - 1]
        assert min(float(np.abs(box.numpy() - one).max()) for one in objects) < 1e-3


def test_regions_lie_in_the_scaled_images(tmp_path: Path) -> None:
    """Of two photos of a step, one perhaps mirrored, at twice or three times their size."""
    objects, classes, own = regions()
    photos = []
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT), "red").save(tmp_path / f"{name}.png")
        photos.append(
            Photo(name, tmp_path / f"{name}.png", (WIDTH, HEIGHT), torch.from_numpy(objects), classes, own.boxes)
        )
    lessons = Lessons(
        photos=photos,
        regions=[own, own],
        offsets=Offsets.of([own], 3, 0.5, flip=True),
        sampling=SAMPLING,
        images_per_step=2,
        scales=[60, 90],
        longest=200,
        flip=True,
        seed=0,
    )
    seen: list[tuple[Tensor, Tensor]] = []

    def network(images: Tensor, boxes: Tensor) -> Found:
        seen.append((images, boxes))
        return Found(torch.zeros(len(boxes), 4), torch.zeros(len(boxes), 4, 4))

    given: Any = network
    sizes = set()
    for step in range(8):
        assert lessons.loss(given, step).isfinite()
        images, boxes = seen[-1]
        for number in (0, 1):
            height = int(images[number, 0].any(dim=1).sum())  # below is filled up with zeros
            sizes.add(height)
            back = boxes[boxes[:, 0] == number, 1:] / (height / HEIGHT)
            known = [own.boxes, mirrored(own.boxes, WIDTH)]
            assert len(back) == 64
            assert any(torch.cdist(back, one).min(dim=1).values.max() < 1e-3 for one in known)
    assert sizes == {60, 90}


def cells(*boxes: Any) -> Any:
    found = np.empty((1, len(boxes)), object)
    for number, one in enumerate(boxes):
        found[0, number] = np.array(one)
    return found


SIZES = {"000005": (40, 30), "000007": (40, 30)}
MATLAB = np.array([[1, 1, 30, 40], [3, 2, 9, 7]], np.uint16)


def test_boxes_of_selective_search_are_brought_to_our_order(tmp_path: Path) -> None:
    savemat(tmp_path / "voc.mat", {"boxes": cells(MATLAB, MATLAB[1:]), "images": cells("000005", "000007").T})
    found = read_proposals(tmp_path / "voc.mat", SIZES)
    assert found["000005"].tolist() == [[0, 0, 39, 29], [1, 2, 6, 8]]
    assert found["000007"].tolist() == [[1, 2, 6, 8]]
    (tmp_path / "any.json").write_text(json.dumps({name: boxes.tolist() for name, boxes in found.items()}))
    again = read_proposals(tmp_path / "any.json", SIZES)
    assert all(np.array_equal(again[name], boxes) for name, boxes in found.items())


def matlab(**content: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        savemat(folder / "voc.mat", content)
        return folder / "voc.mat"

    return write


def text(content: str, name: str = "voc.json") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: folder / "none.mat", "is missing"),
        (text("MATLAB 5.0", "voc.mat"), "cannot be read"),
        (matlab(other=cells(MATLAB, MATLAB)), "cannot be read(.|\n)*KeyError(.|\n)*boxes"),
        (matlab(boxes=cells(MATLAB)), "other photos(.|\n)*seen: 1 photos(.|\n)*the 2 of"),
        (matlab(boxes=cells(MATLAB, MATLAB), images=cells("000005", "000006")), "other photos(.|\n)*seen: 000006"),
        (matlab(boxes=cells(MATLAB, [])), "000007(.|\n)*at least one"),
        (matlab(boxes=cells(MATLAB, MATLAB[:, :3])), "000007(.|\n)*rows of four"),
        (matlab(boxes=cells(MATLAB, MATLAB - 1)), r"does not lie in its photo(.|\n)*000007(.|\n)*-1"),
        (matlab(boxes=cells(MATLAB, MATLAB[:, [1, 0, 3, 2]])), r"does not lie in its photo(.|\n)*000007"),
        (text("{"), "is damaged"),
        (text("[" * 100_000), "is damaged"),
        (text('{"000005": [[0, 0, 1, 1]], "000007": [[0, 0, 1, 1%s]]}' % ("0" * 400)), "are no boxes(.|\n)*000007"),
        (text("[]"), "is damaged"),
        (text('{"000005": [[0, 0, 1, 1]]}'), "no proposed boxes(.|\n)*none for 000007"),
        (text('{"000005": [[0, 0, 1, 1]], "000007": []}'), "000007(.|\n)*at least one"),
        (text('{"000005": [[0, 0, 1, 1]], "000007": [["a"]]}'), "are no boxes"),
        (text('{"000005": [[0, 0, 1, 1]], "000007": [[0, 0, 40, 1]]}'), "does not lie in its photo"),
        (text('{"000005": [[0, 0, 1, 1]], "000007": [[5, 0, 4, 1]]}'), "does not lie in its photo"),
        (text('{"000005": [[0, 0, 1, 1]], "000007": [[0, NaN, 4, 1]]}'), "does not lie in its photo"),
    ],
)
def test_proposals_that_cannot_be_used_are_named(tmp_path: Path, write: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(DataError, match=words) as error:
        read_proposals(write(tmp_path), SIZES)
    assert error.value.exit_code == 3
