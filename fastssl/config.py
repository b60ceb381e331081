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
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

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

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int, Field(ge=1, le=1 << 16)]
Channels = Annotated[int, Field(ge=1, le=1 << 16)]


def _datasets(given: Any, info: ValidationInfo) -> dict[str, float]:
    # Not pydantic's own dict of str: it takes no name with a byte that is not UTF-8.
    name = f"data.{info.field_name}"
    if isinstance(given, str) and given:
        given = {given: 1.0}
    if not isinstance(given, Mapping):
        words = "expected a path (in quotes if it looks like a number), or paths with their weights as {path: weight}"
        raise ValueError(f"{name} is {shown(given)}; {words}")
    weights: dict[str, float] = {}
    for text, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"the weight of {text} in {name} is {shown(weight)}; expected a number above 0")
        if not text or "\0" in text:
            raise ValueError(f"{name} names {text!r}; expected a path")
        path = dataset_path(text)
        if path in weights:
            raise ValueError(f"{name} names {path} twice")
        weights[path] = float(weight)
    return weights


Datasets = Annotated[dict[str, float], PlainValidator(_datasets)]


def _fraction_or_auto(given: Any) -> Any:
    # A union of types would tell of each of them what is wrong with it.
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if not (0 <= given <= 1 if is_number else given == "auto"):
        raise ValueError(f"train.hw_decoder_load is {shown(given)}; expected a fraction from 0 to 1, or auto")
    return given


def _bool_or_auto(given: Any, info: ValidationInfo) -> Any:
    if not (isinstance(given, bool) or given == "auto"):
        raise ValueError(f"train.{info.field_name} is {shown(given)}; expected true, false or auto")
    return given


AutoBool = Annotated[bool | Literal["auto"], BeforeValidator(_bool_or_auto)]
DecoderLoad = Annotated[float | Literal["auto"], BeforeValidator(_fraction_or_auto)]


class Section(BaseModel):
    """Settings that belong together: checked, frozen, and no others."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


class DataConfig(Section):
    """What is read, and what the network sees of a sample."""

    synthetic: Datasets = {}
    """Packed datasets of rendered images and their weights (`--synthetic`); one path alone may be given instead."""
    real: Datasets = {}
    """Packed datasets of photos and their weights (`--real`)."""
    validation_synthetic: Datasets = {}
    """Packed rendered images that are held out; a method that predicts planes is measured on them during training
    (`--validation-synthetic`). Their weights mean nothing."""
    validation_real: Datasets = {}
    """Packed photos that are held out (`--validation-real`): the features of any method are measured on them, by their
    classes where they have some."""
    size: Annotated[int, Field(ge=16, le=1 << 13)] = 227
    """Side of the network's input in pixels; the backbone says which it takes."""
    window: tuple[Fraction, Fraction] = (227 / 256, 227 / 256)
    """Smallest and largest side of the random square window, as a fraction of the packed image's side."""
    real_window: Literal["random", "whole"] = "random"
    """`whole` squeezes the whole photo into the input, as the authors' code does."""
    last_corner: bool = True
    """Windows also begin at the last row and column where they fit, which the authors' code leaves out
    (docs/reproduction.md, section 5.5)."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    gray: Literal["per_sample", "per_batch", "off"] = "per_sample"
    """One random colour channel, repeated three times, so that colour statistics cannot tell the domains apart."""
    batch_synthetic: BatchSize = 224
    """Rendered images per step and rank."""
    batch_real: BatchSize = 224
    """Photos per step and rank."""
    shuffle_buffer: Annotated[int, Field(ge=0)] = 0
    """Samples that are shuffled together, of as many shards as hold them; 0 = all. Remote shards need a bound."""
    max_bad: Annotated[int, Field(ge=0)] = 100
    """Samples of a domain that turn out damaged and are replaced by their neighbours before the run gives up."""
    paranoid: bool = False
    """Check every member that is read against its checksum (`--paranoid`); it takes no time that was measured."""
    normal_filter: Literal["linear", "nearest"] = "linear"
    """How normals are resampled where a window is not as large as the input; linear ones are made unit again."""
    edge_filter: Literal["any", "area"] = "any"
    """A pixel is a contour if any stored pixel in it is, or to the fraction of those that are."""

    def datasets(self, domain: str) -> dict[str, float]:
        """The packed datasets of a domain and their weights."""
        datasets: dict[str, float] = getattr(self, domain)
        return datasets

    def batch_size(self, domain: str) -> int:
        """Images of a domain per step and rank."""
        size: int = getattr(self, f"batch_{domain}")
        return size

    def sees_whole(self, domain: str) -> bool:
        """Images of a domain are seen whole, instead of through a random window."""
        return domain == "real" and self.real_window == "whole"

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if not 0 < self.window[0] <= self.window[1]:
            raise ValueError(f"data.window is {self.window}; the first fraction must be above 0 and at most the second")
        return self


class AugmentConfig(Section):
    """Changes to training images besides window, flip and gray; the defaults do nothing, as the authors' code."""

    aspect: tuple[Positive, Positive] = (1.0, 1.0)
    """Smallest and largest width of the window over its height, relative to the image's own."""
    brightness: Fraction = 0.0
    """Largest deviation of the factor from 1; contrast and saturation likewise."""
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest turn in degrees. On a CPU this and saturation take more time than decoding."""
    blur: Fraction = 0.0
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


class BackboneSettings(Section):
    """The backbone and its size; a method's own `model` section adds to these."""

    backbone: str = "alexnet"
    """Name of the backbone (`fastssl.backbones`); `timm:NAME` is a model of timm, from the extra `timm`."""
    frozen: str = "none"
    """Layer of the backbone that is not trained, with all below it: weights and statistics stay; none = all learn."""
    width: Annotated[float, Field(gt=0, le=64)] = 1.0
    """Multiplies the channels of the backbone's convolutions and of the discriminator; 1 is the published network.
    A model of timm has the channels that its name says."""
    fc_channels: Channels = 4096
    """Channels of the layers that stand for fully connected ones, where the backbone has any."""
    init: Literal["xavier", "kraehenbuehl"] = "xavier"
    """`kraehenbuehl` draws the backbone's weights by the first images of the training
    (`fastssl.layers.initialise_by_data`); it must consist of convolutions and batch norms."""
    init_gain: Positive = 0.02
    """Gain of the Xavier normal initialisation of every convolution; models of timm have timm's own initialisation."""


