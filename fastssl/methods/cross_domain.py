"""Method `cross_domain`: Ren & Lee, *Cross-Domain Self-supervised Multi-task Feature Learning*, CVPR 2018.

One training step (docs/reproduction.md, section 2.2):

    z_x = B(x), z_y = B(y)                       x synthetic, y real, without a gradient
    D frozen:  update B, H on  L_edge + L_depth + L_normal - log(1 - D(z_x))
    B frozen:  update D    on  - log D(z_x) - log(1 - D(z_y))

D(z) is the probability that z is synthetic. Both updates read the features computed at the top and the parameters as
they stood there, so neither needs anything of the other: on a GPU they can run on two streams with the very result of
running them one after the other. The authors' code updates D first and lets B meet the new D, which
`optim.order=discriminator_first` does, one after the other (docs/reproduction.md, sections 5.6 and 6.9). Other forms of
the adversary are settings too: how D normalises, whether B sees both domains in one pass, and whether photos are pushed
as well (docs/reproduction.md, section 7).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from fastssl import config as settings
from fastssl.backbones import Backbone, HeadForm, build_backbone
from fastssl.batch import PLANES, Batch, Task
from fastssl.config import BelowOne, Channels, NonNegative, Positive, Preset, Section
from fastssl.errors import ConfigError
from fastssl.layers import (
    Discriminator,
    DiscriminatorNorm,
    FeaturePool,
    Heads,
    JointPass,
    build_heads,
    xavier_initialise,
)
from fastssl.loader import DomainRequest
from fastssl.losses import adversarial_loss, depth_loss, discriminator_loss, edge_loss, normal_loss
from fastssl.methods.method import StepContext
from fastssl.optimizers import adam, restore, sgd
from fastssl.pictures import prediction_sheet

log = logging.getLogger(__name__)

Judge = Callable[[Tensor], Tensor]
"""D, or D frozen: from features to logits."""


class ModelConfig(settings.BackboneSettings):
    """Backbone B, heads H and discriminator D."""

    heads: Literal[HeadForm, "auto"] = "auto"
    """Form of the task heads (`fastssl.layers.heads`); auto = that of the backbone's paper."""
    head_channels: Channels = 64
    """Channels inside each task head, where its map is largest."""
    tasks: tuple[Task, ...] = PLANES
    """Tasks that are learnt; one head each."""
    adapted_layer: str = "conv5"
    """Layer of the backbone whose features D compares between the domains; none = no D."""
    adapted_feature: Literal["pre_relu", "post_relu"] = "pre_relu"
    """Whether D sees the layer before or after its ReLU."""
    discriminator_norm: DiscriminatorNorm = "per_domain"
    """How D normalises (docs/reproduction.md, section 7.1). With `joint`, photos pass beside rendered images in B's
    update too, for their statistics: unless pushed, they have no loss there, and no gradient."""
    passes: Literal["separate", "joint"] = "separate"
    """Whether B sees each domain by itself, or both in one batch up to the adapted layer (section 7.2 there)."""
    running_statistics: Literal["adapted", "all"] = "adapted"
    """What the statistics that evaluations normalise with have seen: photos up to the adapted layer, and H each batch
    once; or photos in all of B, and H each batch twice, as in the authors' code (docs/reproduction.md, section 5.2)."""
    # Not less: where all ReLUs of a fresh head are shut the raw normal is the bias, exactly zero, whose gradient of
    # 1 / length would swamp Adam's running mean of squares.
    shortest_normal: Annotated[float, Field(ge=1e-30, le=1)] = 1e-4
    """A shorter raw normal is divided by this; the authors' code has 1e-12 (docs/reproduction.md, section 5.1)."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(
                f"model.tasks is {list(self.tasks)}; expected one or more different tasks of {list(PLANES)}"
            )
        return self

    @property
    def adapts(self) -> bool:
        """A layer is adapted, so there is a discriminator, and photos are read."""
        return self.adapted_layer != "none"


class LossConfig(Section):
    """The terms of the objective and their weights (`fastssl.losses`)."""

    depth_weight: NonNegative = 5.0
    normal_weight: NonNegative = 10.0
    edge_weight: NonNegative = 1.0
    adversarial_weight: NonNegative = 0.05
    """Weight of -log(1 - D(z_x)) in the update of B."""
    adversarial_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which that weight rises linearly from 0; 0 = none (docs/reproduction.md, section 7.3)."""
    pushed: Literal["synthetic", "both"] = "synthetic"
    """Whose features B is to change; `both` adds -log D(z_y) with the same weight (section 7.4 there)."""
    discriminator_weight: NonNegative = 1.0
    """Weight of the discriminator's own loss."""
    depth_form: Literal["eigen", "released"] = "eigen"
    """Second term of the log-depth loss: minus half the squared mean of each image, or plus half that of the batch."""
    edge_form: Literal["hed", "released"] = "hed"
    """Contours balanced by class, or every pixel of an image weighted by non-contour / contour pixels."""
    edge_count: Literal["window", "stored", "released"] = "window"
    """What sets the weight: contour pixels of the window; their share in the whole stored image; or, as in the authors'
    code, their number there against the pixels of the window (docs/reproduction.md, section 5.4)."""
    edge_division: Literal["exact", "whole"] = "exact"
    """Whether the `released` weight keeps what it has behind the point (docs/reproduction.md, section 5.3)."""
    mask_invalid: bool = True
    """Leave out pixels without a label; if false they are targets log(1e-8) and (-1, -1, -1)."""


