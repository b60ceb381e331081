"""Subjects that are no run: exported files, weights of others, and backbones that nobody trained."""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastssl.backbones import Backbone, LayerInfo, TimmModel, check_sides, find_backbone
from fastssl.batch import IMAGE_MEAN, Target
from fastssl.config import BackboneSettings, Config, DataConfig, dataset_path
from fastssl.errors import DataError, UsageError
from fastssl.evaluate.imported import AUTHORS, absolute_import, imported_backbone, read_state
from fastssl.evaluate.subject import (
    REESTIMATED,
    RunSubject,
    Subject,
    loading,
    reestimate,
    words_of_reestimation,
)
from fastssl.export import load_backbone
from fastssl.export.loading import read_header
from fastssl.extras import optional_package
from fastssl.loader import Domain
from fastssl.methods import find_method
from fastssl.shards import DomainName
from fastssl.train import initialise_by_first_images, run_device

TORCHVISION, TIMM = "torchvision:", "timm:"
DRAWN = "init:"
"""What the names of drawn weights begin with: init:gaussian, and init:kraehenbuehl, with photos as =DATASET."""
GAUSSIAN, KRAEHENBUEHL = f"{DRAWN}gaussian", f"{DRAWN}kraehenbuehl"
_DEVIATION = 0.01
_SIZES, _SIZE = {"alexnet": 227}, 224
"""Of the images that backbones get whose weights were imported."""
_SEED = 0
_LEAST = 64
"""The smallest side of an image that a network of torchvision gets."""
_ALEXNET = {f"features.{place}": f"conv{n}" for n, place in enumerate((1, 4, 7, 9, 11), start=1)}


@dataclass(frozen=True, kw_only=True)
class ForeignSubject(Subject):
    """A backbone of which no run is known, so that no training data are either."""

    def training_domain(self, name: DomainName, targets: Collection[Target] = ()) -> Domain:
        """There is none.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "this evaluation needs the data that a run was trained on",
            where=self.name,
            seen="a backbone that is no run",
            hint="give a run folder, or an evaluation that needs none, such as knn or linear",
        )

    def reestimated(self, images: Domain, until: str | None = None) -> Subject | None:
        """A copy with the statistics of a domain's images; `Subject.reestimated` of what is no run."""
        backbone = copy.deepcopy(self.backbone)
        seen = replace(self.sees(images), targets=frozenset())
        if not reestimate(backbone, partial(backbone, until=until), seen):
            return None
        return replace(
            self,
            name=f"{self.name}{REESTIMATED}",
            networks=backbone,
            backbone=backbone,
            statistics=words_of_reestimation(seen),
        )


def foreign_subject(text: str, name: str) -> Subject | None:
    """The subject of `torchvision:NAME`, `timm:NAME`, each also with `=FILE`, of a file of `fastssl export`, or of
    weights as `fastssl.evaluate.imported.imported_backbone` takes them.

    Nothing is downloaded. Without a file of weights, a state dict, networks have the weights that their library draws,
    from the seed 0. They see the whole image in colour, at the size and with the mean and deviation with which their
    library says that they were published. An exported file sees the whole image at the size of its header, and other
    weights at 227 pixels (alexnet) or 224.

    Returns:
        None where it is none of these.

    Raises:
        ConfigError, UsageError: the library is not there, or has no such network, or that gives no maps.
        DataError: a file that cannot be used.
    """
    if not text.startswith((TORCHVISION, TIMM)):
        if imported := imported_backbone(text):
            backbone, settings = imported
            size = _SIZES.get(backbone.name, _SIZE)
            return _subject(name, backbone, size, backbone.compared, settings)
        path = Path(text)
        if path.suffix != ".safetensors":
            return None
        header = read_header(path)
        return _subject(name, load_backbone(path), header.images.size, header.layer, header.model)
    model, _, file = text.partition("=")
    kind, size = _torchvision_kind(model) if model.startswith(TORCHVISION) else _timm_kind(model)
    settings = BackboneSettings(backbone=model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED)
        backbone = kind(settings).eval()
    if file:
        _load(backbone, Path(file))
    return _subject(name, backbone, size, backbone.compared, settings)


