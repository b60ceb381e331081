"""A training from settings to files: opens the data, prepares the run folder, trains, or continues a run."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastssl.affinity import bind_to_gpu
from fastssl.config import Config, Preset, plain, write_config
from fastssl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    FastsslError,
    MachineError,
    NonFiniteLossError,
    UsageError,
)
from fastssl.faults import machine_fault, machine_faults_named
from fastssl.files import PARTIAL, alone_in
from fastssl.loader import Batches, Domain, LoaderOptions, check_input_size, training_domains
from fastssl.loader.calibration import calibrated
from fastssl.methods import Method, StepContext, find_method, load_config, read_config
from fastssl.ranks import Ranks, joined
from fastssl.telemetry import CONTINUE, Advance, merge_summary, read_summary
from fastssl.trackers import check_trackers
from fastssl.train.beginning import begun_method
from fastssl.train.checkpoint import (
    begin_with,
    check_data,
    checkpoint_before,
    latest_checkpoint,
    newest_sound_checkpoint,
)
from fastssl.train.estimate import check_memory, empty_method, estimate
from fastssl.train.failure import Failure, batches_at, failure_path, write_failure
from fastssl.train.profile import Trace
from fastssl.train.stop import Stopped, StopSignals
from fastssl.train.trainer import Start, Trainer
from fastssl.train.validation import Validation, open_validation, validation_summary

log = logging.getLogger(__name__)


MAY_CHANGE = {
    "data": ("synthetic", "real", "validation_synthetic", "validation_real", "max_bad", "paranoid"),
    "train": (
        *("epochs", "steps", "log_every", "picture_every", "checkpoint_every", "keep_checkpoints", "keep_every"),
        *("threads", "prefetch", "load_on", "hw_decoder_load", "streams", "validate_every", "best_by", "trackers"),
    ),
}
"""Settings, by section, that a run may be continued with others of; training datasets are compared by fingerprint then.
Held-out ones may be others: what was the best on those before is no longer compared with."""


def start_run(config: Config, run: Path, advance: Advance, *, profile: bool = False) -> None:
    """Train from the beginning into an empty or new folder.

    Args:
        config: the settings.
        run: the run folder.
        advance: is told how far it is.
        profile: leave a trace of some steps (`fastssl.train.profile`).

    Raises:
        UsageError: the folder holds something, or another training works on it.
        DataError: a dataset is missing, damaged, or of the wrong domain.
        ConfigError: a setting does not fit the data.
        MachineError: the folder cannot be made, a disk is full, or the like; `resume_run` continues the run.
        Stopped: a signal asked for it; `resume_run` continues the run.
    """
    stop = StopSignals()
    with stop.watched(), _joined(config) as ranks:
        if ranks.leads:
            _check_unused(run)
        _train(config, run, None, advance, stop, ranks, profile=profile)


def resume_run(
    run: Path,
    advance: Advance,
    *,
    overrides: Sequence[str] = (),
    settings: Preset | None = None,
    profile: bool = False,
) -> None:
    """Continue a run from its newest sound checkpoint, or begin it again if it has none.

    The steps that follow are the very steps that an undisturbed run would have made; on a CPU bit for bit if torch has
    as many threads as before (OMP_NUM_THREADS).

    Args:
        run: the run folder.
        advance: is told how far it is.
        overrides: settings that change from here on, each ``section.key=value``; only those of `MAY_CHANGE` may.
        settings: the same by section and name.
        profile: leave a trace of some steps (`fastssl.train.profile`).

    Raises:
        DataError: there is no run, or none of its checkpoints is sound.
        ConfigError: a setting cannot change, or has a value that it cannot take.
        CheckpointError: the checkpoint is of another architecture or of other data, or no step is left to make.
        UsageError: another training works on the folder.
        MachineError, Stopped: as `start_run`.
    """
    latest_checkpoint(run)  # tells a folder that is no run from one that is
    stop = StopSignals()
    config = _changed(run, read_config(run / "config.yaml"), overrides, settings or {})
    with stop.watched(), _joined(config) as ranks, _alone(run) if ranks.leads else nullcontext():
        content = newest_sound_checkpoint(run, config)
        if content is None and ranks.leads:
            log.info("%s has no checkpoint yet: it begins from the start, with its own settings", run)
        _train(config, run, content, advance, stop, ranks, profile=profile)


def complete_run(config: Config, run: Path, advance: Advance) -> None:
    """Train to the last step: from the beginning, or from where an earlier call ended; nothing where that is done.

    Args:
        config: the settings, which count where the run was not begun.
        run: the run folder.
        advance: is told how far it is.

    Raises:
        As `start_run` and `resume_run`.
    """
    if is_finished(run):
        return
    if (run / "config.yaml").exists():
        resume_run(run, advance)
    else:
        start_run(config, run, advance)


def is_finished(run: Path) -> bool:
    """A run made all of its steps: its summary says so, and the checkpoint of the last one is there.

    Raises:
        DataError: its summary cannot be read.
    """
    ended = read_summary(run).get("ended") or {}
    if ended.get("how") != "finished" or not (run / "config.yaml").is_file():
        return False
    newest = latest_checkpoint(run)  # the last thing that a training writes
    return newest is not None and newest.stem == f"step_{ended['step']:08d}"


def dry_run(config: Config, run: Path, *, world_size: int = 1) -> dict[str, Any]:
    """What a training from the beginning would take (`fastssl.train.estimate.estimate`); nothing is written.

    Whatever refuses the training refuses this. Images that are packed too small alone are told under `refused`, beside
    the estimate, since the work does not depend on them.

    Raises:
        UsageError, DataError, ConfigError, MachineError: as `start_run`.
    """
    _check_unused(run)
    with _alone(run) if run.exists() else nullcontext():
        configure_torch(config)
        domains = _opened(config, resumed=False, any_size=True)
        options = loader_options(config, run_device())
        check_trackers(config.train.trackers)
        check_memory(config, domains, options)
        open_validation(empty_method(config), config, options)
        if config.train.init_from:
            method = find_method(config.method)(config, StepContext(config, torch.device("cpu")))
            begin_with(method, Path(config.train.init_from))
        _warn_of_copies(domains, world_size)
        start = Start(step=0, positions=dict.fromkeys(domains, 0))
        steps = _total_steps(next(iter(domains.values())), start, world_size)
        _warn_of_warm_up(config, steps)
        refused = None
        try:
            for domain in domains.values():
                check_input_size(domain, ConfigError, "pack them larger, or lower data.size")
        except ConfigError as error:
            refused = str(error)
        return {"refused": refused, **estimate(config, domains, options, steps, world_size)}


@contextmanager
def _joined(config: Config) -> Iterator[Ranks]:
    """The ranks of the training, all with the same settings."""
    with joined("cuda" if torch.cuda.is_available() else "cpu") as ranks:
        if not ranks.same(repr(plain(config))):
            raise UsageError("the ranks were begun with different settings", hint="give all of them the same command")
        yield ranks


def _changed(run: Path, config: Config, overrides: Sequence[str], settings: Preset) -> Config:
    """The run's settings with those that are to change; a run's file names its preset and its method."""
    if not overrides and not any(settings.values()):
        return config
    changed: Config = load_config(file=run / "config.yaml", overrides=overrides, settings=settings)
    before, after = plain(config), plain(changed)
    for section, values in after.items():
        names = values if isinstance(values, dict) else {}
        for name in names:
            if names[name] != before[section][name] and name not in MAY_CHANGE.get(section, ()):
                raise ConfigError(
                    "a run cannot be continued with another value of this setting",
                    where=f"{section}.{name}",
                    seen=names[name],
                    expected=before[section][name],
                    hint="begin another run; these may change: "
                    + ", ".join(f"{part}.{other}" for part, others in MAY_CHANGE.items() for other in others),
                )
    return changed


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """The only training in a run folder, which is made if it is not there."""
    with ExitStack() as stack:
        try:
            stack.enter_context(alone_in(run, "training"))
        except OSError as error:
            raise MachineError(
                "the run folder cannot be made", where=run, seen=error.strerror, hint="give another --out"
            ) from error
        yield


def _check_unused(run: Path) -> None:
    with machine_faults_named(run):
        try:
            names = {path.name for path in run.iterdir() if not path.name.endswith(PARTIAL)}
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise UsageError("the output is a file", where=run, hint="give another --out") from error
    if not names:
        return
    if "checkpoints" in names and "config.yaml" not in names:
        raise UsageError(
            "the folder holds checkpoints and not the settings of their run",
            where=run,
            expected="config.yaml",
            hint="put it back (each checkpoint holds the settings too), or give another --out",
        )
    if "config.yaml" in names and latest_checkpoint(run) is None:
        raise UsageError(
            "the folder holds a run that has no checkpoint yet",
            where=run,
            hint="begin it again from the start, with its own settings, by --out and --resume alone; "
            "or remove the folder, or give another --out",
        )
    raise UsageError(
        "the output folder is not empty", where=run, hint="give another --out, or --resume to continue the run"
    )


@contextmanager
def _prepared(config: Config, run: Path, *, new: bool) -> Iterator[None]:
    """The run folder with its settings, and nobody else at work on it."""
    with _alone(run) if new else nullcontext():
        if new:
            _check_unused(run)  # it may have been used since
        with machine_faults_named(run, hint=CONTINUE):
            for left in run.glob(f"*{PARTIAL}"):
                left.unlink()  # of a process that was killed while it wrote
        path = run / "config.yaml"
        if new or read_config(path) != config:
            with machine_faults_named(path, hint="then train again"):
                write_config(config, path)
        yield


def run_device(local_rank: int | None = None) -> torch.device:
    """The GPU where there is one, else the CPU; among several ranks on a machine, each has its own.

    Raises:
        DeviceError: there are fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda", torch.cuda.current_device())
    if torch.cuda.device_count() == 1 and "SLURM_LOCALID" in os.environ:
        local_rank = 0  # Slurm lets each task see its own GPU alone
    if local_rank >= torch.cuda.device_count():
        raise DeviceError(
            "there are fewer GPUs than ranks on this machine",
            seen=f"rank {local_rank} of this machine, {torch.cuda.device_count()} GPUs",
            hint="give fewer --gpus",
        )
    torch.cuda.set_device(local_rank)
    bind_to_gpu(local_rank)
    return torch.device("cuda", local_rank)


