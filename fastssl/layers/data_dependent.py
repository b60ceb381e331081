"""Weights by what they do to images: data-dependent initialisation, and the rescaling of weights that are there.

Source: Kraehenbuehl, Doersch, Donahue & Darrell, *Data-dependent Initializations of Convolutional Neural Networks*,
ICLR 2016, as the authors' program `magic_init` has it (docs/reproduction.md, section 7.5). Layers here are
convolutions, each with the batch norm behind it, if there is one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.backbones import Backbone
from fastssl.errors import ConfigError, DataError, UsageError
from fastssl.few_channels import FewInputsConv2d
from fastssl.layers.folding import Norm, convolutions_of_norms, fold_batch_norms

log = logging.getLogger(__name__)

Draw = Literal["kmeans", "pca", "normal"]
"""How weights are drawn: centres of k-means, or the largest principal components, of whitened patches; or N(0, 1)."""
Constraint = Callable[[nn.Conv2d, Tensor], Tensor]
"""The weights nearest to those given, (O, I, k, k), of the form that a convolution's are held to."""

_BIAS = 0.1
_ROUNDS = 10
_TOLERANCE = 0.005
"""Of the logarithm of a ratio: half of the published 1 %."""
_PATCHES = 10
"""Patches for each output channel, or for each number in a patch, whichever are more."""
_MOST_NUMBERS = 1 << 28
"""In all patches of a layer: 1 GiB."""
_LEAST_VARIANCE = 1e-6
"""Of a principal component that is used, over that of the first."""
_LLOYD_ROUNDS = 10
_TELL_EVERY_S = 30.0
_PROPORTIONAL = 1e-3
"""Of the largest value of a map: by how much rescaled features may differ from a multiple of what they were."""


@dataclass(frozen=True, eq=False)
class _Layer:
    name: str
    convolution: nn.Conv2d
    norm: Norm | None

    @property
    def bias(self) -> Tensor | None:
        """What shifts its channels: with a norm that norm's bias, which a batch's own mean does not take away again."""
        return self.convolution.bias if self.norm is None else self.norm.bias


def initialise_by_data(
    backbone: Backbone,
    images: Sequence[Tensor],
    generator: torch.Generator,
    *,
    draw: Draw = "kmeans",
    constraint: Constraint | None = None,
) -> None:
    """Give a backbone weights by which every channel has its say, and every layer learns as fast as the others.

    For each layer, in the order of computation: weights are drawn, every channel is divided by its deviation over
    images and positions, and shifted to the mean 0.1. Then each layer gets a factor, its bias with it, so that
    gradients of all have the same length relative to their weights: the ratio of a layer is
    sqrt(mean(dW^2) / mean(W^2)), dW^2 averaged over the batches, where the gradient of the last map is N(0, 1). Ratios
    are equal to 1 %, in up to ten rounds. In a network that adds up branches, such as `resnet50`, there may be no such
    factors; then they are left out, with a warning.

    The published networks have no norms. Here norms stay, and are the identity while all of this is done; in the end
    each gets the statistics of its inputs, and the scale and shift that undo them. So in evaluation mode the network is
    the one without norms, and in training mode nearly so, on images as these. A layer's bias is its norm's.

    Args:
        backbone: is changed, frozen layers too; its device and its mode stay.
        images: batches (N, 3, S, S), as the backbone takes them; the published ones are 10 of 16.
        generator: a CPU generator, of which all draws of weights come. The gradients of the last map come of another,
            with the seed 0, batch after batch.
        draw: how weights are drawn. A layer with fewer patches than outputs gets those of N(0, 1), as published.
        constraint: the form that weights are held to.

    Raises:
        ConfigError: the backbone has weights in other modules than convolutions and batch norms behind them.
        DataError: a channel is the same for all images.
    """
    with _in_evaluation(backbone), torch.no_grad():
        layers = _layers(backbone, images[0])
        for layer in layers:
            _make_plain(layer)
        told = time.monotonic()
        for number, layer in enumerate(layers, 1):
            weight = layer.convolution.weight
            drawn = _drawn_weight(layer.convolution, _inputs(backbone, layer, images), len(images), draw, generator)
            weight.copy_(drawn if constraint is None else constraint(layer.convolution, drawn))
            _normalise(layer, _inputs(backbone, layer, images), backbone.name)
            if time.monotonic() - told >= _TELL_EVERY_S:
                told = time.monotonic()
                log.info("%s: weights drawn by images for %d of %d layers", backbone.name, number, len(layers))
        if not _equalise(backbone, layers, images):
            log.warning("no factors were found by which all layers of %s learn equally fast; each is normalised by "
                        "itself alone", backbone.name)  # fmt: skip
        _settle_norms(backbone, layers, images)


