"""Settings of a run: typed, checked, composed from a preset, a YAML file and `--set` overrides.

Later layers win: preset, then `--config FILE`, then `--set section.key=value`. A misspelt key is an error
that offers the nearest name. The resolved configuration is written into the run folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fastssl.errors import ConfigError

Task = Literal["depth", "normal", "edge"]
Layer = Literal["conv1", "conv2", "conv3", "conv4", "conv5", "fc6"]
AdaptedLayer = Literal["none", "conv1", "conv2", "conv3", "conv4", "conv5", "fc6"]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _one_dataset(given: Any) -> Any:
    return {given: 1.0} if isinstance(given, str) and given else given or {}


Datasets = Annotated[dict[str, Positive], BeforeValidator(_one_dataset)]


def _share_or_auto(given: Any) -> Any:
    # A union of types would tell of each of them what is wrong with it.
    try:
        is_right = 0 <= float(given) <= 1
    except (TypeError, ValueError):
        is_right = given == "auto"
    if not is_right:
        raise ValueError(f"train.hw_decoder_load is {given!r}; expected a share from 0 to 1, or auto")
    return given


DecoderLoad = Annotated[float | Literal["auto"], BeforeValidator(_share_or_auto)]

TASKS: tuple[Task, ...] = get_args(Task)
ADAPTED_LAYERS: tuple[AdaptedLayer, ...] = get_args(AdaptedLayer)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(_Section):
    """What is read, and what the network sees of a sample."""

    synthetic: Datasets = {}
    """Packed datasets of rendered images and their weights (`--synthetic`); one path alone may be given instead."""
    real: Datasets = {}
    """Packed datasets of photos and their weights (`--real`)."""
    size: Annotated[int, Field(ge=35)] = 227
    """Side of the network's input in pixels; 16 k + 3, so that the heads give one output per input pixel."""
    window: tuple[Share, Share] = (227 / 256, 227 / 256)
    """Smallest and largest side of the random square window, as a share of the packed image's side."""
    real_window: Literal["random", "whole"] = "random"
    """`whole` squeezes the whole photo into the input, as the authors' code does."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    gray: Literal["per_sample", "per_batch", "off"] = "per_sample"
    """One random colour channel, repeated three times, so that colour statistics cannot tell the domains apart."""
    batch_synthetic: Annotated[int, Field(ge=1)] = 224
    """Synthetic images per step and rank."""
    batch_real: Annotated[int, Field(ge=1)] = 224
    """Real images per step and rank."""
    shuffle_buffer: Annotated[int, Field(ge=0)] = 0
    """Samples that are shuffled together, of as many shards as hold them; 0 = all. Remote shards need a bound."""
    max_bad: Annotated[int, Field(ge=0)] = 100
    """Samples of a domain that turn out damaged and are replaced by their neighbours before the run gives up."""
    paranoid: bool = False
    """Check every member that is read against its checksum (`--paranoid`); it takes no time that was measured."""
    normal_filter: Literal["linear", "nearest"] = "linear"
    """How normals are resampled where a window is not as large as the input; linear ones are made unit again."""
    edge_filter: Literal["any", "area"] = "any"
    """A pixel is a contour if any stored pixel in it is, or to the share of those that are."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.size % 16 != 3:
            lower = (self.size - 3) // 16 * 16 + 3
            raise ValueError(
                f"data.size is {self.size}, which does not fit the network; the nearest are {lower} and {lower + 16}"
            )
        if not 0 < self.window[0] <= self.window[1]:
            raise ValueError(f"data.window is {self.window}; the first share must be above 0 and at most the second")
        return self