def absolute_subject(text: str) -> str:
    """The words for a subject that is no run, with absolute paths of its files and datasets.

    Raises:
        UsageError: they are none.
    """
    kind, equals, path = text.partition("=")
    if kind in (GAUSSIAN, KRAEHENBUEHL) or text.startswith((TORCHVISION, TIMM)):
        return f"{kind}={dataset_path(path)}" if equals else text
    if imported := absolute_import(text):
        return imported
    if text.endswith(".safetensors"):
        return dataset_path(text)
    expected = f"{GAUSSIAN}, {KRAEHENBUEHL}=PHOTOS, {TORCHVISION}NAME, {TIMM}NAME, {AUTHORS}FILE or a .safetensors file"
    raise UsageError("there is no such subject", seen=text, expected=expected)


def drawn_subject(subject: Subject, text: str, name: str, seed: int = _SEED) -> Subject | None:
    """The backbone of a subject with weights that nobody has trained, as `init:gaussian` and `init:kraehenbuehl` say.

    Returns:
        None where the text begins otherwise.

    Raises:
        UsageError: there is no such way to draw weights; or what `kraehenbuehl` raises.
    """
    if not text.startswith(DRAWN):
        return None
    way, _, photos = text.partition("=")
    if text == GAUSSIAN:
        return gaussian(subject, name, seed)
    if way == KRAEHENBUEHL and not text.endswith("="):
        return kraehenbuehl(subject, name, photos, seed)
    expected = f"{GAUSSIAN}, {KRAEHENBUEHL} or {KRAEHENBUEHL}=PHOTOS"
    raise UsageError("there is no such way to draw weights", seen=text, expected=expected)


def kraehenbuehl(subject: Subject, name: str, photos: str = "", seed: int = _SEED) -> Subject:
    """The backbone of a subject with weights of `fastssl.layers.initialise_by_data`, from the seed.

    Args:
        subject: of whose backbone it is.
        name: the word for it in tables.
        photos: a packed dataset, by 160 images of which they are drawn; none = those of the run's training, of the
            first domain that its method reads.
        seed: of the weights.

    Raises:
        UsageError: no photos are given, and the subject is no run.
        ConfigError, DataError: the backbone or the images cannot be used.
    """
    if photos:
        images = subject.domain("real", photos)
    elif isinstance(subject, RunSubject):
        images = subject.training_domain(find_method(subject.config.method).domains(subject.config)[0].name)
    else:
        raise UsageError(
            "weights are drawn by images, and this subject knows none",
            where=subject.name,
            seen="a backbone that is no run",
            hint="name packed photos: init:kraehenbuehl=PHOTOS",
        )
    backbone = copy.deepcopy(subject.backbone)
    initialise_by_first_images(backbone, subject.networks, images, loading(subject.config), seed=seed)
    made = _subject(name, backbone, subject.config.data.size, subject.layer, subject.config.model)
    return replace(
        made, config=subject.config, statistics=f"of 160 images of the {images.name} data that drew its weights"
    )


def gaussian(subject: Subject, name: str, seed: int = _SEED) -> Subject:
    """The backbone of a subject with weights of a normal distribution with deviation 0.01, drawn from the seed; biases
    are 0, and norms as they are built."""
    backbone = copy.deepcopy(subject.backbone).cpu()
    generator = torch.Generator().manual_seed(seed)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=_DEVIATION, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    size = subject.config.data.size
    made = _subject(name, backbone, size, subject.layer, subject.config.model)
    return replace(made, config=subject.config, statistics="as they are built, 0 and 1")


def _subject(name: str, backbone: Backbone, size: int, layer: str, model: BackboneSettings) -> ForeignSubject:
    config = Config(method="none", data=DataConfig(size=size, window=(1.0, 1.0), gray="off"), model=model)
    backbone = backbone.to(run_device())
    return ForeignSubject(
        name=name,
        networks=backbone,
        backbone=backbone,
        layer=layer,
        config=config,
        predict=None,
        tasks=(),
        statistics="as they come with the weights",
    )


def _load(backbone: Any, path: Path) -> None:
    """Load a state dict; what belongs to layers behind the last map is left out."""
    state = read_state(path)
    try:
        missing = backbone.model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        what, seen = "the weights cannot be loaded", " ".join(str(error).split())
        raise DataError(what, where=path, seen=seen, expected=f"a state dict of {backbone.name}") from error
    if missing:
        seen = f"no {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        raise DataError("weights are missing", where=path, seen=seen, expected=f"a state dict of {backbone.name}")