def rescaled(backbone: Backbone, images: Sequence[Tensor]) -> Backbone:
    """A copy without batch norms in which every layer learns as fast as the others, to be fine-tuned.

    The norms are folded. Then each layer gets a factor, as in `initialise_by_data`, such that the channels of the last
    convolution have the mean deviation 1. Maps are multiples of what they were.

    Args:
        backbone: stays as it is.
        images: batches as for `initialise_by_data`.

    Returns:
        The copy, in evaluation mode.

    Raises:
        UsageError: a norm cannot be folded; or there are no such factors, or maps would not be multiples of what they
            were, as in a network that adds up branches.
        ConfigError, DataError: as `initialise_by_data`.
    """
    folded = fold_batch_norms(backbone)
    with _in_evaluation(folded), torch.no_grad():
        expected = folded(images[0])
        done = _equalise(folded, _layers(folded, images[0]), images)
        if not (done and _are_multiples(folded(images[0]), expected)):
            raise UsageError(
                "the backbone cannot be rescaled without changing its features",
                where=backbone.name,
                expected="layers one after the other, whose maps grow as their inputs do, as alexnet and vgg16 have",
            )
    return folded


def _are_multiples(maps: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """Each map is the other of its name, but for a factor."""
    for layer, map_ in maps.items():
        factor = float((map_ * others[layer]).sum() / others[layer].square().sum())
        if not float((map_ - factor * others[layer]).abs().max()) <= _PROPORTIONAL * float(map_.abs().max()):
            return False
    return True


@contextmanager
def _in_evaluation(backbone: Backbone) -> Iterator[None]:
    """Evaluation mode, and all weights want gradients, frozen ones too; both are set back."""
    was_training, wanted = backbone.training, {one: one.requires_grad for one in backbone.parameters()}
    backbone.eval().requires_grad_(True)
    try:
        yield
    finally:
        backbone.train(was_training)
        for parameter, want in wanted.items():
            parameter.requires_grad_(want)


def _layers(backbone: Backbone, image: Tensor) -> list[_Layer]:
    """The layers in the order of computation."""
    order: dict[nn.Module, None] = {}
    convolutions = [one for one in backbone.modules() if isinstance(one, nn.Conv2d)]
    hooks = [one.register_forward_pre_hook(lambda module, _: order.setdefault(module)) for one in convolutions]
    norms = {convolution: norm for norm, convolution in convolutions_of_norms(backbone, image).items()}
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in backbone.named_modules()}
    layers = [_Layer(names[one], one, norms.get(one)) for one in order if isinstance(one, nn.Conv2d)]
    known = {part for layer in layers for part in (layer.convolution, layer.norm)}
    for module, name in names.items():
        if list(module.parameters(recurse=False)) and not (module in known and _is_plain(module)):
            raise ConfigError(
                "weights of this backbone cannot be drawn by data",
                where=backbone.name,
                seen=f"{name}: {type(module).__name__}",
                expected="convolutions padded with zeros, and batch norms with statistics behind them",
            )
    return layers


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return (
            type(module) in (nn.Conv2d, FewInputsConv2d)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
    return isinstance(module, Norm) and module.affine and module.track_running_stats


def _make_plain(layer: _Layer) -> None:
    """Without a bias, and with a norm that is the identity in evaluation mode."""
    if layer.norm is not None:
        layer.norm.reset_parameters()
        assert layer.norm.running_var is not None
        layer.norm.running_var.fill_(1 - layer.norm.eps)
    if layer.convolution.bias is not None:
        layer.convolution.bias.zero_()


class _ReachedError(Exception):
    """A pass has come to the convolution that is looked at."""


def _inputs(backbone: Backbone, layer: _Layer, images: Iterable[Tensor]) -> Iterator[Tensor]:
    """What a layer's convolution gets of each batch; nothing behind it is computed."""
    reached: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Tensor]) -> None:
        reached.append(inputs[0])
        raise _ReachedError

    for image in images:
        hook = layer.convolution.register_forward_pre_hook(stop)
        with suppress(_ReachedError):
            backbone.forward(image)  # not the call, which may have been compiled without the hook
        hook.remove()
        yield reached.pop()