class OptimSettings(Section):
    """Learning rate and schedule; a method's own `optim` section adds to these."""

    lr: Positive = 1e-3
    schedule: Literal["drops", "cosine", "constant"] = "drops"
    drop_at: tuple[Fraction, ...] = (0.6, 0.9)
    """Fractions of the run after which each learning rate is multiplied by `drop_factor`."""
    drop_factor: Fraction = 0.1
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which each learning rate grows linearly to what the schedule says."""
    clip_norm: NonNegative = 0.0
    """Longest gradient of all weights that one optimizer has; a longer one is shortened to it. 0 = none is."""
    average_decay: BelowOne = 0.0
    """Decay of a running mean of all weights, which evaluations and exports then take; 0 = the weights themselves."""
    backend: Literal["fused", "foreach", "apex"] = "fused"
    """Form of the optimizers: torch's fused ones, torch's others, or those of NVIDIA apex, on a GPU where it is
    installed."""


class TrainConfig(Section):
    """Length of the run and what it leaves behind."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the samples of the method's first domain: rendered images, or photos where it reads these alone.
    `steps` takes precedence."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Steps in all; 0 = as `epochs` says."""
    init_from: str = ""
    """Run, or checkpoint of one, with whose networks this run begins, as far as it has them. Empty = fresh ones."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches of each domain in a step, whose gradients are averaged; batch norms see each by itself."""
    amp: bool = False
    """Mixed precision."""
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """float16 trains with a gradient scaler."""
    channels_last: AutoBool = "auto"
    """Memory layout of networks and images; auto = the faster one, which for wide networks on a CPU is the other."""
    sync_batch_norm: bool = False
    """Batch norms see the images of all ranks together, on GPUs; otherwise each rank's see its own."""
    compile: bool = False
    """Let `torch.compile` make kernels of the networks, where the machine has what it needs; the first step then takes
    a minute or more."""
    tf32: bool = True
    streams: bool = False
    """Run D's update on a CUDA stream of its own, bit for bit as beside B's; nobody has measured yet where it helps
    (`fastssl bench step`)."""
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
    validate_every: Annotated[int, Field(ge=0)] = 1000
    """Steps between two validations, where there are held-out data; one more comes at the end. 0 = never."""
    best_by: str = "none"
    """Metric of the validation, such as tasks/depth/abs_rel or probe/knn; `checkpoints/best.pt`, beside the others, has
    its best value so far."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Where the numbers of `metrics.jsonl` are also shown: tensorboard, wandb, mlflow."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Decoding threads of the loader; 0 = as many as there are cores."""
    prefetch: Annotated[int, Field(ge=1, le=256)] = 2
    """Batches of each domain that are made ahead of need."""
    load_on: Literal["auto", "cpu", "gpu"] = "auto"
    """Who makes the batches of a GPU: the CPU's threads, or the GPU, which decodes, augments and makes targets. `auto`
    tries both for some seconds when the run begins, and takes the faster one. It takes the CPU without trying where the
    run is to be deterministic, and the GPU where `hw_decoder_load` is a number."""
    hw_decoder_load: DecoderLoad = "auto"
    """Fraction of the images that a GPU's JPEG engine decodes, where the GPU makes the batches; 0 leaves it out. `auto`
    tries some, and takes the fastest, or 0 where images were found overwritten or the run is to be deterministic; a
    number is taken as it is."""