def _check_alike(ranks: Ranks, fingerprints: Mapping[str, str], start: Start, total_steps: int) -> None:
    """Refuse ranks that read other data or begin elsewhere, as machines with copies of their own may.

    Raises:
        UsageError: see above.
    """
    if not ranks.same(repr((sorted(fingerprints.items()), start, total_steps))):
        data = ", ".join(f"{name} {fingerprint}" for name, fingerprint in fingerprints.items())
        raise UsageError(
            "the ranks have different datasets, or begin at different steps",
            seen=f"on rank {ranks.rank} steps {start.step + 1} to {total_steps} on {data}",
            hint="give all machines the same datasets and the same run folder",
        )


def _train(
    config: Config,
    run: Path,
    content: dict[str, Any] | None,
    advance: Advance,
    stop: StopSignals,
    ranks: Ranks,
    *,
    profile: bool,
) -> None:
    check_trackers(config.train.trackers)
    configure_torch(config)
    device = run_device(ranks.local_rank if ranks.world_size > 1 else None)
    ranks.average([torch.zeros(1, device=device)])  # GPUs that do not reach each other are told before all else
    context = StepContext(config, device, ranks)
    domains = _opened(config, resumed=content is not None)
    check_memory(config, domains, loader_options(config, device))
    if ranks.leads:
        _warn_of_copies(domains, ranks.world_size)
    method = begun_method(config, context, domains, loader_options(config, device), resumed=content is not None)
    fingerprints: dict[str, str] = {name: domain.fingerprint for name, domain in domains.items()}
    validation = _validation(method, config, fingerprints, context, resumed=content is not None)
    start = Start(step=0, positions=dict.fromkeys(domains, 0))
    if content is not None:
        check_data(content["data"], fingerprints, config)
        start = Start(step=content["step"], positions=content["positions"])
    main = next(iter(domains.values()))
    total_steps = _total_steps(main, start, ranks.world_size)
    _check_alike(ranks, fingerprints, start, total_steps)
    _check_unfinished(run, start.step, total_steps)
    if ranks.leads:
        _warn_of_warm_up(config, total_steps)
    trainer = Trainer(method, context, config, run, total_steps, fingerprints, validation)
    if content is not None:
        trainer.restore(content)
    options = calibrated_options(main, device)
    with ExitStack() as stack:
        # Not before: a start that fails leaves nothing behind.
        if ranks.leads:
            stack.enter_context(_prepared(config, run, new=content is None and not (run / "config.yaml").exists()))
        place = {"rank": ranks.rank, "world_size": ranks.world_size}
        batches: dict[str, Batches] = {
            name: stack.enter_context(domain.training_batches(options, position=start.positions[name], **place))
            for name, domain in domains.items()
        }

        def damaged() -> dict[str, object]:
            return {name: domain.damaged() for name, domain in batches.items()}

        def summarise(summary: dict[str, object]) -> None:
            ended = {"how": "finished", "why": "", "step": total_steps}
            sections = {
                "steps": total_steps,
                **summary,
                **validation_summary(run),
                "damaged_samples": damaged(),
                "ended": ended,
            }
            if device.type == "cuda":
                sections |= {"load_on": options.load_on, "hw_decoder_load": options.hw_decoder_load}
            merge_summary(run, sections)

        if profile and ranks.leads:
            trace = Trace(run, start.step, total_steps)
            stack.callback(trace.close)
            trainer.around = trace.step
        failures = _failures_kept(run, config, domains, start, total_steps, ranks)
        with _ending_told(run, trainer, ranks, damaged), failures, stop.deferred():
            trainer.fit(batches, start, advance, summarise, stop)