def _normalise(layer: _Layer, inputs: Iterable[Tensor], name: str) -> None:
    """Give every channel the deviation 1 and the mean 0.1; so far it has no bias."""
    moments = _Moments()
    for x in inputs:
        moments.add(layer.convolution(x))
    deviation = moments.variance.sqrt()
    if not bool((deviation > 0).all()):
        raise DataError(
            "the images cannot decide on weights: a channel is the same for all of them",
            where=f"{name}, {layer.name}",
            seen=f"channel {int((deviation > 0).int().argmin())}",
            expected="images that differ",
        )
    layer.convolution.weight.div_(deviation.view(-1, 1, 1, 1))
    if layer.bias is not None:
        layer.bias.copy_(_BIAS - moments.mean / deviation)


class _Moments:
    """Mean and variance of each channel of maps (N, C, H, W), over all that were added, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, maps: Tensor) -> None:
        maps = maps.double()
        self._count += maps.numel() // maps.shape[1]
        self._sums = self._sums + maps.sum(dim=(0, 2, 3))
        self._squares = self._squares + maps.square().sum(dim=(0, 2, 3))

    @property
    def mean(self) -> Tensor:
        return torch.as_tensor(self._sums) / self._count

    @property
    def variance(self) -> Tensor:
        return (torch.as_tensor(self._squares) / self._count - self.mean.square()).clamp(min=0)


def _equalise(backbone: Backbone, layers: Sequence[_Layer], images: Sequence[Tensor]) -> bool:
    """Give each layer a factor, so that all have the same ratio of gradient to weight, and the last the deviation 1.

    With factors s, the product of which is p, the output is multiplied by p and a layer's ratio by p / s^2: where maps
    grow as their inputs do, in a chain of layers, one round is enough. Where branches are added up, that is not so, and
    there may be no such factors.

    Returns:
        Whether it is done; if not, nothing is changed.
    """
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    least = math.inf
    for _ in range(_ROUNDS):
        ratios = _gradient_ratios(backbone, layers, images).log()
        moments = _Moments()
        for x in _inputs(backbone, layers[-1], images):
            moments.add(layers[-1].convolution(x))
        output = moments.variance.sqrt().mean().log()
        apart = ratios - ratios.mean()
        furthest = max(float(apart.abs().max()), abs(float(output)))
        if furthest < _TOLERANCE:
            return True
        if not furthest < least:
            break
        least = furthest
        _multiply(backbone, layers, images[0], (apart / 2 - output.cpu() / len(layers)).exp().tolist())
    backbone.load_state_dict(before)
    return False


def _gradient_ratios(backbone: Backbone, layers: Sequence[_Layer], images: Sequence[Tensor]) -> Tensor:
    """By layer, (L,) float64 on the CPU: how long the gradient of its weights is, relative to the weights."""
    generator = torch.Generator().manual_seed(0)
    weights = [layer.convolution.weight for layer in layers]
    squares = torch.zeros(len(layers), dtype=torch.float64)
    for image in images:
        with torch.enable_grad():
            output = backbone.forward(image)[backbone.last]
            top = torch.randn(output.shape, generator=generator).to(output)
            gradients = torch.autograd.grad(output, weights, top)
        squares += torch.stack([gradient.double().square().mean() for gradient in gradients]).cpu()
    means = torch.stack([weight.double().square().mean() for weight in weights]).cpu()
    return (squares / len(images) / means).sqrt()


def _multiply(backbone: Backbone, layers: Sequence[_Layer], image: Tensor, factors: Sequence[float]) -> None:
    """Multiply the layers by factors; a bias also by what its layer's inputs grow by, so that it keeps its share."""
    before = [_length(backbone, layer, image) for layer in layers]
    for layer, length, factor in zip(layers, before, factors, strict=True):
        layer.convolution.weight.mul_(factor)
        if layer.bias is not None:
            layer.bias.mul_(factor * _length(backbone, layer, image) / length)


def _length(backbone: Backbone, layer: _Layer, image: Tensor) -> float:
    """The mean of the absolute inputs of a layer."""
    (x,) = _inputs(backbone, layer, [image])
    return float(x.double().abs().mean())


