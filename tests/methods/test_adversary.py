"""The adversary's forms, against the algorithm written out: networks, norms and losses by hand, one graph, autograd."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rank_process import Recording
from small_runs import assert_same, quiet, settings, state
from small_steps import CPU, after_steps, assert_two_streams_equal_one, batches, method, same, small_config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastssl.backbones import AlexNet
from fastssl.batch import Batch
from fastssl.bench.authors import AuthorsStep
from fastssl.config import Config
from fastssl.errors import ConfigError
from fastssl.layers import Discriminator
from fastssl.loader import training_domains
from fastssl.methods import StepContext, load_config
from fastssl.methods.cross_domain import CrossDomain, Networks, build_networks, decisions, task_losses
from fastssl.telemetry import read_metrics
from fastssl.train import loader_options, resume_run, start_run
from fastssl.train.estimate import count_step
from fastssl.train.validation import moving_statistics

NORMS = ("per_domain", "joint", "none", "instance", "spectral")
PASSES = ("separate", "joint")
PUSHED = ("synthetic", "both")
ORDERS = ("together", "discriminator_first")
# Instance norms want more than one position. Normals are compared in float32, which would blur all else.
WIDE = ("data.size=99", "model.tasks=[depth,edge]")
every_norm = pytest.mark.parametrize("norm", NORMS)


def doubled(made: Mapping[str, Batch], num_real: int = 3) -> dict[str, Batch]:
    """The batches in double precision, with fewer photos than rendered images."""
    synthetic, real = made["synthetic"], made["real"]
    targets = {name: x.double() if x.is_floating_point() else x for name, x in synthetic.targets.items()}
    return {
        "synthetic": replace(synthetic, image=synthetic.image.double(), targets=targets),
        "real": replace(real, keys=real.keys[:num_real], image=real.image[:num_real].double()),
    }


class ByHand:
    """One step's gradients of B and H, and of D, from the networks as they stand."""

    def __init__(self, networks: Networks, config: Config) -> None:
        assert networks.discriminator is not None
        assert isinstance(networks.backbone, AlexNet)
        self.heads, self.backbone, self.discriminator = networks.heads, networks.backbone, networks.discriminator
        self.config, self.norm, self.adapted = config, config.model.discriminator_norm, config.model.adapted_layer
        self.vectors = {name: x.clone() for name, x in self.discriminator.named_buffers()}
        self.convolutions = range(0, len(self.discriminator.layers), 3)

    def gradients(self, made: Mapping[str, Batch]) -> list[Tensor]:
        loss, size, synthetic = self.config.loss, self.config.data.size, made["synthetic"]
        maps, z_x, z_y = self.features(synthetic.image, made["real"].image)
        weights = dict(self.discriminator.named_parameters())
        self.iterate(weights)
        d_x, d_y = self.judged(weights, z_x.detach(), z_y.detach())
        cost = -loss.discriminator_weight * (d_x.sigmoid().log().mean() + (1 - d_y.sigmoid()).log().mean())
        own = torch.autograd.grad(cost, list(weights.values()))
        if self.config.optim.order == "discriminator_first":
            weights = self.after_its_step(weights, own)
            self.iterate(weights)
        d_x, d_y = self.judged(weights, z_x, z_y if loss.pushed == "both" else z_y.detach())
        objective = sum(task_losses(self.heads(maps, size, size), synthetic, loss).values(), torch.zeros(()))
        objective = objective - loss.adversarial_weight * (1 - d_x.sigmoid()).log().mean()
        if loss.pushed == "both":
            objective = objective - loss.adversarial_weight * d_y.sigmoid().log().mean()
        trained = [*self.backbone.parameters(), *self.heads.parameters()]
        of_b = torch.autograd.grad(objective, trained)
        return [*own, *of_b] if self.config.optim.order == "discriminator_first" else [*of_b, *own]

    def after_its_step(self, weights: Mapping[str, Tensor], gradients: Iterable[Tensor]) -> dict[str, Tensor]:
        """The first one of SGD, whose momentum has nothing to add yet."""
        rate, decay = self.config.optim.discriminator_lr, self.config.optim.discriminator_weight_decay
        both = zip(weights.items(), gradients, strict=True)
        return {name: (weight - rate * (gradient + decay * weight)).detach() for (name, weight), gradient in both}

    def features(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Every layer's map of x, and the adapted one of y: together, or one domain after the other."""
        if self.config.model.passes == "separate":
            maps = self.maps(x)
            return maps, maps[self.adapted], self.maps(y)[self.adapted]
        maps = self.maps(torch.cat((x, y)), going_on=len(x))
        z_x, z_y = maps[self.adapted][: len(x)], maps[self.adapted][len(x) :]
        return {name: z[: len(x)] for name, z in maps.items()}, z_x, z_y

    def maps(self, x: Tensor, going_on: int | None = None) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}
        for name in self.backbone.feature_info:
            maps[name] = x = self.backbone.layer_map(name, x).relu()  # preset tiny adapts after the ReLU
            x = x[:going_on] if name == self.adapted else x
        return maps

    def judged(self, weights: Mapping[str, Tensor], z_x: Tensor, z_y: Tensor) -> tuple[Tensor, Tensor]:
        if self.norm != "joint":
            return self.logits(weights, z_x), self.logits(weights, z_y)
        both = self.logits(weights, torch.cat((z_x, z_y)))
        return both[: len(z_x)], both[len(z_x) :]

    def logits(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        for number in self.convolutions:
            stride = self.discriminator.layers[number].stride
            x = F.conv2d(x, self.kernel(weights, number), weights[f"layers.{number}.bias"], stride=stride)
            if number == self.convolutions[-1]:
                break
            if self.norm not in ("none", "spectral"):
                over = (2, 3) if self.norm == "instance" else (0, 2, 3)
                mean, variance = x.mean(over, keepdim=True), x.var(over, unbiased=False, keepdim=True)
                scale, shift = (weights[f"layers.{number + 1}.{key}"][:, None, None] for key in ("weight", "bias"))
                x = (x - mean) / (variance + 1e-5).sqrt() * scale + shift
            x = torch.where(x > 0, x, 0.2 * x)
        return x

    def kernel(self, weights: Mapping[str, Tensor], number: int) -> Tensor:
        if self.norm != "spectral":
            return weights[f"layers.{number}.weight"]
        kernel = weights[f"layers.{number}.parametrizations.weight.original"]
        u, v = self.vectors_of(number)
        return kernel / (u @ kernel.flatten(1) @ v)

    def iterate(self, weights: Mapping[str, Tensor]) -> None:
        """One power iteration of each convolution that has a spectral norm."""
        for number in self.convolutions if self.norm == "spectral" else ():
            matrix = weights[f"layers.{number}.parametrizations.weight.original"].detach().flatten(1)
            u, v = self.vectors_of(number)
            u = matrix @ v / (matrix @ v).norm()
            v = matrix.T @ u / (matrix.T @ u).norm()
            self.vectors |= dict(zip(self.names_of(number), (u, v), strict=True))

    def vectors_of(self, number: int) -> tuple[Tensor, Tensor]:
        u, v = (self.vectors[name] for name in self.names_of(number))
        return u, v

    def names_of(self, number: int) -> list[str]:
        return [name for name in self.vectors if name.startswith(f"layers.{number}.")]


def form(norm: str, passes: str, pushed: str, *more: str) -> Config:
    words = [f"model.discriminator_norm={norm}", f"model.passes={passes}", f"loss.pushed={pushed}"]
    return small_config(*WIDE, *words, "loss.adversarial_weight=0.5", *more)


FORMS = [("conv5", *rest) for rest in product(ORDERS, NORMS, PASSES, PUSHED)]
# What is between B's layers has nothing to do with the norms of D.
FORMS += [(layer, "together", "none", *rest) for layer in ("conv1", "fc6") for rest in product(PASSES, PUSHED)]


@pytest.mark.parametrize(("layer", "order", "norm", "passes", "pushed"), FORMS)
def test_gradients_are_those_of_the_algorithm(layer: str, order: str, norm: str, passes: str, pushed: str) -> None:
    """Of B, H and D, in double precision, in the step's order; and the vectors of a spectral norm move once."""
    words = [f"optim.order={order}", f"model.adapted_layer={layer}", "optim.discriminator_momentum=0"]
    config = form(norm, passes, pushed, *words, "optim.discriminator_lr=0.5")
    context = Recording(config, CPU)
    step = CrossDomain(config, context)
    step.networks.double()
    made = doubled(batches(0, size=99))
    by_hand = ByHand(build_networks(config.model, seed=1).double(), config)
    assert step.networks.discriminator is not None
    expected = by_hand.gradients(made)
    step(made)
    for found, gradient in zip(context.gradients, expected, strict=True):
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-10 * scale)
    once = ByHand(build_networks(config.model, seed=1).double(), config)
    once.iterate(dict(once.discriminator.named_parameters()))
    for name, vector in step.networks.discriminator.named_buffers():
        torch.testing.assert_close(vector, once.vectors[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_d_s_norms_are_torch_s(kind: type[nn.Module]) -> None:
    """Over the concatenation of both domains, and of each image; the bytes of another domain do not matter there."""
    norm: Any = "joint" if kind is nn.BatchNorm2d else "instance"
    backbone = build_networks(form("none", "separate", "synthetic").model, seed=1).backbone
    d = Discriminator(backbone, "conv5", 0.1, norm).double()
    layers = list(copy.deepcopy(d.layers))
    layers[1], layers[4] = (kind(layers[i].num_features, affine=True).double() for i in (1, 4))
    for own, torchs in zip((d.layers[1], d.layers[4]), (layers[1], layers[4]), strict=True):
        nn.init.normal_(own.weight), nn.init.normal_(own.bias)
        torchs.load_state_dict(own.state_dict(), strict=False)
    z_x, z_y = torch.randn(4, 24, 7, 7).double(), 3 + torch.randn(3, 24, 7, 7).double()
    found = torch.cat(decisions(d, z_x, z_y, norm))
    torch.testing.assert_close(found, nn.Sequential(*layers)(torch.cat((z_x, z_y))))


def largest(d: Discriminator) -> list[float]:
    """Singular values of its kernels, by a decomposition."""
    kernels = [convolution.weight.detach().flatten(1) for convolution in d.eval().layers[::3]]
    return [float(torch.linalg.matrix_norm(kernel, 2)) for kernel in kernels]


def test_a_spectral_norm_holds_the_largest_singular_value_at_1() -> None:
    """Fresh, whatever torch's global generator has drawn, and after steps that change weights much."""
    config = form("spectral", "separate", "synthetic", "optim.discriminator_lr=0.5")
    fresh = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        fresh.append(build_networks(config.model, seed=1))
    assert same(*fresh)
    per_domain = build_networks(form("per_domain", "separate", "synthetic").model, seed=1)
    assert same(fresh[0].backbone, per_domain.backbone)
    assert same(fresh[0].heads, per_domain.heads)
    step = method(config)
    for d in (fresh[0].discriminator, *(stepped(step, number) for number in range(5))):
        assert d is not None
        assert largest(d) == pytest.approx([1.0] * 3, rel=0.1)


def stepped(step: CrossDomain, number: int) -> Discriminator:
    step.networks.train()
    step(batches(number, size=99))
    assert step.networks.discriminator is not None
    return step.networks.discriminator


def test_mixed_precision_leaves_singular_values_alone() -> None:
    """What divides the weights sees none; a CPU's would round nothing of it, a GPU's does (`tests/gpu`)."""
    d = build_networks(form("spectral", "separate", "synthetic").model, seed=1).discriminator
    assert d is not None
    seen: list[bool] = []

    class Noting(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return weight

    d.get_submodule("layers.0.parametrizations.weight.0").parametrization = Noting()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert d(torch.randn(2, 24, 7, 7)).dtype == torch.bfloat16
    assert seen == [False]


def test_vectors_of_power_iterations_are_no_statistics_that_ranks_average() -> None:
    networks = build_networks(form("spectral", "separate", "synthetic").model, seed=1)
    running = {name for name, x in networks.named_buffers() if "running" in name}
    assert len(list(moving_statistics(networks))) == len(running)


@pytest.mark.parametrize(
    ("norm", "passes", "pushed"), [(norm, "separate", "synthetic") for norm in NORMS] + [("spectral", "joint", "both")]
)
def test_a_state_goes_on_bit_for_bit(norm: str, passes: str, pushed: str) -> None:
    config = form(norm, passes, pushed, "optim.pool_size=6")
    whole, _ = after_steps(config, steps=4)
    step = method(config)
    for number in range(2):
        step(batches(number, size=99))
    state, of_rank = copy.deepcopy((step.state_dict(), step.rank_state_dict()))
    later = method(form(norm, passes, pushed, "optim.pool_size=6", "train.seed=77"))
    later.load_state_dict(state)
    later.load_rank_state_dicts([of_rank])
    for number in (2, 3):
        later(batches(number, size=99))
    assert same(whole, later.networks)


@pytest.mark.parametrize(("norm", "passes", "pushed"), [("joint", "joint", "both"), ("spectral", "separate", "both")])
def test_streams_are_nothing_on_the_cpu(norm: str, passes: str, pushed: str) -> None:
    amp = ("train.amp=true", "train.amp_dtype=float16", "optim.pool_size=6")
    assert_two_streams_equal_one(form(norm, passes, pushed, *amp), CPU, channels_last=True)


@pytest.mark.parametrize(
    ("norm", "passes", "pushed"), [("per_domain", "joint", "synthetic"), ("spectral", "joint", "both")]
)
def test_running_statistics_of_joint_passes_have_seen_both_domains_up_to_the_layer(
    norm: str, passes: str, pushed: str
) -> None:
    """conv1's mean by hand; and fc6, above the layer, takes as many images as were rendered."""
    step, made = method(form(norm, passes, pushed)), batches(0, size=99)
    taken: list[int] = []
    layers: Any = step.backbone.layers
    layers["fc6"][1].register_forward_pre_hook(lambda _, inputs: taken.append(len(inputs[0])))
    both = torch.cat([made["synthetic"].image, made["real"].image])
    mean = layers["conv1"][0](both).mean((0, 2, 3)).detach()
    step(made)
    torch.testing.assert_close(layers["conv1"][1].running_mean, 0.1 * mean)
    assert taken == [4]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("norm", "passes", "pushed"), [*product(["joint"], PASSES, PUSHED), ("spectral", "joint", "both")]
)
def test_the_authors_order_of_work_gives_our_losses(norm: str, passes: str, pushed: str, order: str) -> None:
    """Where D is first, of two steps; where not, D's own loss of the first."""
    config = form(norm, passes, pushed, f"optim.order={order}", "optim.pool_size=3", "optim.discriminator_lr=0.5")
    ours, authors = CrossDomain(config, StepContext(config, CPU)), AuthorsStep(config, StepContext(config, CPU))
    for number in range(2 if order == "discriminator_first" else 1):
        losses = [step(batches(number, size=99)) for step in (ours, authors)]
        for name in losses[0] if order == "discriminator_first" else ("discriminator", "depth"):
            torch.testing.assert_close(losses[1][name], losses[0][name], rtol=1e-4, atol=0)


def test_two_batches_of_a_step_have_the_mean_of_their_gradients() -> None:
    """A spectral norm's vectors move with every batch, so that the second one's are those after the first."""
    for norm in ("joint", "none"):
        config, made = form(norm, "joint", "both"), [batches(number, size=99) for number in range(2)]
        alone = [Recording(config, CPU) for _ in made]
        for context, batch in zip(alone, made, strict=True):
            CrossDomain(config, context)(batch)
        together = Recording(config, CPU)
        step = CrossDomain(config, together)
        for number, batch in enumerate(made):
            with together.part(number, 2):
                step(batch)
        for found, *each in zip(together.gradients, *(context.gradients for context in alone), strict=True):
            mean = (each[0] + each[1]) / 2
            torch.testing.assert_close(found, mean, rtol=1e-4, atol=1e-5 * float(max(x.abs().max() for x in each)))


def test_the_adversarial_weight_grows_with_the_step() -> None:
    """0, w / 4, w / 2, 3 w / 4, w, w; and w where nobody says which step it is."""
    step = method(form("none", "separate", "synthetic", "loss.adversarial_warmup_steps=4"))
    assert step.adversarial_weight == 0.5
    weights = []
    for number in range(1, 7):
        step.begin_step(number, 1.0)
        weights.append(step.adversarial_weight)
    assert weights == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    step.begin_step(3, 1.0)
    half = step(batches(0, size=99))
    whole = method(form("none", "separate", "synthetic"))(batches(0, size=99))
    torch.testing.assert_close(half["adversarial"], whole["adversarial"] / 2)


def test_a_run_with_all_of_it_is_resumed_in_the_middle_of_its_warm_up(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    """Two batches a step, a checkpoint at step 3 of a warm-up of 5; the loss of the first step is 0."""
    words = ["model.discriminator_norm=spectral", "model.passes=joint", "loss.pushed=both", "train.accumulate=2"]
    words += ["loss.adversarial_warmup_steps=5", "train.steps=6", "train.checkpoint_every=3", "train.log_every=1"]
    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    start_run(settings(coded_synthetic, coded_real, *words, "train.deterministic=true"), undisturbed, quiet)
    shutil.copytree(undisturbed, resumed)
    (resumed / "checkpoints" / "step_00000006.pt").unlink()
    resume_run(resumed, quiet)
    assert_same(state(undisturbed, 6), state(resumed, 6))
    losses = [[line["loss/adversarial"] for line in read_metrics(run)] for run in (undisturbed, resumed)]
    assert losses[0] == losses[1]
    assert losses[0][0] == 0 < losses[0][1] < losses[0][3] < losses[0][5]


def test_chance_counts_both_domains_where_both_are_pushed() -> None:
    alone, both = (CrossDomain.chance(form("none", "separate", pushed)) for pushed in PUSHED)
    assert both["adversarial"] == 2 * alone["adversarial"]
    assert both["discriminator"] == alone["discriminator"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["model.passes=joint", "model.running_statistics=all"], "set model.running_statistics=adapted"),
        (["model.discriminator_norm=instance", "data.size=67"], "instance, with images of 67 x 67"),
        (["model.discriminator_norm=batch"], "model.discriminator_norm"),
        (["loss.adversarial_warmup_steps=-1"], "loss.adversarial_warmup_steps"),
        (["loss.pushed=real"], "loss.pushed"),
    ],
)
def test_what_makes_no_sense_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config("tiny", overrides=given)


@pytest.mark.parametrize("setting", ["model.discriminator_norm=none", "model.passes=joint", "loss.pushed=both",
                                     "loss.adversarial_warmup_steps=9"])  # fmt: skip
def test_what_has_no_effect_is_told(setting: str, caplog: pytest.LogCaptureFixture) -> None:
    load_config("tiny", overrides=[setting])
    assert not caplog.text
    load_config("tiny", overrides=[setting, "model.adapted_layer=none"])
    assert f"{setting} has no effect with model.adapted_layer=none" in caplog.text
    caplog.clear()
    load_config("tiny", overrides=[setting, "loss.adversarial_weight=0"])
    assert (f"{setting} has no effect with loss.adversarial_weight=0" in caplog.text) == setting.startswith("loss")


@pytest.mark.parametrize(
    ("norm", "passes", "pushed"), [("joint", "separate", "synthetic"), ("spectral", "joint", "both")]
)
def test_a_dry_run_counts_the_work_of_a_step(
    norm: str, passes: str, pushed: str, coded_synthetic: Path, coded_real: Path
) -> None:
    """On tensors without content as on such that have some."""
    words = [f"model.discriminator_norm={norm}", f"model.passes={passes}", f"loss.pushed={pushed}"]
    config = settings(coded_synthetic, coded_real, *words)
    domains = training_domains(CrossDomain.domains(config), config)
    work = count_step(config, domains, loader_options(config, CPU))
    step, made = method(config), batches(0)
    made["real"] = replace(made["real"], keys=("b",) * 3, image=made["real"].image[:3])
    with FlopCounterMode(display=False) as counter:
        step(made)
    assert work.macs == counter.get_total_flops() / 2