class OptimConfig(settings.OptimSettings):
    """Adam for B and H, SGD for D."""

    betas: tuple[BelowOne, BelowOne] = (0.5, 0.999)
    discriminator_lr: Positive = 1e-3
    discriminator_momentum: BelowOne = 0.9
    discriminator_weight_decay: NonNegative = 5e-4
    pool_size: Annotated[int, Field(ge=0)] = 128
    """Feature maps of earlier steps, per domain, that D is also shown; 0 = none."""
    order: Literal["together", "discriminator_first"] = "together"
    """Whether B is updated against D as it stood, beside D's update, or against the new D, after it, as in the authors'
    code (docs/reproduction.md, section 5.6)."""


class CrossDomainConfig(settings.Config):
    """Settings of the method."""

    method: Literal["cross_domain"] = "cross_domain"
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()


PRESETS: dict[str, Preset] = {
    # The method as far as it is known: the defaults above. docs/reproduction.md, section 6, tells which of them have
    # a source, and which are choices.
    "paper": {},
    # What the authors' code computes. docs/reproduction.md, sections 4 and 5, explains each line, and names what is not
    # computed.
    "released": {
        "data": {"flip": 0.0, "gray": "per_batch", "last_corner": False, "real_window": "whole"},
        "model": {"adapted_feature": "post_relu", "running_statistics": "all", "shortest_normal": 1e-12},
        "loss": {
            "discriminator_weight": 0.5,
            "depth_form": "released",
            "edge_form": "released",
            "edge_count": "released",
            "edge_division": "whole",
            "mask_invalid": False,
        },
        "optim": {"schedule": "constant", "order": "discriminator_first"},
    },
    # Two CPU cores and a few minutes: the same method with fewer channels on smaller images, and heads that join early
    # maps, since few images do not teach a head without them. D learns faster, since it has hundreds of steps and not
    # hundreds of thousands. Contours weigh as much as trains B by them, too (docs/reproduction.md, section 6.6).
    "tiny": {
        "data": {"size": 131, "window": (0.8, 1.0), "batch_synthetic": 16, "batch_real": 16},
        "model": {
            "width": 0.25,
            "fc_channels": 128,
            "heads": "light",
            "head_channels": 16,
            "adapted_feature": "post_relu",
            "init_gain": 1.0,
        },
        "loss": {"edge_weight": 10.0, "adversarial_weight": 0.1},
        "optim": {
            "lr": 3e-3,
            "betas": (0.9, 0.999),
            "schedule": "cosine",
            "warmup_steps": 20,
            "discriminator_lr": 0.02,
        },
        "train": {"steps": 1000, "log_every": 10, "picture_every": 100, "checkpoint_every": 250},
    },
}

_RANK_SEEDS = 1_000_003
"""Between the seeds of two ranks' pools: far from those that users choose for runs."""
_SHOWN = 6
"""Images on a picture."""
_TASK_NAMES: dict[Task, str] = {"depth": "depth", "normal": "surface normals", "edge": "contours"}