def _settle_norms(backbone: Backbone, layers: Sequence[_Layer], images: Iterable[Tensor]) -> None:
    """Give norms the statistics of their inputs, and the scale and shift by which each still only adds its bias."""
    moments = {layer: _Moments() for layer in layers if layer.norm is not None}
    hooks = [
        layer.convolution.register_forward_hook(lambda _, __, output, own=own: own.add(output))
        for layer, own in moments.items()
    ]
    for image in images:
        backbone.forward(image)
    for hook in hooks:
        hook.remove()
    for layer, own in moments.items():
        norm = layer.norm
        assert norm is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(own.mean)
        norm.running_var.copy_(own.variance)
        norm.weight.copy_((own.variance + norm.eps).sqrt())
        norm.bias.add_(own.mean)


def _drawn_weight(
    convolution: nn.Conv2d, inputs: Iterable[Tensor], batches: int, draw: Draw, generator: torch.Generator
) -> Tensor:
    """Weights, of any length, by the inputs; each group of channels by its own."""
    weight, groups = convolution.weight, convolution.groups
    if draw == "normal":
        return torch.randn(weight.shape, generator=generator).to(weight)
    numbers = weight[0].numel()
    wanted = min(_PATCHES * max(weight.shape[0], numbers), _MOST_NUMBERS // (numbers * groups))
    patches = _patches(convolution, inputs, -(-wanted // batches), generator)
    drawn = [
        _drawn(own.flatten(1), weight.shape[0] // groups, draw, generator).view(-1, *weight.shape[1:])
        for own in patches.chunk(groups, dim=1)
    ]
    return torch.cat(drawn)


def _patches(convolution: nn.Conv2d, inputs: Iterable[Tensor], per_batch: int, generator: torch.Generator) -> Tensor:
    """What a convolution sees at random places: (M, I, k, k), at most `per_batch` of each batch."""
    assert not isinstance(convolution.padding, str)
    (above, beside), (down, across) = convolution.padding, convolution.dilation
    height, width = (
        step * (length - 1) + 1 for step, length in zip((down, across), convolution.kernel_size, strict=True)
    )
    found = []
    for x in inputs:
        padded = F.pad(x, (beside, beside, above, above))
        windows = padded.unfold(2, height, convolution.stride[0]).unfold(3, width, convolution.stride[1])
        num, _, rows, columns = windows.shape[:4]
        places = torch.randperm(num * rows * columns, generator=generator)[:per_batch].to(x.device)
        image, row, column = places // (rows * columns), places // columns % rows, places % columns
        found.append(windows[image, :, row, column][..., ::down, ::across])
    return torch.cat(found)


def _drawn(patches: Tensor, outputs: int, draw: Draw, generator: torch.Generator) -> Tensor:
    """Directions among patches (M, D): (outputs, D)."""
    if len(patches) < outputs:
        return torch.randn(outputs, patches.shape[1], generator=generator).to(patches)
    centred = patches - patches.mean(dim=0)
    spectrum = torch.linalg.eigh((centred.T @ centred).double() / len(centred))  # float32 fails on large patches
    variances, components = spectrum.eigenvalues.flip(0)[:outputs], spectrum.eigenvectors.flip(1)[:, :outputs]
    kept = variances > _LEAST_VARIANCE * variances[0]
    whitening: Tensor = (components[:, kept] * variances[kept].rsqrt()).to(patches)  # (D, K)
    if draw == "kmeans":
        centres = _centres(F.normalize(centred @ whitening), outputs, generator)
        return centres @ whitening.T
    # Where there are fewer components than outputs, the others are random directions among whitened patches.
    more = torch.randn(outputs - whitening.shape[1], whitening.shape[1], generator=generator).to(patches)
    return torch.cat([whitening.T, more @ whitening.T])


def _centres(points: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Centres of k-means, (number, K), of points (M, K) of length 1, by Lloyd's rounds from random ones of them."""
    centres = points[torch.randperm(len(points), generator=generator)[:number].to(points.device)]
    for _ in range(_LLOYD_ROUNDS):
        half = centres.square().sum(dim=1) / 2
        nearest = torch.cat([(part @ centres.T - half).argmax(dim=1) for part in points.split(8192)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = nearest.bincount(minlength=number)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres
