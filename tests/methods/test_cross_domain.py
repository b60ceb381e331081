"""The step against a slow rewriting of the algorithm, and against itself with one half switched off."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import quiet
from small_steps import (
    CPU,
    SIZE,
    TOO_LARGE,
    after_steps,
    assert_a_step_of_infinite_gradients_is_skipped,
    assert_two_streams_equal_one,
    batches,
    method,
    same,
    small_config,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from fastssl.batch import Batch
from fastssl.config import Config
from fastssl.losses import adversarial_loss, discriminator_loss
from fastssl.methods import load_config
from fastssl.methods.cross_domain import Networks, build_networks, task_losses
from fastssl.telemetry import read_metrics
from fastssl.train import start_run

SAMPLE = Path(__file__).parents[2] / "shards" / "sample"
ORDERS = ("together", "discriminator_first")


def reference_steps(settings: Config, steps: int = 3) -> Networks:
    """The algorithm by the book: two copies of the networks as they stood, gradients by `autograd.grad`."""
    networks = build_networks(settings.model, seed=1)
    backbone, heads, discriminator = networks.backbone, networks.heads, networks.discriminator
    assert discriminator is not None
    layer, optim = settings.model.adapted_layer, settings.optim
    trained, judging = [*backbone.parameters(), *heads.parameters()], list(discriminator.parameters())
    # Of one form: what they round differently, Adam makes large where gradients are almost zero.
    adam = torch.optim.Adam(trained, lr=optim.lr, betas=optim.betas, fused=True)
    sgd = torch.optim.SGD(judging, optim.discriminator_lr, 0.9, weight_decay=5e-4, fused=True)
    for number in range(steps):
        synthetic, real = batches(number).values()
        features = backbone(synthetic.image)
        z_x = features[layer]
        with torch.no_grad():
            z_y = backbone(real.image, until=layer)[layer]
        own = discriminator_loss(discriminator(z_x.detach()), discriminator(z_y))
        own_gradients = torch.autograd.grad(own, judging)
        if optim.order == "discriminator_first":
            make_step(sgd, judging, own_gradients)
        terms = list(task_losses(heads(features, SIZE, SIZE), synthetic, settings.loss).values())
        total = sum(terms) + settings.loss.adversarial_weight * adversarial_loss(discriminator(z_x))
        make_step(adam, trained, torch.autograd.grad(total, trained))
        if optim.order == "together":
            make_step(sgd, judging, own_gradients)
    return networks


def make_step(optimizer: Optimizer, parameters: Iterable[Parameter], gradients: Iterable[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("layer", ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6"])
def test_step_is_the_algorithm(layer: str, order: str) -> None:
    settings = small_config(f"model.adapted_layer={layer}", "loss.adversarial_weight=0.5", f"optim.order={order}")
    networks, _ = after_steps(settings)
    expected = reference_steps(settings)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(networks.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_b_meets_the_new_d_where_that_is_updated_first() -> None:
    """Only the adversarial loss of the first step differs, and it is that of the D that the step leaves behind."""
    settings = [small_config(f"optim.order={order}", "optim.discriminator_lr=0.5") for order in ORDERS]
    (together, (before,)), (first, (after,)) = (after_steps(one, steps=1) for one in settings)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"adversarial"}
    untouched = build_networks(settings[0].model, seed=1)
    for networks, loss in ((untouched, before), (first, after)):
        assert networks.discriminator is not None
        z_x = untouched.backbone(batches(0)["synthetic"].image)[settings[0].model.adapted_layer]
        expected = settings[0].loss.adversarial_weight * adversarial_loss(networks.discriminator(z_x))
        torch.testing.assert_close(loss["adversarial"], expected.detach())
    assert together.discriminator is not None
    assert first.discriminator is not None
    assert same(together.discriminator, first.discriminator)
    assert not same(together.backbone, first.backbone)


def test_update_of_d_leaves_b_and_h_untouched() -> None:
    """One step with D's update and one where D learns nothing: B and H are bit-identical, D is not."""
    learning, _ = after_steps(small_config("optim.discriminator_lr=0.5"), steps=1)
    frozen, _ = after_steps(small_config("optim.discriminator_lr=1e-30", "optim.discriminator_weight_decay=0"), steps=1)
    assert same(learning.backbone, frozen.backbone)
    assert same(learning.heads, frozen.heads)
    assert learning.discriminator is not None
    assert frozen.discriminator is not None
    assert not same(learning.discriminator, frozen.discriminator)


def test_update_of_b_and_h_leaves_d_untouched() -> None:
    """One step with the tasks and one without: D is bit-identical, B is not."""
    both, _ = after_steps(small_config("loss.adversarial_weight=3.0"), steps=1)
    slow, _ = after_steps(small_config("optim.lr=1e-30", "loss.adversarial_weight=0"), steps=1)
    assert both.discriminator is not None
    assert slow.discriminator is not None
    assert same(both.discriminator, slow.discriminator)
    assert not same(both.backbone, slow.backbone)


def test_real_images_give_b_no_gradient() -> None:
    """B's parameters after one step do not depend on the photos; its running statistics do."""
    settings = small_config()
    found = []
    for factor in (1.0, 4.0):
        step = method(settings)
        synthetic, real = batches(0).values()
        step({"synthetic": synthetic, "real": Batch(keys=real.keys, image=factor * real.image, targets={})})
        found.append(step.networks)
    parameters = [list(networks.backbone.parameters()) for networks in found]
    assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True))
    assert not same(found[0].backbone, found[1].backbone)


@pytest.mark.parametrize("order", ORDERS)
def test_running_statistics_do_not_touch_the_training(order: str) -> None:
    """Three steps with either: parameters and losses are the same bits, and so are the statistics photos always saw."""
    settings = [small_config(f"model.running_statistics={seen}", f"optim.order={order}") for seen in ("adapted", "all")]
    (adapted, losses), (everything, same_losses) = (after_steps(one) for one in settings)
    for before, after in zip(losses, same_losses, strict=True):
        assert before == after
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, everything.get_parameter(name)), name
    for name, value in statistics(adapted):
        always = name.startswith("backbone") and not name.startswith(("backbone.layers.fc6", "backbone.layers.fc7"))
        assert torch.equal(value, everything.get_buffer(name)) == always, name


def test_all_running_statistics_are_those_of_the_passes_that_the_authors_make() -> None:
    """By hand, in train mode: B and H of the rendered images, all of B of the photos, and H once more."""
    step = method(small_config("model.running_statistics=all"))
    by_hand = build_networks(small_config().model, seed=1)
    for number in range(3):
        by_hand.load_state_dict(step.networks.state_dict())
        made = batches(number)
        step(made)
        with torch.no_grad():
            features = by_hand.backbone(made["synthetic"].image)
            by_hand.heads(features, SIZE, SIZE)
            by_hand.backbone(made["real"].image)
            by_hand.heads(features, SIZE, SIZE)
        for name, value in statistics(by_hand):
            torch.testing.assert_close(step.networks.get_buffer(name), value, rtol=1e-6, atol=1e-7, msg=name)


def statistics(networks: Networks) -> list[tuple[str, Tensor]]:
    """Running means and variances; how many batches were counted is nothing that a result depends on."""
    return [(name, value) for name, value in networks.named_buffers() if "running" in name]


def test_adversarial_term_alone_makes_synthetic_features_look_real() -> None:
    """With D held still, -log(1 - D(z_x)) falls when B minimises it alone."""
    weights = ["loss.depth_weight=0", "loss.normal_weight=0", "loss.edge_weight=0", "loss.adversarial_weight=1"]
    settings = small_config(*weights, "optim.discriminator_lr=1e-30", "optim.discriminator_weight_decay=0")
    step = method(settings)
    losses = [float(step(batches(0))["adversarial"]) for _ in range(15)]
    assert losses[-1] < 0.85 * losses[0]  # D's batch norms, which see one domain at a time, hold much of it up


@pytest.mark.parametrize("tasks", ["[depth]", "[edge, normal]"])
def test_fewer_tasks_and_no_adaptation(tasks: str) -> None:
    networks, losses = after_steps(small_config(f"model.tasks={tasks}", "model.adapted_layer=none"), steps=2)
    assert networks.discriminator is None
    assert set(losses[-1]) == set(tasks.strip("[]").split(", "))


