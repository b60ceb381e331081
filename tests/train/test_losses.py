"""Losses, against NumPy loops, torch's own loss modules, closed forms and numerical gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastssl.batch import Batch
from fastssl.losses import (
    adversarial_loss,
    depth_loss,
    discriminator_loss,
    edge_loss,
    normal_loss,
)
from fastssl.methods.cross_domain import LossConfig, task_losses

DepthForm = Literal["eigen", "released"]
EdgeForm = Literal["hed", "released"]
EdgeCount = Literal["window", "stored", "released"]
N, S = 3, 7
STORED = (8, 10)
RELEASED = LossConfig(
    depth_form="released", edge_form="released", edge_count="released", edge_division="whole", mask_invalid=False
)
Masks = Literal["all", "some", "one image none", "none"]
MASKS: tuple[Masks, ...] = ("all", "some", "one image none", "none")


def _batch(masks: Masks = "some", seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Labels with unknown pixels, some of which lack only one of depth and normal."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.5, 8, (N, 1, S, S))
    normal = rng.normal(size=(N, 3, S, S))
    normal[:, :, 0] = np.array([0, 0, -1])[:, None]  # a wall seen from the front: known, though two of three are zero
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    no_depth, no_normal = rng.random((2, N, 1, S, S)) < 0.2
    if masks == "all":
        no_depth[:] = no_normal[:] = False
    if masks == "one image none":
        no_depth[1] = True
    if masks == "none":
        no_normal[:] = True
    depth[no_depth] = 0
    normal[np.broadcast_to(no_normal, normal.shape)] = 0
    edge = (rng.random((N, 1, S, S)) < np.array([0.1, 0.3, 0.5])[:, None, None, None]).astype(float)
    empty = torch.zeros(N, 3, S, S)
    targets = {
        "depth": torch.tensor(depth, dtype=dtype),
        "normal": torch.tensor(normal, dtype=dtype),
        "edge": torch.tensor(edge, dtype=dtype),
        "valid": torch.tensor(~(no_depth | no_normal)),
        "stored_edge_fraction": torch.tensor([0.2, 0.05, 0.004], dtype=dtype),
    }
    return Batch(keys=("a", "b", "c"), image=empty, targets=targets, stored_size=STORED)


def _predictions(seed: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    depth, edge = (torch.randn(N, 1, S, S, generator=generator, dtype=torch.float64) for _ in range(2))
    normal = torch.nn.functional.normalize(torch.randn(N, 3, S, S, generator=generator, dtype=torch.float64), dim=1)
    return {"depth": depth.to(dtype), "normal": normal.to(dtype), "edge": (2 * edge).to(dtype)}


# ---- NumPy loops, written from the formulas ----


def _depth_by_hand(pred: NDArray[Any], depth: NDArray[Any], valid: NDArray[Any] | None, form: DepthForm) -> float:
    images: list[list[float]] = []
    for n in range(N):
        errors = []
        for y in range(S):
            for x in range(S):
                if valid is None:
                    errors.append(pred[n, 0, y, x] - math.log(depth[n, 0, y, x] + 1e-8))
                elif valid[n, 0, y, x]:
                    errors.append(pred[n, 0, y, x] - math.log(depth[n, 0, y, x]))
        images.append(errors)
    if form == "released":
        errors = [d for image in images for d in image]
        return 0.5 * (np.mean(np.square(errors)) + 0.5 * np.mean(errors) ** 2) if errors else 0.0
    terms = [0.5 * (np.mean(np.square(image)) - 0.5 * np.mean(image) ** 2) for image in images if image]
    return float(np.mean(terms)) if terms else 0.0


def _normal_by_hand(pred: NDArray[Any], normal: NDArray[Any], valid: NDArray[Any] | None) -> float:
    errors = []
    for n, y, x in np.ndindex(N, S, S):
        p, t = pred[n, :, y, x], normal[n, :, y, x]
        if valid is None:
            t = t if t.any() else np.array([-1.0, -1.0, -1.0])
        elif not valid[n, 0, y, x]:
            continue
        errors.append(1 - p @ t / np.linalg.norm(p) / np.linalg.norm(t))
    return float(np.mean(errors)) if errors else 0.0


def _edge_by_hand(
    logits: NDArray[Any], edge: NDArray[Any], contours: list[float], form: EdgeForm, division: str = "exact"
) -> float:
    total, pixels = 0.0, S * S
    for n in range(N):
        c = max(contours[n], 350 / 51529 * pixels) if form == "released" else contours[n]
        for y in range(S):
            for x in range(S):
                p = 1 / (1 + math.exp(-logits[n, 0, y, x]))
                entropy = -math.log(p) if edge[n, 0, y, x] else -math.log(1 - p)
                if form == "released":
                    weight = (pixels - c) // c if division == "whole" else (pixels - c) / c
                else:
                    weight = 1 - c / pixels if edge[n, 0, y, x] else c / pixels
                total += weight * entropy
    return total / (N * pixels)


def _contours_by_hand(batch: Batch, count: EdgeCount) -> list[float]:
    if count == "window":
        return [plane.sum() for plane in batch.edge.numpy()]
    pixels = STORED[0] * STORED[1]
    shares: list[float] = batch.stored_edge_fraction.tolist()
    return [share * S * S if count == "stored" else round(share * pixels) for share in shares]


def _numpy(x: Tensor | None) -> NDArray[Any] | None:
    return None if x is None else x.numpy()


# ---- depth ----


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("form", ["eigen", "released"])
def test_depth_against_loops(form: DepthForm, masked: bool, masks: Masks) -> None:
    batch, pred = _batch(masks), _predictions()["depth"]
    valid = batch.valid if masked else None
    expected = _depth_by_hand(pred.numpy(), batch.depth.numpy(), _numpy(valid), form)
    assert depth_loss(pred, batch.depth, valid, form).item() == pytest.approx(expected, rel=1e-12)


def test_the_second_depth_term_forgives_half_of_a_common_factor_or_doubles_up_on_it() -> None:
    batch = _batch("all")
    right = batch.depth.log()
    shift = torch.tensor([0.7, 0.7, -0.7], dtype=torch.float64)[:, None, None, None]
    # eigen, per image: (c^2 - c^2 / 2) / 2, whatever the sign
    assert depth_loss(right + shift, batch.depth, batch.valid, "eigen").item() == pytest.approx(0.49 / 4)
    # released, over the batch: its mean error is a third of c
    released = [depth_loss(right + by, batch.depth, batch.valid, "released").item() for by in (shift, 0.7)]
    assert released == pytest.approx([0.49 * (0.5 + 1 / 36), 0.49 * 0.75])


def test_an_image_counts_the_same_however_many_of_its_pixels_are_valid() -> None:
    batch, pred = _batch("all"), _predictions()["depth"]
    error = pred[:1] - batch.depth[:1].log()
    valid = torch.zeros(2, 1, S, S, dtype=torch.bool)
    valid[0], valid[1, 0, 0, 0] = True, True
    loss = depth_loss(pred[[0, 0]], batch.depth[[0, 0]], valid, "eigen").item()
    alone = 0.5 * (error.square().mean() - 0.5 * error.mean().square()).item()
    assert loss == pytest.approx((alone + 0.25 * error[0, 0, 0, 0].item() ** 2) / 2)


# ---- normals ----


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("masked", [True, False])
def test_normals_against_loops(masked: bool, masks: Masks) -> None:
    batch, pred = _batch(masks), _predictions()["normal"]
    valid = batch.valid if masked else None
    expected = _normal_by_hand(pred.numpy(), batch.normal.numpy(), _numpy(valid))
    assert normal_loss(pred, batch.normal, valid).item() == pytest.approx(expected, rel=1e-12)


def test_normals_against_torchs_cosine_loss() -> None:
    batch, pred = _batch("some"), _predictions()["normal"]
    target = batch.normal.movedim(1, -1).reshape(-1, 3)
    target[(target == 0).all(1)] = -1.0
    oracle = nn.CosineEmbeddingLoss()(pred.movedim(1, -1).reshape(-1, 3), target, torch.ones(len(target)))
    torch.testing.assert_close(normal_loss(pred, batch.normal, None), oracle)


@pytest.mark.parametrize(("sign", "expected"), [(1, 0.0), (-1, 2.0)])
def test_right_normals_cost_nothing_and_opposite_ones_two(sign: int, expected: float) -> None:
    batch = _batch("all")
    assert normal_loss(sign * batch.normal, batch.normal, batch.valid).item() == pytest.approx(expected, abs=1e-12)


# ---- contours ----


@pytest.mark.parametrize("division", ["exact", "whole"])
@pytest.mark.parametrize("count", ["window", "stored", "released"])
@pytest.mark.parametrize("form", ["hed", "released"])
def test_contours_against_loops(form: EdgeForm, count: EdgeCount, division: Literal["exact", "whole"]) -> None:
    batch, logits = _batch(), _predictions()["edge"]
    config = LossConfig(edge_form=form, edge_count=count, edge_division=division)
    contours = _contours_by_hand(batch, count)
    expected = _edge_by_hand(logits.numpy(), batch.edge.numpy(), contours, form, division)
    assert task_losses({"edge": logits}, batch, config)["edge"].item() == pytest.approx(expected, rel=1e-12)


def test_released_contours_are_torchs_weighted_cross_entropy() -> None:
    batch, logits = _batch(), _predictions()["edge"]
    contours = batch.edge.sum((1, 2, 3), keepdim=True)
    oracle = nn.BCEWithLogitsLoss(weight=(S * S - contours) / contours)(logits, batch.edge)
    torch.testing.assert_close(edge_loss(logits, batch.edge, form="released"), oracle)


def released_weights(
    contours: NDArray[np.int64], side: int, stored: tuple[int, int], **settings: str
) -> NDArray[np.float64]:
    """The weight that each image's pixels have: what a logit of 0 pulls at a pixel, over what it would without one."""
    num = len(contours)
    fraction = torch.from_numpy(contours / (stored[0] * stored[1])).float()
    edge, logits = torch.zeros(num, 1, side, side), torch.zeros(num, 1, side, side, requires_grad=True)
    targets = {"edge": edge, "stored_edge_fraction": fraction}
    batch = Batch(keys=("a",) * num, image=torch.zeros(num, 3, side, side), targets=targets, stored_size=stored)
    config = LossConfig.model_validate({"edge_form": "released", **settings})
    (gradient,) = torch.autograd.grad(task_losses({"edge": logits}, batch, config)["edge"], logits)
    return 2 * logits.numel() * gradient[:, 0, 0, 0].double().numpy()


def test_the_released_weight_is_the_authors() -> None:
    # Images of 256 x 256 with so many contour pixels in all, of which a window of 227 x 227 is seen.
    contours = np.array([350, 351, 2000, 17176, 17177, 25764, 25765, 51529, 60000])
    theirs = np.maximum((51529 - contours) / contours, 0)
    exact = released_weights(contours, 227, (256, 256), edge_count="released")
    whole = released_weights(contours, 227, (256, 256), edge_count="released", edge_division="whole")
    np.testing.assert_allclose(exact, theirs, rtol=1e-6, atol=1e-9)
    assert np.rint(whole).tolist() == (np.maximum(51529 - contours, 0) // contours).tolist()
    np.testing.assert_allclose(whole, np.rint(whole), rtol=1e-6)
    # By its share of the stored image the weight is larger, by the ratio of the sizes where contours are few.
    share = released_weights(contours[2:3], 227, (256, 256), edge_count="stored")
    assert (share + 1) / (theirs[2] + 1) == pytest.approx((256 / 227) ** 2)


def test_whole_numbers_are_divided_exactly_where_nothing_remains() -> None:
    # 84 x 84 has many divisors; a share of contours in float32 would lose one of the quotients 125, 111, 62 and 55.
    divisors = np.array([c for c in range(48, 7057) if 7056 % c == 0])
    whole = released_weights(divisors, 84, (120, 160), edge_count="released", edge_division="whole")
    assert np.rint(whole).tolist() == (7056 // divisors - 1).tolist()


@pytest.mark.parametrize("stored", [(256, 256), (480, 640), (1080, 1920)])
def test_contours_of_a_stored_image_are_counted_exactly(stored: tuple[int, int]) -> None:
    pixels = stored[0] * stored[1]
    counts = np.arange(0, pixels + 1, 7)
    fraction = torch.from_numpy((counts / pixels).astype(np.float32))
    batch = Batch(keys=(), image=fraction, targets={"stored_edge_fraction": fraction}, stored_size=stored)
    assert (batch.stored_edge_count.numpy() == counts).all()
    with pytest.raises(KeyError, match="size of its stored images"):
        _ = replace(batch, stored_size=None).stored_edge_count


def test_hed_gives_both_classes_of_every_image_the_same_say() -> None:
    batch, zero = _batch(), torch.zeros(N, 1, S, S, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(edge_loss(zero, batch.edge, form="hed"), zero)
    pull = gradient.sum((1, 2, 3))
    torch.testing.assert_close(pull, torch.zeros_like(pull), atol=1e-15, rtol=0)
    assert (gradient * (1 - 2 * batch.edge) > 0).all()


@pytest.mark.parametrize("form", ["hed", "released"])
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("count", ["window", "stored", "released"])
def test_images_without_or_full_of_contours_have_finite_losses(form: EdgeForm, value: float, count: EdgeCount) -> None:
    logits = _predictions()["edge"].requires_grad_()
    batch = _batch()
    fraction = torch.full((N,), value, dtype=torch.float64)
    full = {"edge": torch.full_like(logits, value), "stored_edge_fraction": fraction}
    config = LossConfig(edge_form=form, edge_count=count)
    loss = task_losses({"edge": logits}, replace(batch, targets=full), config)["edge"]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.isfinite().all()
    largest = (1 - value) * (227**2 - 350) / 350 if form == "released" else 0.0
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, value))
    assert loss.item() == pytest.approx(largest * entropy.item(), abs=1e-12)


# ---- domains ----


def test_domain_losses_against_cross_entropy_of_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (3 * torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64) for n in (4, 2))
    entropy = nn.BCELoss()
    # D(z) = 1 says synthetic. B wants its synthetic features taken for real ones, D wants both told apart.
    torch.testing.assert_close(adversarial_loss(x), entropy(x.sigmoid(), torch.zeros_like(x)))
    expected = entropy(x.sigmoid(), torch.ones_like(x)) + entropy(y.sigmoid(), torch.zeros_like(y))
    torch.testing.assert_close(discriminator_loss(x, y), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_domain_losses_stay_finite_with_a_gradient_where_a_sigmoid_saturates(dtype: torch.dtype) -> None:
    sure = torch.full((1, 1, 6, 6), 300.0, dtype=dtype, requires_grad=True)
    loss = adversarial_loss(sure)
    (gradient,) = torch.autograd.grad(loss, sure)
    assert loss.item() == 300
    assert gradient.sum().item() == pytest.approx(1, rel=2e-3)
    assert discriminator_loss(-sure, sure).item() == 600
    assert discriminator_loss(sure, -sure).item() == 0


# ---- all of them ----


@pytest.mark.parametrize("masks", ["some", "one image none"])
def test_gradients_are_those_of_finite_differences(masks: Masks) -> None:
    batch, predictions = _batch(masks), {k: v.requires_grad_() for k, v in _predictions().items()}
    for config in (LossConfig(), RELEASED, LossConfig(edge_count="stored"), LossConfig(depth_form="released")):
        for task, prediction in predictions.items():

            def loss(x: Tensor, task: str = task, config: LossConfig = config) -> Tensor:
                return task_losses({task: x}, batch, config)[task]

            assert torch.autograd.gradcheck(loss, (prediction,))
    assert torch.autograd.gradcheck(adversarial_loss, (predictions["edge"],))
    assert torch.autograd.gradcheck(discriminator_loss, (predictions["edge"], predictions["depth"]))


@pytest.mark.parametrize("form", ["eigen", "released"])
def test_invalid_pixels_have_no_say(form: DepthForm) -> None:
    batch, predictions = _batch(), {k: v.requires_grad_() for k, v in _predictions().items()}
    loss = depth_loss(predictions["depth"], batch.depth, batch.valid, form)
    loss = loss + normal_loss(predictions["normal"], batch.normal, batch.valid)
    depth, normal = torch.autograd.grad(loss, (predictions["depth"], predictions["normal"]))
    assert torch.equal(depth != 0, batch.valid)
    assert torch.equal((normal != 0).any(1, keepdim=True), batch.valid)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["eigen", "released"])