@contextmanager
def _ending_told(run: Path, trainer: Trainer, ranks: Ranks, damaged: Callable[[], dict[str, object]]) -> Iterator[None]:
    """The summary says how the block ended, if not by the run's end."""
    try:
        yield
    except BaseException as error:
        try:
            if ranks.leads:
                ended = _ending(error, trainer.step)
                merge_summary(run, {**validation_summary(run), "damaged_samples": damaged(), "ended": ended})
        except FastsslError as second:  # the training's error is the one that is told
            log.warning("the damaged samples are not in the summary: %s (%s)", second.what, second.where)
        raise


@contextmanager
def _failures_kept(
    run: Path, config: Config, domains: Mapping[str, Domain], start: Start, total_steps: int, ranks: Ranks
) -> Iterator[None]:
    """A step whose loss is not finite leaves a file, and its error says what can be done."""
    try:
        yield
    except NonFiniteLossError as error:
        path: Path | None = failure_path(run, error.step)  # all ranks have the same to say
        if ranks.leads:
            path = write_failure(run, _failure(error, run, domains, start, total_steps, ranks))
        raise _advised(error, config, path) from None


def _failure(
    error: NonFiniteLossError, run: Path, domains: Mapping[str, Domain], start: Start, total_steps: int, ranks: Ranks
) -> Failure:
    """All that leads to the step that failed."""
    train = next(iter(domains.values())).config.train
    made = (error.step - 1 - start.step) * ranks.world_size * train.accumulate
    positions = {name: start.positions[name] + made * domain.batch_size for name, domain in domains.items()}
    kept = checkpoint_before(run, error.step)
    return Failure(
        step=error.step,
        why=error.what,
        seed=train.seed,
        checkpoint=None if kept is None else kept.name,
        total_steps=total_steps,
        world_size=ranks.world_size,
        positions=positions,
        fingerprints={name: domain.fingerprint for name, domain in domains.items()},
        batches=batches_at(domains, positions, ranks.world_size),
    )