def test_same_seed_same_bits() -> None:
    settings = small_config("optim.pool_size=6")
    assert same(after_steps(settings)[0], after_steps(settings)[0])


def test_state_continues_bit_for_bit() -> None:
    """Five steps are three steps, a new process's objects, and two more: pools, optimizers and all."""
    settings = small_config("optim.pool_size=6")
    whole, _ = after_steps(settings, steps=5)

    step = method(settings)
    for number in range(3):
        step(batches(number))
    state, of_rank = copy.deepcopy((step.state_dict(), step.rank_state_dict()))
    later = method(small_config("optim.pool_size=6", "train.seed=77"))
    later.load_state_dict(state)
    later.load_rank_state_dicts([of_rank])
    for number in (3, 4):
        later(batches(number))
    assert same(whole, later.networks)


def test_mixed_precision_stays_near_full_precision() -> None:
    full, mixed = (after_steps(small_config(f"train.amp={flag}"), steps=3)[1] for flag in ("false", "true"))
    for before, after in zip(full, mixed, strict=True):
        for name in before:
            assert after[name].isfinite()
            torch.testing.assert_close(after[name], before[name], rtol=0.1, atol=0.02)


@pytest.mark.parametrize("how", [{"channels_last": True}, {"scale": TOO_LARGE}])
def test_streams_are_nothing_on_the_cpu(how: dict[str, Any]) -> None:
    settings = small_config("train.amp=true", "train.amp_dtype=float16", "optim.pool_size=6")
    assert_two_streams_equal_one(settings, CPU, **how)


def test_a_step_of_infinite_gradients_is_skipped() -> None:
    assert_a_step_of_infinite_gradients_is_skipped(CPU)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bfloat16_learns_as_float32_does(
    seed: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """On the sample shards: after 200 steps each task's loss, a mean of 20 steps, is within 6 % of float32's."""
    paths = [f"data.synthetic={SAMPLE / 'render_train'}", f"data.real={SAMPLE / 'real_train'}"]
    short = [*paths, f"train.seed={seed}", "train.steps=200", "train.log_every=20", "train.picture_every=200"]
    last = []
    for amp in ("false", "true"):
        start_run(load_config("tiny", overrides=[*short, f"train.amp={amp}"]), tmp_path / amp, quiet)
        last.append(read_metrics(tmp_path / amp)[-1])
    ratios = {task: last[1][f"loss/{task}"] / last[0][f"loss/{task}"] for task in ("depth", "normal", "edge")}
    record_property("ratios", ratios)
    assert all(0.94 < ratio < 1.06 for ratio in ratios.values()), ratios


def test_gradient_norms_are_those_of_each_loss_by_itself_and_change_nothing() -> None:
    """On copies each loss goes backward alone, in an ordinary pass."""
    ours = method(small_config("model.adapted_layer=conv3", "loss.edge_weight=7"))
    before, made = copy.deepcopy(ours.networks), batches(3)
    norms = ours.gradient_norms(made)
    assert same(before, ours.networks)
    assert set(norms) == {"depth", "normal", "edge", "adversarial"}
    for name, norm in norms.items():
        alone = copy.deepcopy(before)
        assert alone.discriminator is not None
        features = alone.backbone(made["synthetic"].image)
        losses = task_losses(alone.heads(features, SIZE, SIZE), made["synthetic"], ours.config.loss)
        losses["adversarial"] = 0.1 * adversarial_loss(alone.discriminator(features["conv3"]))
        losses[name].backward()
        gradients = [p.grad.flatten() for p in alone.backbone.parameters() if p.grad is not None]
        torch.testing.assert_close(norm, torch.cat(gradients).norm(), rtol=1e-4, atol=0)


def test_a_run_tells_how_strongly_each_loss_pulls(tmp_path: Path) -> None:
    data = [f"data.synthetic={SAMPLE / 'render_train'}", f"data.real={SAMPLE / 'real_train'}", "data.batch_real=4"]
    steps = ["train.steps=4", "train.log_every=1", "train.picture_every=2", "data.batch_synthetic=4", "data.size=67"]
    start_run(small_config(*data, *steps), tmp_path / "run", quiet)
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines if "gradient/edge" in line] == [2, 4]
    assert all(line["gradient/normal"] > 0 for line in lines if line["step"] in (2, 4))