class AugmentConfig(_Section):
    """What is done to training images besides window, flip and gray; the defaults do nothing, as the paper has it."""

    aspect: tuple[Positive, Positive] = (1.0, 1.0)
    """Smallest and largest width of the window over its height, relative to the image's own."""
    brightness: Share = 0.0
    """Largest deviation of the factor from 1; contrast and saturation likewise."""
    contrast: Share = 0.0
    saturation: Share = 0.0
    hue: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest turn in degrees. On a CPU this and saturation take more time than decoding."""
    blur: Share = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    """Smallest and largest deviation in pixels of the network's input."""

    @model_validator(mode="after")
    def _check(self) -> AugmentConfig:
        for name in ("aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"augment.{name} is {low, high}; the first number must be at most the second")
        return self


class ModelConfig(_Section):
    """Backbone B, heads H and discriminator D (`fastssl.models`)."""

    width: Positive = 1.0
    """Multiplies the channels of conv1 to conv5 and of the discriminator; 1 is the published network."""
    fc_channels: Annotated[int, Field(ge=1)] = 4096
    """Channels of fc6 and fc7."""
    head_channels: Annotated[int, Field(ge=1)] = 64
    """Channels inside each task head."""
    tasks: tuple[Task, ...] = ("depth", "normal", "edge")
    """Tasks that are learnt; one head each."""
    adapted_layer: AdaptedLayer = "conv5"
    """Layer whose features D compares between the domains."""
    adapted_feature: Literal["pre_relu", "post_relu"] = "pre_relu"
    """Whether D sees the layer before or after its ReLU."""
    init_gain: Positive = 0.02
    """Gain of the Xavier normal initialisation of every convolution."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(
                f"model.tasks is {list(self.tasks)}; expected one or more different tasks of {list(TASKS)}"
            )
        return self


class LossConfig(_Section):
    """The terms of the objective and their weights (`fastssl.train.losses`)."""

    depth_weight: NonNegative = 5.0
    normal_weight: NonNegative = 10.0
    edge_weight: NonNegative = 1.0
    adversarial_weight: NonNegative = 0.05
    """Weight of -log(1 - D(z_x)) in the update of B."""
    discriminator_weight: NonNegative = 1.0
    """Weight of the discriminator's own loss."""
    depth_form: Literal["eigen", "released"] = "eigen"
    """Second term of the log-depth loss: minus half the squared mean of each image, or plus half that of the batch."""
    edge_form: Literal["hed", "released"] = "hed"
    """Contours balanced by class, or every pixel of an image weighted by non-contour / contour pixels."""
    edge_count: Literal["window", "stored"] = "window"
    """Whether the contour pixels that set the weight are counted in the window or in the whole stored image."""
    mask_invalid: bool = True
    """Leave out pixels without a label; if false they are targets log(1e-8) and (-1, -1, -1)."""


class OptimConfig(_Section):
    """Adam for B and H, SGD for D."""

    lr: Positive = 1e-3
    betas: tuple[Share, Share] = (0.5, 0.999)
    discriminator_lr: Positive = 1e-3
    discriminator_momentum: Share = 0.9
    discriminator_weight_decay: NonNegative = 5e-4
    schedule: Literal["drops", "constant"] = "drops"
    drop_at: tuple[Share, ...] = (0.6, 0.9)
    """Shares of the run after which each learning rate is multiplied by `drop_factor`."""
    drop_factor: Share = 0.1
    pool_size: Annotated[int, Field(ge=0)] = 128
    """Feature maps of earlier steps, per domain, that D is also shown; 0 = none."""


class TrainConfig(_Section):
    """Length of the run and what it leaves behind."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the synthetic samples; `steps` takes precedence."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Steps in all; 0 = as `epochs` says."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    amp: bool = False
    """Mixed precision."""
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """float16 trains with a gradient scaler."""
    channels_last: bool = True
    tf32: bool = True
    streams: bool = True
    """Run D's update on a CUDA stream of its own."""
    deterministic: bool = False
    """Ask the libraries for deterministic algorithms; slower."""
    log_every: Annotated[int, Field(ge=1)] = 50
    """Steps between two lines of metrics."""
    picture_every: Annotated[int, Field(ge=1)] = 1000
    """Steps between two prediction pictures."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 1000
    """Steps between two checkpoints; one more is written at the end."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Decoding threads of the loader; 0 = as many as there are cores."""
    prefetch: Annotated[int, Field(ge=1)] = 2
    """Batches of each domain that are made ahead of need."""
    hw_decoder_load: DecoderLoad = "auto"
    """Share of the images that a GPU's JPEG engine decodes; 0 leaves it out. `auto` tries it for some seconds when the
    run begins, and takes the fastest share, or 0 where images were found overwritten or the run is to be deterministic;
    a number is taken as it is."""


class Config(_Section):
    """All settings of a run."""

    preset: str = "paper"
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.model.adapted_layer != "none" and self.data.size < 67:
            raise ValueError(f"data.size is {self.data.size}; the discriminator needs at least 67 pixels")
        return self


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The method as published: the defaults above.
    "paper": {},
    # What the authors' code computes. Each line is one of its oddities, or a choice that differs from the paper.
    # Not reproduced: D's update before B's (here both start from the same parameters) and the redrawing of
    # images with fewer than 350 contour pixels.
    "released": {
        "data": {"flip": 0.0, "gray": "per_batch", "real_window": "whole"},
        "model": {"adapted_feature": "post_relu"},
        "loss": {
            "discriminator_weight": 0.5,
            "depth_form": "released",
            "edge_form": "released",
            "edge_count": "stored",
            "mask_invalid": False,
        },
        "optim": {"schedule": "constant"},
    },
    # Two CPU cores and a few minutes: the same method with fewer channels on smaller images. D learns faster, since
    # it has hundreds of steps and not hundreds of thousands.
    "tiny": {
        "data": {"size": 131, "window": (0.8, 1.0), "batch_synthetic": 16, "batch_real": 16},
        "model": {
            "width": 0.25,
            "fc_channels": 128,
            "head_channels": 16,
            "adapted_feature": "post_relu",
            "init_gain": 1.0,
        },
        "loss": {"adversarial_weight": 0.1},
        "optim": {"betas": (0.9, 0.999), "discriminator_lr": 0.02},
        "train": {"steps": 500, "log_every": 10, "picture_every": 100, "checkpoint_every": 250},
    },
}