class Networks(nn.Module):
    """B, H and D side by side, to be moved, saved and switched between modes together."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        post_relu = model.adapted_feature == "post_relu"
        self.backbone: Backbone = build_backbone(model, post_relu=post_relu)
        self.heads: Heads = build_heads(
            self.backbone, model.tasks, model.head_channels, shortest_normal=model.shortest_normal, form=model.heads
        )
        if model.running_statistics == "all":
            _count_batches_twice(self.heads)
        self.discriminator: Discriminator | None = None
        self.joint_pass: JointPass | None = None
        if model.adapts:
            layer, norm = model.adapted_layer, model.discriminator_norm
            self.discriminator = Discriminator(self.backbone, layer, model.width, norm)
            # Without batch norms images have nothing to do with each other.
            if model.passes == "joint" and any(isinstance(module, _BatchNorm) for module in self.backbone.modules()):
                self.joint_pass = JointPass(self.backbone, layer)

    def parts(self) -> dict[str, nn.Module]:
        """The networks that there are, by name: `backbone`, `heads` and, if a layer is adapted, `discriminator`."""
        return dict(self.named_children())

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions of the tasks, as `Heads.forward` gives them."""
        predictions: dict[str, Tensor] = self.heads(self.backbone(image), *image.shape[-2:])
        return predictions


def _check_adapted(model: ModelConfig, backbone: Backbone) -> None:
    """Refuse an adapted layer that has no map of the kind asked for, or that nothing can change."""
    if not model.adapts:
        return
    if model.adapted_feature == "pre_relu" and not backbone.has_relu:
        raise ConfigError(
            "this backbone's layers have no map before their ReLU",
            where="model.adapted_feature",
            seen=model.adapted_feature,
            expected="post_relu: the map as the layer gives it",
            hint="set model.adapted_feature=post_relu",
        )
    layers = list(backbone.feature_info)
    if model.frozen != "none" and layers.index(model.adapted_layer) <= layers.index(model.frozen):
        raise ConfigError(
            "the adapted layer is frozen, so nothing would be adapted",
            where="model.adapted_layer",
            seen=f"{model.adapted_layer}, with model.frozen={model.frozen}",
            expected="a layer above the frozen ones, or none",
        )


def _count_batches_twice(heads: Heads) -> None:
    """Move running statistics as if each batch passed through twice, for one pass's work: r + m (s - r), done twice."""
    for norm in heads.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.momentum is not None
            norm.momentum = 1 - (1 - norm.momentum) ** 2


def build_networks(model: ModelConfig, seed: int) -> Networks:
    """Networks on the CPU, freshly initialised from `seed` alone; torch's global generator stays as it was.

    B and H are the same for every `adapted_layer`, so that runs that differ in it start alike.
    """
    with torch.random.fork_rng(devices=[]):  # torch's modules draw a default initialisation, which is overwritten
        networks = Networks(model)
    xavier_initialise(networks, model.init_gain, torch.Generator().manual_seed(seed))
    return networks