class Config(Section):
    """Settings that every run has. A method's own class adds its sections, and says what is in `model` and `optim`."""

    preset: str = "paper"
    method: str
    """Name of the method (`fastssl.methods`)."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: BackboneSettings = BackboneSettings()
    optim: OptimSettings = OptimSettings()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _begins_in_one_way(self) -> Self:
        if self.train.init_from and self.model.init != "xavier":
            raise ValueError(
                f"a run with train.init_from={self.train.init_from} has the weights of that run, so model.init="
                f"{self.model.init} would draw others; leave one of them out"
            )
        return self


Preset = Mapping[str, Mapping[str, Any]]
"""Settings that differ from the defaults, by section and name."""
C = TypeVar("C", bound=Config)
S = TypeVar("S", bound=Section)


def compose(
    schema: type[C],
    presets: Mapping[str, Preset],
    preset: str,
    *,
    file: Mapping[str, Any],
    file_name: str,
    overrides: Iterable[str] = (),
    settings: Preset | None = None,
) -> C:
    """Compose a configuration from its layers, of which a later one wins.

    Args:
        schema: the method's class of settings.
        presets: the method's, by name.
        preset: name of one of them.
        file: what a file of settings holds, by section, and its name for messages.
        overrides: each ``section.key=value``, the value in YAML; of two for one key the later counts.
        settings: by section and name, as they are.

    Paths of datasets become absolute, and ``~`` the home folder.

    Raises:
        ConfigError: an unknown preset, section or key (the nearest name is offered), or a value of another type or
            outside its range.
    """
    if preset not in presets:
        raise ConfigError("there is no such preset", seen=shown(preset), expected=nearest(str(preset), presets))
    values: dict[str, Any] = {name: dict(section) for name, section in presets[preset].items()}
    _merge(values, file, where=file_name)
    of_file = deepcopy(values)
    for override in overrides:
        _merge(values, _parse_override(override), where=f"--set {override}")
    _merge(values, settings or {}, where="settings")
    try:
        return validated(schema, {"preset": preset, **values})
    except ConfigError as error:
        own = _fault(schema, {"preset": preset, **of_file}, file_name) if file else None
        is_own = own is not None and own.where in (file_name, f"{file_name}: {error.where}")
        if own is not None and is_own and (own.what, own.seen) == (error.what, error.seen):
            raise own from None  # with the file's name
        raise


def _fault(schema: type[Config], values: Mapping[str, Any], file_name: str) -> ConfigError | None:
    """The error of a file's settings by themselves; None where they have none."""
    try:
        validated(schema, values, where=file_name)
    except ConfigError as error:
        return error
    return None


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
                hint=f"give another weight; a folder of the name {text!r} does not exist",
            )
        path = dataset_path(path)
        if path in weights:
            raise ConfigError("a dataset is given twice", where=path, hint="give it once, with its weight")
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


RUN_CURE = "write the missing settings in as the run had them (each checkpoint holds them too), or train anew"


def check_complete(values: Mapping[str, Any], config: Config, path: Path) -> None:
    """Refuse settings of a run of which some are missing: a default in their place would be another run.

    Args:
        values: what the run's file holds.
        config: what became of it.
        path: of the file.

    Raises:
        DataError: see above.
    """
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
            hint=RUN_CURE,
        )


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