def load_config(
    preset: str = "paper",
    *,
    file: Path | None = None,
    overrides: Iterable[str] = (),
) -> Config:
    """Compose a configuration from a preset, an optional YAML file and `section.key=value` overrides.

    Raises:
        ConfigError: an unknown preset, section or key (the nearest name is offered), a value outside its
            range, or a file that is not YAML.
    """
    layers: dict[str, Any] = {}
    if file is not None:
        layers = _read_yaml(file)
        preset = str(layers.pop("preset", preset))
    if preset not in PRESETS:
        raise ConfigError("there is no such preset", seen=preset, expected=_nearest(preset, PRESETS))
    values: dict[str, Any] = {name: dict(section) for name, section in PRESETS[preset].items()}
    _merge(values, layers, where=str(file))
    for override in overrides:
        _merge(values, _parse_override(override), where=f"--set {override}")
    return _validated({"preset": preset, **values})


def dataset_weights(given: Iterable[str]) -> dict[str, float]:
    """Datasets as the command line names them: each ``PATH`` or ``PATH=WEIGHT``; without a weight it is 1.

    Local paths become absolute, so that a run can be continued from another folder.

    Raises:
        ConfigError: a dataset comes twice, or a weight is not above 0.
    """
    weights: dict[str, float] = {}
    for text in given:
        path, separator, number = text.rpartition("=")
        weight = _number(number) if separator else None
        if weight is None:
            path, weight = text, 1.0
        if weight <= 0:
            raise ConfigError("the weight of a dataset must be above 0", where=path, seen=number)
        path = path if "://" in path else str(Path(path).absolute())
        if path in weights:
            raise ConfigError("a dataset is given twice", where=path, do="give it once, with its weight")
        weights[path] = weight
    return weights


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_config(path: Path) -> Config:
    """Read the resolved configuration of a run folder."""
    return _validated(_read_yaml(path), where=path)


def write_config(config: Config, path: Path) -> None:
    """Write every setting, resolved, as YAML."""
    path.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("the configuration file cannot be read", where=path, seen=error.strerror) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("the configuration file is not valid YAML", where=path, seen=str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError(
            "the configuration file holds no sections", where=path, seen=type(values).__name__, expected="a mapping"
        )
    return values


def _parse_override(text: str) -> dict[str, Any]:
    name, separator, value = text.partition("=")
    parts = name.strip().split(".")
    if not separator or len(parts) != 2 or not all(parts):
        raise ConfigError(
            "an override must read section.key=value", where="--set", seen=text, expected="such as optim.lr=0.001"
        )
    try:
        return {parts[0]: {parts[1]: yaml.safe_load(value)}}
    except yaml.YAMLError as error:
        raise ConfigError("the value of an override is not valid YAML", where=f"--set {name}", seen=value) from error


def _merge(values: dict[str, Any], update: Mapping[str, Any], *, where: str) -> None:
    for section, settings in update.items():
        if not isinstance(settings, Mapping):
            raise ConfigError("a section must be a mapping of settings", where=f"{where}: {section}", seen=settings)
        values.setdefault(section, {}).update(settings)


def _validated(values: dict[str, Any], where: Path | None = None) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as failure:
        error = failure.errors(include_url=False)[0]
        name = ".".join(str(part) for part in error["loc"])
        place = name if where is None else f"{where}: {name}"
        if error["type"] == "extra_forbidden":
            known = _known_names(error["loc"][:-1])
            raise ConfigError(
                "there is no such setting",
                where=place,
                seen=error["loc"][-1],
                expected=_nearest(str(error["loc"][-1]), known),
            ) from None
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "value_error":
            raise ConfigError(message, where=where) from None
        raise ConfigError(
            "a setting has a value that it cannot take", where=place, seen=error["input"], expected=message
        ) from None


def _known_names(section: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in section:
        inner = model.model_fields[str(part)].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    names = ", ".join(known)
    return f"{close[0]!r}? All names here: {names}" if close else f"one of: {names}"
