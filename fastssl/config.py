"""Settings of a run: typed, checked, composed from a preset, a YAML file and `--set` overrides.

Later layers win: preset, then `--config FILE`, then `--set section.key=value`, the last of them first. A misspelt key
is an error that offers the nearest name. A value is what was written: it is never made into one of another type. The
resolved configuration is written into the run folder.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from fastssl import core_yaml
from fastssl.addresses import is_remote, local_path, remote_address
from fastssl.errors import ConfigError, DataError
from fastssl.faults import machine_fault, machine_faults_named
from fastssl.files import complete_or_absent

Task = Literal["depth", "normal", "edge"]
Layer = Literal["conv1", "conv2", "conv3", "conv4", "conv5", "fc6"]
AdaptedLayer = Literal["none", "conv1", "conv2", "conv3", "conv4", "conv5", "fc6"]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def _datasets(given: Any, info: ValidationInfo) -> dict[str, float]:
    # Not pydantic's own dict of str: it takes no name with a byte that is not UTF-8.
    name = f"data.{info.field_name}"
    if isinstance(given, str) and given:
        given = {given: 1.0}
    if not isinstance(given, Mapping):
        words = "expected a path (in quotes if it looks like a number), or paths with their weights as {path: weight}"
        raise ValueError(f"{name} is {_shown(given)}; {words}")
    weights: dict[str, float] = {}
    for text, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"the weight of {text} in {name} is {_shown(weight)}; expected a number above 0")
        if not text or "\0" in text:
            raise ValueError(f"{name} names {text!r}; expected a path")
        path = dataset_path(text)
        if path in weights:
            raise ValueError(f"{name} names {path} twice")
        weights[path] = float(weight)
    return weights


Datasets = Annotated[dict[str, float], PlainValidator(_datasets)]


def _share_or_auto(given: Any) -> Any:
    # A union of types would tell of each of them what is wrong with it.
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not (0 <= given <= 1 if is_number else given == "auto"):
        raise ValueError(f"train.hw_decoder_load is {_shown(given)}; expected a share from 0 to 1, or auto")
    return given


DecoderLoad = Annotated[float | Literal["auto"], BeforeValidator(_share_or_auto)]

TASKS: tuple[Task, ...] = get_args(Task)
ADAPTED_LAYERS: tuple[AdaptedLayer, ...] = get_args(AdaptedLayer)


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


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
    """What is done to training images besides window, flip and gray; the defaults do nothing, as the authors' code."""

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
    betas: tuple[BelowOne, BelowOne] = (0.5, 0.999)
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
    keep_checkpoints: Annotated[int, Field(ge=1)] = 3
    """So many of the newest checkpoints are kept; an older one is removed when a newer one is complete."""
    keep_every: Annotated[int, Field(ge=0)] = 0
    """Each so many steps a checkpoint is written that is kept for good; 0 = none."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
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
    # The method as far as it is known: the defaults above. docs/reproduction.md, section 6, tells which of them have
    # a source, and which are choices.
    "paper": {},
    # What the authors' code computes: docs/reproduction.md, section 4, explains each line, and section 5 what is not
    # reproduced.
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
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Compose a configuration from its layers, of which a later one wins.

    Args:
        preset: name of a preset; one that the file names comes first.
        file: of YAML, as `fastssl.core_yaml` reads it.
        overrides: each ``section.key=value``, the value in YAML; of two for one key the later counts.
        settings: by section and name, as they are.

    Paths of datasets become absolute, and ``~`` the home folder.

    Raises:
        ConfigError: an unknown preset, section or key (the nearest name is offered), a value of another type or
            outside its range, or a file that is not YAML.
    """
    layers: dict[str, Any] = {}
    if file is not None:
        layers = _read_yaml(file)
        preset = layers.pop("preset", preset)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ConfigError("there is no such preset", seen=_shown(preset), expected=_nearest(str(preset), PRESETS))
    values: dict[str, Any] = {name: dict(section) for name, section in PRESETS[preset].items()}
    _merge(values, layers, where=str(file))
    for override in overrides:
        _merge(values, _parse_override(override), where=f"--set {override}")
    _merge(values, settings or {}, where="settings")
    return _validated({"preset": preset, **values})


def dataset_weights(given: Iterable[str]) -> dict[str, float]:
    """Datasets as the command line names them: each ``PATH`` or ``PATH=WEIGHT``; without a weight it is 1.

    What exists is a path, whatever characters it has. Paths become what `dataset_path` makes of them.

    Raises:
        ConfigError: a dataset comes twice, or a weight is not a finite number above 0.
        MachineError: the system cannot say if a path exists.
    """
    weights: dict[str, float] = {}
    for text in given:
        path, separator, number = text.rpartition("=")
        weight = _number(number) if separator and not _is_there(dataset_path(text)) else None
        if weight is None:
            path, weight = text, 1.0
        if not path:
            raise ConfigError("a dataset has no path", where=text, expected="PATH or PATH=WEIGHT")
        if not 0 < weight < math.inf:
            raise ConfigError(
                "the weight of a dataset must be a finite number above 0",
                where=path,
                seen=number,
                do=f"give another weight; a folder of the name {text!r} does not exist",
            )
        path = dataset_path(path)
        if path in weights:
            raise ConfigError("a dataset is given twice", where=path, do="give it once, with its weight")
        weights[path] = weight
    return weights


