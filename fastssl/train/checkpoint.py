"""Checkpoints: all that the next step depends on, in files that are complete or absent."""

from __future__ import annotations

import errno
import logging
import re
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from fastssl.addresses import masked
from fastssl.config import Config, plain
from fastssl.errors import CheckpointError, ConfigError, DataError, FastsslError, MachineError, UsageError
from fastssl.faults import is_gone, machine_faults_named
from fastssl.files import PARTIAL, complete_or_absent, open_regular
from fastssl.methods import Method, measured_method, read_config
from fastssl.telemetry import CONTINUE
from fastssl.train.average import load_average

log = logging.getLogger(__name__)

T = TypeVar("T")

FORMAT = 3
BEST = "best.pt"
"""Name of the checkpoint with the best validation; `--resume` does not look at it."""
_NAME = re.compile(r"step_(\d+)\.pt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """All that a training depends on after a step, besides its settings and datasets."""

    step: int
    """Steps made so far."""
    positions: Mapping[str, int]
    """The next position of each domain's endless sequence: how many samples all ranks together have taken."""
    state: dict[str, Any]
    """What all ranks have in common: the method's `state_dict`, under `context` that of the context, and under
    `average` the mean of the weights, where one is kept."""
    ranks: list[Any]
    """`Method.rank_state_dict` of each rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """A validation that no other of the run was better than."""

    name: str
    """Of the metric."""
    value: float
    step: int
    data: Mapping[str, str]
    """Fingerprint of the held-out datasets of each domain."""


def write_checkpoint(run: Path, moment: Moment, config: Config, data: dict[str, str]) -> Path:
    """Write `checkpoints/step_XXXXXXXX.pt` under its final name only when it is complete, then remove old ones.

    The newest `train.keep_checkpoints` are kept, and those of steps that are multiples of `train.keep_every`.

    Args:
        run: the run folder.
        moment: where the training stands.
        config: of the run.
        data: fingerprint of each domain's datasets. With the positions it is all that the order of the samples and
            their views depend on.

    Raises:
        MachineError: the disk is full, or the like; the checkpoints that were there are still there.
    """
    path = run / "checkpoints" / f"step_{moment.step:08d}.pt"
    _write(path, moment, config, data)
    with machine_faults_named(path, hint=CONTINUE):
        _remove_old(path.parent, config)
    return path


def write_best(run: Path, moment: Moment, config: Config, data: dict[str, str], best: Best) -> Path:
    """Write `checkpoints/best.pt`; the one before stays until this one is complete.

    Args:
        run, moment, config, data: as for `write_checkpoint`.
        best: the validation of this moment.

    Raises:
        MachineError: as `write_checkpoint`; the best one before is still there.
    """
    path = run / "checkpoints" / BEST
    _write(path, moment, config, data, best=asdict(best))
    return path


def _write(path: Path, moment: Moment, config: Config, data: dict[str, str], **more: object) -> None:
    content = {"format": FORMAT, "step": moment.step, "config": plain(config), "data": data}
    content |= {"positions": dict(moment.positions), "state": moment.state, "ranks": moment.ranks}
    content |= {"threads": torch.get_num_threads(), **more}
    with machine_faults_named(path, hint=CONTINUE):
        path.parent.mkdir(exist_ok=True)
        with complete_or_absent(path) as file:
            _save(content, file)


def read_best(run: Path, config: Config, data: Mapping[str, str]) -> Best | None:
    """The validation that a run's best checkpoint was kept for.

    None where there is none, or it is damaged, or was measured by another metric or on other data than now: the first
    validation is the best one then, and the log says so.

    Args:
        run: the run folder.
        config: of the run.
        data: fingerprints of the held-out datasets.
    """
    path = run / "checkpoints" / BEST
    if not path.exists():
        return None
    try:
        best = Best(**read_checkpoint(path, config)["best"])
    except (DataError, CheckpointError) as error:
        log.warning("%s is not compared with: %s (%s)", path, error.what, error.seen)
        return None
    if (best.name, dict(best.data)) != (config.train.best_by, dict(data)):
        log.info("%s was the best by %s, or on other data: the next validation replaces it", path, best.name)
        return None
    return best


class CheckpointWriter:
    """Writes checkpoints beside the training, one at a time.

    The state is copied when a checkpoint is begun, and the training goes on while a thread writes the copy. One that
    could not be written costs nothing but itself: a warning says why, and the next one is tried.

    Args:
        run: the run folder.
        config: of the run.
        data: as for `write_checkpoint`.
        best: what `read_best` found.
    """

    def __init__(self, run: Path, config: Config, data: dict[str, str], best: Best | None = None) -> None:
        self._run, self._config, self._data = run, config, data
        self._best = best
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    @property
    def best(self) -> Best | None:
        """The validation of the best checkpoint that is complete; waits for one that is being written."""
        self._wait()
        return self._best

    def begin(self, moment: Moment, *, regular: bool = True, best: Best | None = None) -> None:
        """Write where the training stands; waits for the one before, if that is still being written.

        Args:
            moment: is copied before this returns.
            regular: as one of those to continue from.
            best: as the best one, for this validation.
        """
        self._wait()
        moment = replace(moment, state=copied(moment.state))
        self._writing = self._thread.submit(self._write, moment, regular, best)

    def _write(self, moment: Moment, regular: bool, best: Best | None) -> None:
        if regular:
            write_checkpoint(self._run, moment, self._config, self._data)
        if best is not None:
            write_best(self._run, moment, self._config, self._data, best)
            self._best = best

    def finish(self) -> None:
        """Wait for the last one.

        Raises:
            MachineError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let the thread end; what it writes is written."""
        self._thread.shutdown()

    def _wait(self) -> None:
        try:
            self.finish()
        except MachineError as error:
            log.warning("a checkpoint could not be written, and the training goes on: %s (%s: %s)",
                        error.what, error.where, error.seen)  # fmt: skip


def copied(value: Any) -> Any:
    """A state whose tensors are copies on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {name: copied(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(part) for part in value)
    return value


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, whose own words for a full disk ("unexpected pos") do not always tell of the system's error."""
    watched = _Watched(file)
    try:
        torch.save(content, watched)  # type: ignore[arg-type]  # `write` is all that it calls
    except RuntimeError as error:
        if watched.fault is not None:
            raise watched.fault from error
        raise


class _Watched:
    """A file that remembers which of the system's errors it met first."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.fault: OSError | None = None

    def write(self, content: bytes) -> int:
        return self._watched(lambda: self._file.write(content))

    def flush(self) -> None:
        self._watched(self._file.flush)

    def _watched(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            self.fault = self.fault or error
            raise


def _remove_old(folder: Path, config: Config) -> None:
    settings = config.train
    for step, path in _checkpoints(folder)[: -settings.keep_checkpoints]:
        if not (settings.keep_every and step % settings.keep_every == 0):
            path.unlink(missing_ok=True)
    for path in folder.glob(f"*{PARTIAL}"):  # of processes that were killed
        path.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Steps and files, oldest first."""
    with machine_faults_named(folder):
        try:
            paths = list(folder.iterdir())
        except FileNotFoundError:
            return []
    named = ((_NAME.fullmatch(path.name), path) for path in paths)
    return sorted((int(match[1]), path) for match, path in named if match is not None)


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the most steps; None if the run has none yet.

    Raises:
        DataError: the folder is no run.
    """
    if not (run / "config.yaml").is_file():
        raise DataError(
            "the folder holds no run", where=run, expected="a config.yaml", hint="give the --out of a training"
        )
    paths = _checkpoints(run / "checkpoints")
    return paths[-1][1] if paths else None


def named_checkpoint(run: Path, name: str) -> Path:
    """A checkpoint of a run by its name there: ``best``, or the number of its step.

    Raises:
        UsageError: the run has no such checkpoint; those that it has are named. Or the run is a checkpoint already.
        DataError: the folder is no run.
    """
    if run.is_file():
        what = "a checkpoint is named twice"
        raise UsageError(what, where=run, seen=name, hint=f"give {run} alone, or its run with the checkpoint's name")
    latest_checkpoint(run)  # refuses what is no run
    folder = run / "checkpoints"
    path = folder / (f"step_{int(name):08d}.pt" if name.isascii() and name.isdecimal() else f"{name}.pt")
    if not path.is_file():
        known = [Path(BEST).stem] if (folder / BEST).is_file() else []
        known += [str(step) for step, _ in _checkpoints(folder)]
        expected = ", ".join(known) or "none, it has no checkpoint yet"
        raise UsageError("the run has no such checkpoint", where=folder, seen=name, expected=expected)
    return path


def checkpoint_before(run: Path, step: int) -> Path | None:
    """The newest checkpoint of fewer steps, sound or not; None if there is none."""
    return next((path for made, path in reversed(_checkpoints(run / "checkpoints")) if made < step), None)


def read_checkpoint(path: Path, config: Config) -> dict[str, Any]:
    """Read a checkpoint as a mapping with the fields of `Moment`, tensors on the CPU.

    Raises:
        DataError: the file is damaged.
        MachineError: the system cannot read it.
        CheckpointError: it belongs to another architecture than `config`, or to another version of the format.
    """
    with machine_faults_named(path):
        try:
            with open_regular(path) as file:
                _check_bytes(file)
                content = torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            if not is_gone(error):
                raise
            what = "the checkpoint cannot be read"
            raise DataError(what, where=path, seen=error.strerror, hint=_instead_of(path)) from error
        except Exception as error:  # whatever the bytes of a damaged file lead torch to
            raise DataError(
                "the checkpoint is damaged, as after a power cut",
                where=path,
                seen=f"{path.stat().st_size:,} bytes, {_torch_words(path, error)}",
                hint=_instead_of(path),
            ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError("the file is not a checkpoint of this version", where=path, expected=f"format {FORMAT}")
    stored, wanted = content["config"]["model"], plain(config)["model"]
    different = [name for name in wanted if stored.get(name) != wanted[name]]
    if different:
        raise CheckpointError(
            "the checkpoint is of another architecture",
            where=path,
            seen=", ".join(f"model.{name} = {stored.get(name)}" for name in different),
            expected=", ".join(f"{wanted[name]}" for name in different),
            hint="use the settings that the run was trained with",
        )
    return content


def newest_sound_checkpoint(run: Path, config: Config) -> dict[str, Any] | None:
    """The content of the newest checkpoint that can be read; a warning names each that cannot.

    Returns:
        As `read_checkpoint`; None if the run has no checkpoint yet.

    Raises:
        DataError: the folder is no run, or has checkpoints and none of them is sound.
        CheckpointError, MachineError: as `read_checkpoint`.
    """
    if latest_checkpoint(run) is None:
        return None
    *older, newest = [path for _, path in _checkpoints(run / "checkpoints")]
    for path in (newest, *reversed(older)):
        try:
            return read_checkpoint(path, config)
        except DataError as error:
            if path == (older[0] if older else newest):
                raise
            log.warning("%s is passed over: %s (%s)", path, error.what, error.seen)
    raise AssertionError("the last one was read, or its error raised")


def _check_bytes(file: BinaryIO) -> None:
    """Compare all records with their checksums, which torch writes and does not look at."""
    damaged = _damaged_record(file)
    if damaged is not None:
        raise ValueError(f"{damaged} differs from its checksum")
    file.seek(0)


def _damaged_record(file: BinaryIO) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        return "a record's place"


def _torch_words(path: Path, error: Exception) -> str:
    if not zipfile.is_zipfile(path):  # torch would advise to load it without its safeguards
        return "which are no archive of torch"
    return str(error).splitlines()[0] if str(error) else repr(error)


def _instead_of(path: Path) -> str:
    if path.name == BEST:
        return "measure the run itself, which is as its newest checkpoint has it"
    before = [other for _, other in _checkpoints(path.parent) if other.name < path.name]
    if not before:
        cure = "remove all, and --resume begins the run from the start"
        return f"there is none before it; unless a later one is sound, {cure}"
    return f"remove it, and --resume continues from {before[-1].name}, if that is sound"


@dataclass(frozen=True)
class Trained:
    """What a run has learnt."""

    method: Method
    """As it stands at the checkpoint, in evaluation mode on the CPU; with the mean of its weights, if the run keeps one
    (`optim.average_decay`)."""
    config: Config
    run: Path
    fingerprints: Mapping[str, str]
    """Fingerprint of the datasets of each domain that it was trained on."""
    step: int
    """Steps made up to the checkpoint."""


def load_trained(subject: Path) -> Trained:
    """Load a run's last checkpoint, or the one that is named.

    Args:
        subject: the run folder, or one of its checkpoints, such as ``RUN/checkpoints/best.pt``.

    Raises:
        DataError: there is no run, no checkpoint, or a damaged one.
    """
    is_named = subject.is_file()
    run = subject.absolute().parent.parent if is_named else subject
    if is_named and not (run / "config.yaml").is_file():
        raise DataError(
            "the file is no checkpoint of a run",
            where=subject,
            expected="a run folder, or a file in its `checkpoints`",
            hint="give the --out of a training",
        )
    path = latest_checkpoint(run)
    if path is None and not is_named:
        raise DataError(
            "the run has no checkpoint yet",
            where=run / "checkpoints",
            hint=f"train it first: fastssl train --out {run} --resume",
        )
    config = read_config(run / "config.yaml")
    content = read_checkpoint(subject if is_named or path is None else path, config)
    method = measured_method(config)
    method.load_state_dict(content["state"])
    if "average" in content["state"]:
        load_average(method.networks, content["state"]["average"])
    method.networks.eval()
    return Trained(method, config, run, content["data"], content["step"])


def begin_with(method: Method, subject: Path) -> None:
    """Give a method's networks the weights and statistics of the parts of the same name that a run has trained.

    Args:
        subject: as that of `load_trained`.

    Raises:
        DataError: see `load_trained`.
        ConfigError: no part has the same name, or one has another shape.
    """
    trained = dict(load_trained(subject).method.networks.named_children())
    parts = {name: part for name, part in method.networks.named_children() if name in trained}
    for name, part in parts.items():
        try:
            part.load_state_dict(trained[name].state_dict())
        except RuntimeError as error:
            raise ConfigError(
                f"the {name} of that run is not the {name} of this one",
                where="train.init_from",
                seen=str(subject),
                expected="a run with the same settings in `model`",
                hint=str(error).splitlines()[1].strip(),
            ) from error
    if not parts:
        raise ConfigError(
            "that run has trained none of the networks of this one",
            where="train.init_from",
            seen=f"{subject} has {', '.join(trained)}",
            expected=", ".join(name for name, _ in method.networks.named_children()),
        )


def check_data(
    before: Mapping[str, str], now: Mapping[str, str], config: Config, error: type[FastsslError] = CheckpointError
) -> None:
    """Compare the fingerprints of a run's datasets with those that it was trained on.

    Raises:
        CheckpointError: they are others; or the error that is asked for.
    """
    for domain, fingerprint in now.items():
        if before.get(domain, "") != fingerprint:
            raise error(
                f"the {domain} data are not those that the run was trained on",
                where=", ".join(map(masked, getattr(config.data, domain))),
                hint="put back the dataset as it was, or begin a new run",
            )