def _advised(error: NonFiniteLossError, config: Config, failure: Path | None) -> NonFiniteLossError:
    """The error with what this run's user can do: neither learning rate nor precision may change on --resume."""
    amp = f", or without --amp ({config.train.amp_dtype})" if config.train.amp else ""
    again = "" if failure is None else f"; fastssl train --replay {failure} shows where it began"
    cure = f"begin another run with a lower optim.lr{amp}, since --resume would meet the same{again}"
    advised = NonFiniteLossError(error.what, where=error.where, seen=error.seen, expected=error.expected, hint=cure)
    advised.step = error.step
    return advised


def _ending(error: BaseException, step: int) -> dict[str, object]:
    """How a training ended that was not finished, for those who ask later."""
    how = "stopped" if isinstance(error, Stopped) else "failed"
    return {"how": how, "why": (str(error) or type(error).__name__).splitlines()[0], "step": step}


def _opened(config: Config, *, resumed: bool, any_size: bool = False) -> dict[str, Domain]:
    requests = find_method(config.method).domains(config)
    with _told_where([request.name for request in requests], resumed=resumed):
        return training_domains(requests, config, any_size=any_size)


def _validation(
    method: Method, config: Config, fingerprints: Mapping[str, str], context: StepContext, *, resumed: bool
) -> Validation | None:
    with _told_where(("validation-synthetic", "validation-real"), resumed=resumed):
        validation = open_validation(method, config, loader_options(config, context.device))
    if validation is not None and context.ranks.leads:
        for name, _ in validation.fingerprints.items() & fingerprints.items():
            log.warning("the %s images of the validation are those of the training, and not held out", name)
    return validation