class CrossDomain:
    """Holds what a step changes: networks, optimizers and feature pools."""

    name: ClassVar[str] = "cross_domain"
    unit: ClassVar[str] = "pairs"
    caption: ClassVar[str] = "Rendered images of a training batch, and every task's ground truth beside its prediction."
    Config: ClassVar[type[settings.Config]] = CrossDomainConfig
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    @staticmethod
    def domains(config: CrossDomainConfig) -> tuple[DomainRequest, ...]:
        """Rendered images with the planes that are learnt, and photos if a layer is adapted."""
        synthetic = DomainRequest(name="synthetic", targets=_targets(config))
        real = DomainRequest(name="real", hint="--set model.adapted_layer=none")
        return (synthetic, real) if config.model.adapts else (synthetic,)

    @staticmethod
    def check(config: CrossDomainConfig) -> None:
        """Pass images without content through networks without content: all sizes and names are checked, at no cost.

        Raises:
            ConfigError: the input's size does not fit the backbone or the discriminator, there is no such layer, or the
                heads do not fit the backbone.
        """
        _check_weights(config)
        _check_joint_passes(config.model)
        _warn_of_settings_without_effect(config)
        size, data = config.data.size, config.data
        smallest = min(data.batch_synthetic, data.batch_real) if config.model.adapts else data.batch_synthetic
        with torch.device("meta"), _few_values_named(min(smallest, 2), size):
            networks = Networks(config.model)
            image = torch.empty(min(smallest, 2), 3, size, size)
            features = networks.backbone(image) if networks.joint_pass is None else networks.joint_pass(image, image)[0]
            if networks.discriminator is not None:
                z = features[config.model.adapted_layer]
                decisions(networks.discriminator, z, z, config.model.discriminator_norm)
            side = networks.heads(features, size, size)[config.model.tasks[0]].shape[-1]
        _check_adapted(config.model, networks.backbone)
        if config.model.adapts and config.model.passes == "joint" and networks.joint_pass is None:
            log.warning("model.passes=joint has no effect with a backbone that has no batch norms")
        if side != size:
            raise ConfigError(
                "the heads do not give one prediction per pixel with this backbone",
                where="model.backbone",
                seen=f"{side} x {side} predictions of an image of {size} x {size}",
                expected=f"{size} x {size}",
                hint="set model.heads=light or model.heads=pyramid, which fit every backbone",
            )

    @staticmethod
    def describe(config: CrossDomainConfig) -> str:
        """What is learnt with these settings."""
        names = [_TASK_NAMES[task] for task in config.model.tasks]
        tasks = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
        return f"The network learnt {tasks} from rendered images." + (
            f" A discriminator made the features of its layer {config.model.adapted_layer} alike for rendered images "
            "and photos."
            if config.model.adapts
            else " No layer was adapted to photos."
        )

    @staticmethod
    def chance(config: CrossDomainConfig) -> dict[str, float]:
        """The losses where D cannot tell the domains apart."""
        if not config.model.adapts:
            return {}
        terms = 2 if config.loss.pushed == "both" else 1
        return {
            "adversarial": config.loss.adversarial_weight * terms * math.log(2),
            "discriminator": config.loss.discriminator_weight * 2 * math.log(2),
        }

    def __init__(self, config: CrossDomainConfig, context: StepContext) -> None:
        self.config, self.context = config, context
        self.networks = context.placed(build_networks(config.model, config.train.seed))
        optim = config.optim
        trained = [*self.networks.backbone.trained_parameters(), *self.networks.heads.parameters()]
        self.task_optimizer = adam(trained, optim, context.device, betas=optim.betas)
        self.discriminator_optimizer: Optimizer | None = None
        if self.networks.discriminator is not None:
            self.discriminator_optimizer = sgd(
                self.networks.discriminator.parameters(),
                optim,
                context.device,
                lr=optim.discriminator_lr,
                momentum=optim.discriminator_momentum,
                weight_decay=optim.discriminator_weight_decay,
            )
        # Nothing is made of what lies above the adapted layer: it moves running statistics, and no more.
        self._photos_until = config.model.adapted_layer if config.model.running_statistics == "adapted" else None
        self.adversarial_weight = config.loss.adversarial_weight
        context.trains(self.task_optimizer)
        if self.discriminator_optimizer is not None:
            context.trains(self.discriminator_optimizer)
        first = config.train.seed + _RANK_SEEDS * context.ranks.rank
        seeds = (torch.Generator().manual_seed(first + domain) for domain in (0, 1))
        self.synthetic_pool, self.real_pool = (FeaturePool(optim.pool_size, seed) for seed in seeds)

    @property
    def backbone(self) -> Backbone:
        """B."""
        return self.networks.backbone

    @property
    def compared_layer(self) -> str:
        """The adapted layer, or the backbone's own choice where none was adapted."""
        model = self.config.model
        return model.adapted_layer if model.adapts else self.backbone.compared

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The planes that it predicts."""
        return self.config.model.tasks

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions by task: depth in metres, unit normals, probabilities of contours."""
        units = {task: raw.float() for task, raw in self.networks.predict(image).items()}
        if "depth" in units:
            units["depth"] = units["depth"].exp()
        if "edge" in units:
            units["edge"] = units["edge"].sigmoid()
        return units

    def __call__(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Update B, H and D once.

        Args:
            batches: `synthetic` images with the planes that are learnt; `real` photos if a layer is adapted.

        Returns:
            The weighted losses (scalars on the device), by name: the tasks, and `adversarial` and `discriminator`.

        Sync: none.
        """
        heads, discriminator = self.networks.heads, self.networks.discriminator
        context, weights, layer = self.context, self.config.loss, self.config.model.adapted_layer
        synthetic, discriminator_first = batches["synthetic"], self.config.optim.order == "discriminator_first"
        norm, losses = self.config.model.discriminator_norm, dict[str, Tensor]()

        if discriminator is None:
            with context.precision():
                features = self.backbone(synthetic.image)
        else:
            features, z_y = self._passes(synthetic.image, batches["real"].image)
            z_x = features[layer]
            frozen = as_constant(discriminator)  # before the side's work moves what it has beside parameters
            with context.side.run():  # B frozen: the pools give detached features
                with context.precision():
                    pooled_x, pooled_y = self.synthetic_pool.mix(z_x), self.real_pool.mix(z_y)
                    d_x, d_y = decisions(discriminator, pooled_x, pooled_y, norm)
                losses["discriminator"] = weights.discriminator_weight * discriminator_loss(d_x, d_y)
                context.backward(losses["discriminator"])
            if discriminator_first:
                self._update_discriminator()
                frozen = as_constant(discriminator)

        with context.precision():
            predictions = heads(features, *synthetic.image.shape[-2:])
            if discriminator is not None:
                judged = self.judged_of_pushed(frozen, z_x, z_y)
        objective = task_losses(predictions, synthetic, weights)
        if discriminator is not None:
            objective["adversarial"] = self.adversarial_weight * adversarial_loss(*judged)
        context.backward(torch.stack(list(objective.values())).sum())

        context.update(self.task_optimizer)
        if not discriminator_first:  # not before the adversarial gradient has passed through D
            self._update_discriminator()
        context.finish()
        return {name: loss.detach() for name, loss in (objective | losses).items()}

    def gradient_norms(self, batches: Mapping[str, Batch]) -> dict[str, Tensor]:
        """Norms of the gradient of each weighted loss on B, as the networks stand; `ManyLosses.gradient_norms`."""
        networks, layer, synthetic = self.networks, self.config.model.adapted_layer, batches["synthetic"]
        backbone, heads = networks.backbone, networks.heads
        with self.context.precision():  # running statistics are those of copies
            features: dict[str, Tensor] = functional_call(backbone, _buffers(backbone), synthetic.image)
            predictions = functional_call(heads, _buffers(heads), (features, *synthetic.image.shape[-2:]))
        losses = task_losses(predictions, synthetic, self.config.loss)
        if networks.discriminator is not None:
            with self.context.precision():
                photos = functional_call(backbone, _buffers(backbone), batches["real"].image, {"until": layer})
                judged = self.judged_of_pushed(as_constant(networks.discriminator), features[layer], photos[layer])
            losses["adversarial"] = self.adversarial_weight * adversarial_loss(*judged)
        parameters = backbone.trained_parameters()
        norms = {}
        for name, loss in losses.items():
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            norms[name] = torch.stack([one.float().norm() for one in gradients if one is not None]).norm()
        return norms

    def _passes(self, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features of rendered images in every layer, and of photos at the adapted one, with a gradient if pushed."""
        with self.context.precision():
            if self.networks.joint_pass is not None:
                return self.networks.joint_pass(x, y)
            features = self.backbone(x)
        with torch.set_grad_enabled(self.config.loss.pushed == "both"), self.context.precision():
            return features, self.backbone(y, until=self._photos_until)[self.config.model.adapted_layer]

    def judged_of_pushed(self, frozen: Judge, z_x: Tensor, z_y: Tensor) -> tuple[Tensor, ...]:
        """D's logits that B is to change: of rendered images and, if they are pushed too, of photos."""
        norm = self.config.model.discriminator_norm
        if self.config.loss.pushed == "both":
            return decisions(frozen, z_x, z_y, norm)
        if norm == "joint":  # photos lend their statistics
            return decisions(frozen, z_x, z_y.detach(), norm)[:1]
        return (frozen(z_x),)

    def _update_discriminator(self) -> None:
        """D's step, when its gradients are there."""
        self.context.side.join()
        if self.discriminator_optimizer is not None:
            self.context.update(self.discriminator_optimizer)

    def begin_step(self, number: int, lr_factor: float) -> None:
        """Multiply the configured learning rates by `lr_factor`, and let the adversarial weight be that of the step."""
        loss, optim = self.config.loss, self.config.optim
        warmed = min((number - 1) / loss.adversarial_warmup_steps, 1.0) if loss.adversarial_warmup_steps else 1.0
        self.adversarial_weight = warmed * loss.adversarial_weight
        for group in self.task_optimizer.param_groups:
            group["lr"] = optim.lr * lr_factor
        if self.discriminator_optimizer is not None:
            for group in self.discriminator_optimizer.param_groups:
                group["lr"] = optim.discriminator_lr * lr_factor

    @torch.no_grad()
    def picture(self, batches: Mapping[str, Batch]) -> Image.Image:
        """Predictions, made in evaluation mode, beside the ground truth for the first images of the synthetic batch.

        Sync: waits for the predictions.
        """
        batch = batches["synthetic"]
        self.networks.eval()
        predicted = {task: values.cpu().numpy() for task, values in self.predict(batch.image[:_SHOWN]).items()}
        self.networks.train()
        truth = {task: batch.targets[task][:_SHOWN].float().cpu().numpy() for task in predicted}
        return prediction_sheet(batch.image[:_SHOWN].float().cpu().numpy(), truth, predicted)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, besides its batches, the context and the pools."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; raises what the parts raise where the shapes differ."""
        for name, part in self._parts().items():
            if isinstance(part, Optimizer):
                restore(part, state[name])
            else:
                part.load_state_dict(state[name])

    def rank_state_dict(self) -> dict[str, Any]:
        """The feature pools: each rank has seen other images."""
        return {name: pool.state_dict() for name, pool in self._pools().items()}

    def load_rank_state_dicts(self, states: Sequence[dict[str, Any]]) -> None:
        """Continue from `rank_state_dict` of all ranks; among another number of them the maps are spread anew."""
        ranks = self.context.ranks
        for name, pool in self._pools().items():
            pool.load_states([state[name] for state in states], rank=ranks.rank, world_size=ranks.world_size)

    def _pools(self) -> dict[str, FeaturePool]:
        return {"synthetic_pool": self.synthetic_pool, "real_pool": self.real_pool}

    def _parts(self) -> dict[str, Any]:
        parts = {
            **self.networks.parts(),
            "task_optimizer": self.task_optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        return {name: part for name, part in parts.items() if part is not None}


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """Copies of what a pass changes beside parameters."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def decisions(judge: Judge, z_x: Tensor, z_y: Tensor, norm: DiscriminatorNorm) -> tuple[Tensor, Tensor]:
    """D's logits of both domains, (N, 1, h, w) and (M, 1, h, w): in one pass, unless its norm keeps them apart.

    For a joint norm that is what it means. A spectral norm makes one power iteration so, and not two. With the others
    it is less work.

    Args:
        judge: D, or D frozen.
        z_x: synthetic features, (N, C, H, W).
        z_y: real features, (M, C, H, W).
        norm: of D.
    """
    if norm == "per_domain":
        return judge(z_x), judge(z_y)
    d_x, d_y = judge(torch.cat((z_x, z_y))).split((len(z_x), len(z_y)))
    return d_x, d_y


def as_constant(discriminator: Discriminator) -> Judge:
    """D as it stands, frozen: its parameters enter as constants, and passes change copies of its buffers."""
    constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    return partial(functional_call, discriminator, constants | _buffers(discriminator))


@contextmanager
def _few_values_named(num: int, size: int) -> Iterator[None]:
    """A pass of images through networks in training mode, which norms refuse where they get a single value.

    Raises:
        ConfigError: they do.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 spatial element" in str(error):
            raise ConfigError(
                "an instance norm of the discriminator has a single value per channel of an image, of which it can "
                "make no deviation",
                where="model.discriminator_norm, data.size",
                seen=f"instance, with images of {size} x {size}",
                expected="larger images, or another norm",
                hint="enlarge data.size",
            ) from error
        if "more than 1 value per channel" not in str(error):
            raise
        raise ConfigError(
            "a batch norm has a single value per channel, of which it can make no deviation",
            where="data.batch_synthetic, data.batch_real",
            seen=f"batches of {num} with images of {size} x {size}",
            expected="at least 2 images, or larger ones",
            hint="enlarge the batch, or data.size",
        ) from error


def _check_weights(config: CrossDomainConfig) -> None:
    """Refuse an objective of nothing."""
    loss, names = config.loss, [f"{task}_weight" for task in config.model.tasks]
    names += ["adversarial_weight"] if config.model.adapts else []
    if not any(getattr(loss, name) for name in names):
        raise ConfigError(
            "nothing would be learnt: all weights of the losses are 0",
            where=", ".join(f"loss.{name}" for name in names),
            seen=0.0,
            expected="one above 0",
        )


def _check_joint_passes(model: ModelConfig) -> None:
    """Refuse statistics of photos above the adapted layer where joint passes leave photos behind at it."""
    if model.adapts and model.passes == "joint" and model.running_statistics == "all":
        raise ConfigError(
            "in joint passes photos go no further than the adapted layer, so statistics above it cannot see them",
            where="model.running_statistics",
            seen="all, with model.passes=joint",
            expected="adapted",
            hint="set model.running_statistics=adapted, or model.passes=separate",
        )


def _warn_of_settings_without_effect(config: CrossDomainConfig) -> None:
    """Warn only: presets set some of these for a whole, of which a part may then be changed."""
    loss, model, optim = config.loss, config.model, config.optim
    idle: list[tuple[str, bool, str]] = [
        ("loss.edge_division=whole", loss.edge_form == "hed" and loss.edge_division == "whole", "loss.edge_form=hed"),
        (
            "model.running_statistics=all",
            not model.adapts and model.running_statistics == "all",
            "model.adapted_layer=none, but that the heads' statistics move twice a step",
        ),
    ]
    pushes = {
        f"loss.adversarial_warmup_steps={loss.adversarial_warmup_steps}": loss.adversarial_warmup_steps > 0,
        "loss.pushed=both": loss.pushed == "both",
    }
    adversary = {
        "optim.order=discriminator_first": optim.order == "discriminator_first",
        f"model.discriminator_norm={model.discriminator_norm}": model.discriminator_norm != "per_domain",
        "model.passes=joint": model.passes == "joint",
        **pushes,
    }
    if not model.adapts:
        idle += [(setting, is_set, "model.adapted_layer=none") for setting, is_set in adversary.items()]
    elif not loss.adversarial_weight:
        idle += [(setting, is_set, "loss.adversarial_weight=0") for setting, is_set in pushes.items()]
    for setting, is_idle, beside in idle:
        if is_idle:
            log.warning("%s has no effect with %s", setting, beside)


def _targets(config: CrossDomainConfig) -> tuple[Task, ...]:
    return tuple(task for task in PLANES if task in config.model.tasks)


def task_losses(predictions: Mapping[str, Tensor], batch: Batch, config: LossConfig) -> dict[str, Tensor]:
    """The weighted loss of every task that has a prediction, by name: scalars on the device.

    Args:
        predictions: what `fastssl.layers.Heads` returns.
        batch: the targets.
        config: forms and weights.
    """
    losses: dict[str, Tensor] = {}
    if "depth" in predictions:
        valid = batch.valid if config.mask_invalid else None
        depth = depth_loss(predictions["depth"], batch.depth, valid, config.depth_form)
        losses["depth"] = config.depth_weight * depth
    if "normal" in predictions:
        valid = batch.valid if config.mask_invalid else None
        losses["normal"] = config.normal_weight * normal_loss(predictions["normal"], batch.normal, valid)
    if "edge" in predictions:
        contours = _contours(batch, config.edge_count)
        form, division = config.edge_form, config.edge_division
        edge = edge_loss(predictions["edge"], batch.edge, form=form, contours=contours, division=division)
        losses["edge"] = config.edge_weight * edge
    return losses


def _contours(batch: Batch, count: Literal["window", "stored", "released"]) -> Tensor | None:
    """Contour pixels of each image as `edge_loss` takes them."""
    if count == "window":
        return None
    return batch.stored_edge_count if count == "released" else batch.stored_edge_fraction * batch.edge[0].numel()