def dataset_path(text: str) -> str:
    """A dataset's path as it can be used from any folder: absolute, with ``~`` and ``~user`` expanded.

    An address such as ``s3://bucket/rooms`` stays; one that begins with ``file://`` becomes the path.

    Raises:
        UsageError: it is a file of another machine.
    """
    if is_remote(text):
        return remote_address(text)
    path = os.path.expanduser(local_path(text))  # noqa: PTH111 - pathlib's raises for an unknown user
    return str(Path(path).absolute())


def _is_there(path: str) -> bool:
    """Something has this path; a machine that cannot say so is no answer."""
    with machine_faults_named(path):
        try:
            Path(path).stat()
        except (OSError, ValueError) as error:
            if machine_fault(error) is not None:
                raise
            return False
    return True


def _number(text: str) -> float | None:
    if "_" in text:
        return None
    try:
        return float(text)
    except ValueError:
        return None


_RUN_CURE = "write the missing settings in as the run had them (each checkpoint holds them too), or train anew"


def read_config(path: Path) -> Config:
    """Read the resolved configuration of a run folder, which holds every setting.

    Raises:
        DataError: the file is damaged, lacks settings, or holds some that this version does not know. A default in the
            place of what was torn away would be another run.
    """
    try:
        values = _read_yaml(path)
        config = _validated(values, where=path)
    except ConfigError as error:
        raise DataError(
            f"the run's settings cannot be used: {error.what}",
            where=error.where,
            seen=error.seen,
            expected=error.expected,
            do=error.do or _RUN_CURE,
        ) from error
    missing = [
        f"{name}.{setting}"
        for name, section in plain(config).items()
        if isinstance(section, dict)
        for setting in section
        if setting not in (values.get(name) or {})
    ]
    if missing:
        raise DataError(
            "the run's settings are not complete, as after a power cut or from another version",
            where=path,
            seen=f"no {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            expected="every setting",
            do=_RUN_CURE,
        )
    return config


def write_config(config: Config, path: Path) -> None:
    """Write every setting, resolved, as YAML that is complete or absent."""
    with complete_or_absent(path) as file:
        file.write(core_yaml.written(plain(config)).encode("ascii"))


def plain(config: Config) -> dict[str, Any]:
    """All settings as mappings, lists, text and numbers; names that are not UTF-8 stay what they are."""
    # Pydantic's mode "json" would put question marks for their bytes.
    values = config.model_dump()
    for section in values.values():
        if isinstance(section, dict):
            section.update({name: list(value) for name, value in section.items() if isinstance(value, tuple)})
    return values


_MOST_BYTES = 1 << 20


def _read_yaml(path: Path) -> dict[str, Any]:
    with machine_faults_named(path):
        try:
            with path.open("rb") as file:  # perhaps a pipe, as of a shell's <(...)
                content = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise ConfigError("the configuration file cannot be read", where=path, seen=error.strerror) from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(
            "the configuration file is too large to be one", where=path, expected=f"at most {_MOST_BYTES:,} bytes"
        )
    try:
        values = core_yaml.parse(content)
    except core_yaml.CoreYamlError as error:
        raise ConfigError(
            "the configuration file is not valid YAML",
            where=path if error.line is None else f"{path}, line {error.line}",
            seen=error.words,
            expected="one document of YAML 1.2, each key once",
        ) from error
    if values is None:
        words = "is empty" if not content.strip() else "holds no settings"
        raise ConfigError(
            f"the configuration file {words}", where=path, expected="sections such as optim, with settings"
        )
    if not isinstance(values, dict):
        raise ConfigError("the configuration file holds no sections", where=path, seen=values, expected="a mapping")
    return values


def _parse_override(text: str) -> dict[str, Any]:
    name, separator, value = text.partition("=")
    parts = name.strip().split(".")
    if not separator or len(parts) != 2 or not all(parts):
        raise ConfigError(
            "an override must read section.key=value", where="--set", seen=text, expected="such as optim.lr=0.001"
        )
    if parts[0] == "data" and parts[1] in ("synthetic", "real") and _is_there(dataset_path(value)) and value:
        return {"data": {parts[1]: value}}  # what exists is a path, also where YAML would see something else in it
    try:
        return {parts[0]: {parts[1]: core_yaml.parse(value)}}
    except core_yaml.CoreYamlError as error:
        raise ConfigError(
            f"the value of an override is not valid YAML: {error.words}", where=f"--set {name}", seen=value
        ) from error


def _merge(values: dict[str, Any], update: Mapping[str, Any], *, where: str) -> None:
    for section, settings in update.items():
        if not isinstance(settings, Mapping):
            raise ConfigError(
                "a section must be a mapping of settings", where=f"{where}: {section}", seen=_shown(settings)
            )
        values.setdefault(section, {}).update(settings)


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list, such as [0.6, 0.9], or [depth, edge] for tasks",
    "model_type": "a mapping of settings",
}


def _shown(value: object) -> str:
    """A value for a message, so that text is told from a number, and nothing from text."""
    return "nothing (null)" if value is None else repr(value)


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
            "a setting has a value that it cannot take",
            where=place,
            seen=_shown(error["input"]),
            expected=_EXPECTED.get(error["type"], message),
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