@contextmanager
def _told_where(options: Sequence[str], *, resumed: bool) -> Iterator[None]:
    """Of a run that goes on, a dataset that is gone has perhaps moved."""
    try:
        yield
    except DataError as error:
        if not resumed or error.hint is not None or machine_fault(error) is not None:
            raise
        names = " or ".join(f"--{name}" for name in options)
        raise DataError(
            error.what,
            where=error.where,
            seen=error.seen,
            expected=error.expected,
            hint=f"put the dataset back, or say where it is now: --resume with {names}",
        ) from error


def _check_unfinished(run: Path, step: int, total_steps: int) -> None:
    if step >= total_steps:
        raise CheckpointError(
            "no step is left to make",
            where=run,
            seen=f"{step} steps are made",
            expected=f"fewer than {total_steps}",
            hint="measure the run (fastssl eval), or make it longer: --set train.steps=...",
        )


def _warn_of_copies(domains: Mapping[str, Domain], world_size: int) -> None:
    """Warn where a step sees images more than once: its batch norms and losses see less than their number says."""
    for name, domain in domains.items():
        num, step = len(domain.samples), domain.batch_size * world_size
        if num < step:
            log.warning("the %s data have %d images, and a step takes %d: it sees some more than once, and an epoch "
                        "is less than a step", name, num, step)  # fmt: skip


def _warn_of_warm_up(config: Config, total_steps: int) -> None:
    if config.optim.warmup_steps >= total_steps:
        log.warning("the warm-up of %d steps is as long as the run of %d, which never learns at optim.lr",
                    config.optim.warmup_steps, total_steps)  # fmt: skip


def _total_steps(main: Domain, start: Start, world_size: int) -> int:
    """Steps of the whole run; an epoch is a pass over the first domain, whatever the ranks and batches were before."""
    train = main.config.train
    left = train.epochs * len(main.samples) - start.positions[main.name]
    per_step = main.batch_size * world_size * train.accumulate
    return train.steps or start.step + max(math.ceil(left / per_step), 0)


def calibrated_options(domain: Domain, device: torch.device) -> LoaderOptions:
    """`loader_options`; for a GPU it is found out what the settings leave open: who loads, and its engine's fraction.

    Not for a deterministic run: all of them round differently, and what is found is not the same each time.
    """
    train, options = domain.config.train, loader_options(domain.config, device)
    if train.hw_decoder_load != "auto" or train.deterministic:
        return options
    found = calibrated(domain.samples, domain.plan, options, domain.targets, load_on=train.load_on)
    return replace(options, load_on=found.load_on, hw_decoder_load=found.load)


def loader_options(config: Config, device: torch.device) -> LoaderOptions:
    """Options of a run's loaders; the CPU without the JPEG engine, where the settings leave these open."""
    fraction, load_on = config.train.hw_decoder_load, config.train.load_on
    if load_on == "auto":
        load_on = "cpu" if fraction == "auto" else "gpu"
    return LoaderOptions(
        device=device,
        load_on=load_on,
        threads=config.train.threads,
        half=config.train.amp and device.type == "cuda",
        max_bad=config.data.max_bad,
        paranoid=config.data.paranoid,
        prefetch=config.train.prefetch,
        hw_decoder_load=0.0 if fraction == "auto" else fraction,
    )


def configure_torch(config: Config) -> None:
    """Set what torch has for the whole process, as the settings say."""
    torch.use_deterministic_algorithms(config.train.deterministic)
    # Its trying takes most of a minute in the first step on a GPU, and makes all others 1.5 times as fast.
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.train.tf32