def read_yaml(
    path: Path, kind: str = "configuration file", expected: str = "sections such as optim, with settings"
) -> dict[str, Any]:
    """The settings in a file of YAML, as `fastssl.core_yaml` reads it, by section.

    Args:
        path: of the file.
        kind: what it is to be, for messages.
        expected: what is to be in it.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds no mapping.
    """
    with machine_faults_named(path):
        try:
            with path.open("rb") as file:  # perhaps a pipe, as of a shell's <(...)
                content = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"the {kind} cannot be read", where=path, seen=error.strerror) from error
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"the {kind} is too large to be one", where=path, expected=f"at most {_MOST_BYTES:,} bytes")
    try:
        values = core_yaml.parse(content)
    except core_yaml.CoreYamlError as error:
        raise ConfigError(
            f"the {kind} is not valid YAML",
            where=path if error.line is None else f"{path}, line {error.line}",
            seen=error.words,
            expected="one document of YAML 1.2, each key once",
        ) from error
    if values is None:
        words = "is empty" if not content.strip() else "holds no settings"
        raise ConfigError(f"the {kind} {words}", where=path, expected=expected)
    if not isinstance(values, dict):
        raise ConfigError(f"the {kind} holds no mapping", where=path, seen=values, expected=expected)
    return values


_DATASETS = ("synthetic", "real", "validation_synthetic", "validation_real")


def _parse_override(text: str) -> dict[str, Any]:
    name, separator, value = text.partition("=")
    parts = name.strip().split(".")
    if not separator or len(parts) != 2 or not all(parts):
        raise ConfigError(
            "an override must read section.key=value", where="--set", seen=text, expected="such as optim.lr=0.001"
        )
    if parts[0] == "data" and parts[1] in _DATASETS and _is_there(dataset_path(value)) and value:
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
                "a section must be a mapping of settings", where=f"{where}: {section}", seen=shown(settings)
            )
        values.setdefault(section, {}).update(settings)


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "string_type": "text",
    "tuple_type": "a list, such as [0.6, 0.9], [depth, edge] or [tensorboard]",
    "model_type": "a mapping of settings",
    "dict_type": "a mapping of settings",
    "missing": "a value; it has none by default",
}


def shown(value: object) -> str:
    """A value for a message, so that text is told from a number, and nothing from text."""
    return "nothing (null)" if value is None else repr(value)


def validated(schema: type[S], values: Mapping[str, Any], where: Path | str | None = None) -> S:
    """Settings as the schema has them.

    Raises:
        ConfigError: an unknown name, or a value of another type or outside its range.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
        # What is misspelt comes first: it may well be what is missing.
        error = min(errors, key=lambda one: one["type"] != "extra_forbidden")
        *parents, last = error["loc"] or ("",)
        is_too_short = error["type"] == "missing" and isinstance(last, int)  # a list
        name = ".".join(map(str, parents if is_too_short else error["loc"]))
        place = ": ".join(str(part) for part in (where, name) if part) or None
        if error["type"] == "extra_forbidden":
            known = _known_names(schema, error["loc"][:-1])
            raise ConfigError(
                "there is no such setting",
                where=place,
                seen=error["loc"][-1],
                expected=nearest(str(error["loc"][-1]), known),
            ) from None
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "value_error":
            raise ConfigError(message, where=where) from None
        expected = _EXPECTED.get(error["type"], message)
        if is_too_short or error["type"] == "too_long":
            missing = sum(one["type"] == "missing" and one["loc"][:-1] == tuple(parents) for one in errors)
            length = len(error["input"]) + missing if is_too_short else error["ctx"]["max_length"]
            expected = f"{length} values"
        raise ConfigError(
            "a setting has a value that it cannot take", where=place, seen=shown(error["input"]), expected=expected
        ) from None


def _known_names(schema: type[BaseModel], section: tuple[int | str, ...]) -> list[str]:
    model = schema
    for part in section:
        inner = model.model_fields[str(part)].annotation
        assert isinstance(inner, type)
        assert issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names for an error's `expected`, the one that is most like the name first."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    names = ", ".join(known)
    return f"{close[0]!r}? All names here: {names}" if close else f"one of: {names}"