def test_a_batch_without_a_valid_pixel_costs_nothing_and_teaches_nothing(form: DepthForm, dtype: torch.dtype) -> None:
    batch, predictions = _batch("none", dtype=torch.float32), _predictions(dtype=dtype)
    config = LossConfig(depth_form=form)
    for task in ("depth", "normal"):
        prediction = predictions[task].requires_grad_()
        loss = task_losses({task: prediction}, batch, config)[task]
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert loss.item() == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", [LossConfig(), RELEASED])
def test_half_precision_predictions_are_computed_with_in_float32(dtype: torch.dtype, config: LossConfig) -> None:
    batch, halves = _batch(dtype=torch.float32), _predictions(dtype=dtype)
    losses = task_losses(halves, batch, config)
    expected = task_losses({task: x.double() for task, x in halves.items()}, _batch(), config)
    for task, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected[task].item(), rel=2e-6)
    for loss in (adversarial_loss(halves["edge"]), discriminator_loss(halves["edge"], halves["depth"])):
        assert loss.dtype == torch.float32


# ---- the settings ----


def test_the_published_settings() -> None:
    batch, predictions = _batch(), _predictions()
    losses = task_losses(predictions, batch, LossConfig())
    assert list(losses) == ["depth", "normal", "edge"]
    assert all(loss.shape == () for loss in losses.values())
    depth, normal, edge = (predictions[task].numpy() for task in ("depth", "normal", "edge"))
    valid = batch.valid.numpy()
    expected = {
        "depth": 5 * _depth_by_hand(depth, batch.depth.numpy(), valid, "eigen"),
        "normal": 10 * _normal_by_hand(normal, batch.normal.numpy(), valid),
        "edge": _edge_by_hand(edge, batch.edge.numpy(), _contours_by_hand(batch, "window"), "hed"),
    }
    assert {task: loss.item() for task, loss in losses.items()} == pytest.approx(expected)


def test_the_released_settings_are_the_authors_code() -> None:
    batch, predictions = _batch(), _predictions()
    losses = task_losses(predictions, batch, RELEASED)
    d = predictions["depth"] - torch.log(batch.depth + 1e-8)
    torch.testing.assert_close(losses["depth"], 5 * 0.5 * (d.square().mean() + 0.5 * d.mean() ** 2))
    expected = _normal_by_hand(predictions["normal"].numpy(), batch.normal.numpy(), None)
    assert losses["normal"].item() == pytest.approx(10 * expected)
    contours = _contours_by_hand(batch, "released")
    expected = _edge_by_hand(predictions["edge"].numpy(), batch.edge.numpy(), contours, "released", "whole")
    assert losses["edge"].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("setting", "value", "task"),
    [
        ("depth_form", "released", "depth"),
        ("edge_form", "released", "edge"),
        ("edge_count", "stored", "edge"),
        ("edge_count", "released", "edge"),
        ("mask_invalid", False, "depth"),
        ("mask_invalid", False, "normal"),
    ],
)
def test_every_setting_changes_its_task_and_no_other(setting: str, value: object, task: str) -> None:
    batch, predictions = _batch(), _predictions()
    before = task_losses(predictions, batch, LossConfig())
    after = task_losses(predictions, batch, LossConfig.model_validate({setting: value}))
    changed = {name for name in before if before[name].item() != after[name].item()}
    assert task in changed
    assert changed <= ({"depth", "normal"} if setting == "mask_invalid" else {task})


@pytest.mark.parametrize("task", ["depth", "normal", "edge"])
def test_weights_scale_and_absent_tasks_are_left_out(task: str) -> None:
    batch, predictions = _batch(), _predictions()
    once, thrice = (
        task_losses({task: predictions[task]}, batch, LossConfig.model_validate({f"{task}_weight": weight}))
        for weight in (1, 3)
    )
    assert list(once) == [task]
    assert thrice[task].item() == pytest.approx(3 * once[task].item())


@pytest.mark.parametrize("config", [LossConfig(), RELEASED, RELEASED.model_copy(update={"mask_invalid": True})])
def test_the_host_never_looks_at_a_value(config: LossConfig) -> None:
    # A tensor on the device `meta` has no values: whatever would wait for one fails.
    batch = _batch()
    batch = replace(batch, targets={name: plane.to("meta") for name, plane in batch.targets.items()})
    predictions = {task: x.to("meta").requires_grad_() for task, x in _predictions().items()}
    losses = task_losses(predictions, batch, config)
    losses |= {"b": adversarial_loss(predictions["edge"]), "d": discriminator_loss(*[predictions["edge"]] * 2)}
    torch.autograd.grad(list(losses.values()), list(predictions.values()))