def _standardised(kind: type[Backbone], mean: Any, deviation: Any) -> type[Backbone]:
    """A backbone for images without `IMAGE_MEAN` that gives them the mean and deviation that its weights want."""
    offset = torch.from_numpy(IMAGE_MEAN).view(3, 1, 1) - torch.tensor(mean).view(3, 1, 1)
    scale = torch.tensor(deviation).view(3, 1, 1)

    # Which class it inherits from is known when it runs, which mypy has no words for.
    class Standardised(kind):  # type: ignore[misc, valid-type]
        def forward(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
            standard: dict[str, Tensor] = super().forward((image + offset.to(image)) / scale.to(image), until)
            return standard

    Standardised.__doc__ = kind.__doc__
    return Standardised


@cache
def _timm_kind(name: str) -> tuple[type[Backbone], int]:
    kind: Any = find_backbone(name)
    assert issubclass(kind, TimmModel)
    import timm

    published: Any = timm.get_pretrained_cfg(kind.model_name)
    return _standardised(kind, published.mean, published.std), published.input_size[-1]


@cache
def _torchvision_kind(name: str) -> tuple[type[Backbone], int]:
    """The backbone of a network of torchvision, and the side of the images that it was published with."""
    models = optional_package("torchvision", where=name, hint="pip install torchvision").models
    model_name = name.removeprefix(TORCHVISION)
    if model_name not in models.list_models(module=models):
        expected = "a name of torchvision.models.list_models(module=torchvision.models)"
        raise UsageError("torchvision has no such network", seen=name, expected=expected)
    published = models.get_model_weights(model_name).DEFAULT.transforms()
    size = published.crop_size[0]
    nodes, info = _stages(model_name, size)
    if len(info) < 2:
        raise UsageError("this network has no convolutional stages", seen=name)
    last = list(info)[-1]
    members = {"name": name, "model_name": model_name, "nodes": nodes, "layer_info": info, "last": last}
    kind = type("TorchVisionModel", (TorchVisionModel,), {**members, "compared": last, "__doc__": f"{name}."})
    return _standardised(kind, published.mean, published.std), size


class TorchVisionModel(Backbone):
    """A network of torchvision up to its last map.

    Its layers are the last maps of each size, named as their modules with `_` for dots; those of AlexNet are conv1 to
    conv5. Maps are as the module gives them, after whatever ends it.
    """

    model_name: ClassVar[str]
    nodes: ClassVar[dict[str, str]]
    layer_info: ClassVar[dict[str, LayerInfo]]
    discriminators: ClassVar = {}

    def __init__(self, settings: BackboneSettings, *, post_relu: bool = False) -> None:
        super().__init__(settings, post_relu=post_relu)
        from torchvision.models.feature_extraction import create_feature_extractor

        self.feature_info = dict(self.layer_info)
        self.model = create_feature_extractor(_built(self.model_name), self.nodes)

    def forward(self, image: Tensor, until: str | None = None) -> dict[str, Tensor]:
        """As `Backbone.forward`; whatever `until` says, all is computed."""
        self.check_size(*image.shape[-2:])
        if until is not None:
            self.check_layer(until)
        found = self.model(self.as_weights(image))
        layers = list(self.feature_info)
        return {layer: found[layer] for layer in layers[: None if until is None else layers.index(until) + 1]}

    @classmethod
    def check_size(cls, height: int, width: int) -> None:
        """Sides of at least 64 pixels."""
        check_sides(height, width, least=_LEAST)


def _built(model_name: str) -> nn.Module:
    from torchvision import models

    model: nn.Module = models.get_model(model_name, weights=None)
    return model.eval()


def _stages(model_name: str, size: int) -> tuple[dict[str, str], dict[str, LayerInfo]]:
    """The modules that give the last map of each size, with the layers' names; and the maps."""
    with torch.device("meta"):
        model: Any = _built(model_name)
    children = {name: module for name, module in model.named_children() if name != "features"}
    if hasattr(model, "features"):
        children |= {f"features.{name}": module for name, module in model.features.named_children()}
    shapes = dict[str, torch.Size]()

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and output.shape[2] == output.shape[3] > 1:
            shapes[name] = output.shape

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in children.items()
        if "Pool" not in type(module).__name__
    ]
    with torch.no_grad():
        model(torch.empty(2, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    by_size = {shape[2]: name for name, shape in shapes.items()}
    names = _ALEXNET if model_name == "alexnet" else {name: name.replace(".", "_") for name in by_size.values()}
    info = {layer: LayerInfo(shapes[name][1], round(size / shapes[name][2])) for name, layer in names.items()}
    return names, info
