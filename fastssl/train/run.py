"""A training from settings to files: opens the data, prepares the run folder, trains, or continues a run."""

from __future__ import annotations

import logging
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastssl.config import Config, write_config
from fastssl.errors import CheckpointError, FastsslError, MachineError, UsageError
from fastssl.faults import machine_faults_named
from fastssl.files import PARTIAL
from fastssl.loader import Batches, Domain, LoaderOptions, training_domains
from fastssl.loader.calibration import calibrated
from fastssl.methods import StepContext, find_method, read_config
from fastssl.telemetry import CONTINUE, Advance, merge_summary
from fastssl.train.checkpoint import check_data, latest_checkpoint, read_checkpoint
from fastssl.train.trainer import Trainer

log = logging.getLogger(__name__)


def start_run(config: Config, run: Path, advance: Advance) -> None:
    """Train from the beginning into an empty or new folder.

    Raises:
        UsageError: the folder holds something.
        DataError: a dataset is missing, damaged, or of the wrong domain.
        ConfigError: a setting does not fit the data.
        MachineError: the folder cannot be made, a disk is full, or the like; `resume_run` continues the run.
    """
    _check_unused(run)
    _train(config, run, None, advance)


def resume_run(run: Path, advance: Advance) -> None:
    """Continue a run from its last checkpoint, or begin it again if it has none, with the settings it was started with.

    The steps that follow are the very steps that an undisturbed run would have made.

    Raises:
        DataError: there is no run, or a damaged checkpoint.
        CheckpointError: the checkpoint is of another architecture or of other data, or the run is finished.
        MachineError: as `start_run`.
    """
    path = latest_checkpoint(run)
    config = read_config(run / "config.yaml")
    if path is None:
        log.info("%s has no checkpoint yet: it begins from the start, with its own settings", run)
    _train(config, run, None if path is None else read_checkpoint(path, config), advance)


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


def _prepare(config: Config, run: Path) -> None:
    with machine_faults_named(run, hint=CONTINUE):
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(
                "the run folder cannot be made", where=run, seen=error.strerror, hint="give another --out"
            ) from error
        for left in run.glob(f"*{PARTIAL}"):
            left.unlink()  # of a process that was killed while it wrote
    if not (run / "config.yaml").exists():
        with machine_faults_named(run / "config.yaml", hint="then train again"):
            write_config(config, run / "config.yaml")


def run_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _train(config: Config, run: Path, content: dict[str, Any] | None, advance: Advance) -> None:
    kind = find_method(config.method)
    _configure_torch(config)
    device = run_device()
    context = StepContext(config.train, device)
    domains = training_domains(kind.domains(config), config)
    method = kind(config, context)
    fingerprints: dict[str, str] = {name: domain.fingerprint for name, domain in domains.items()}
    first_step = 0
    if content is not None:
        check_data(content["data"], fingerprints, config)
        method.load_state_dict(content["state"])
        context.load_state_dict(content["state"]["context"])
        first_step = content["step"]
    main = next(iter(domains.values()))
    total_steps = config.train.steps or config.train.epochs * math.ceil(len(main.samples) / main.batch_size)
    if first_step >= total_steps:
        raise CheckpointError(
            "the run is finished",
            where=run,
            seen=f"{first_step} steps",
            expected=f"fewer than {total_steps}",
            hint="measure it (fastssl eval), or begin another run",
        )
    options = calibrated_options(main, device)
    # Not before: a start that fails leaves nothing behind.
    _prepare(config, run)
    with ExitStack() as stack:
        batches: dict[str, Batches] = {
            name: stack.enter_context(domain.training_batches(options, first_step=first_step))
            for name, domain in domains.items()
        }

        def damaged() -> dict[str, object]:
            return {name: domain.damaged() for name, domain in batches.items()}

        def summarise(summary: dict[str, object]) -> None:
            sections = {"steps": total_steps, **summary, "damaged_samples": damaged()}
            if device.type == "cuda":
                sections["hw_decoder_load"] = options.hw_decoder_load
            merge_summary(run, sections)

        try:
            Trainer(method, context, config, run, total_steps, fingerprints).fit(
                batches, first_step, advance, summarise
            )
        except BaseException:
            try:
                merge_summary(run, {"damaged_samples": damaged()})
            except FastsslError as second:  # the training's error is the one that is told
                log.warning("the damaged samples are not in the summary: %s (%s)", second.what, second.where)
            raise


def calibrated_options(domain: Domain, device: torch.device) -> LoaderOptions:
    """`loader_options`; on a GPU the fraction of its JPEG engine is found out, where the settings leave it open.

    Not for a deterministic run: engine and kernels round differently, and the fraction found is not the same each time.
    """
    config = domain.config
    options = loader_options(config, device)
    if config.train.hw_decoder_load != "auto" or config.train.deterministic:
        return options
    found = calibrated(domain.samples, domain.plan, options)
    return replace(options, hw_decoder_load=found.load)


def loader_options(config: Config, device: torch.device) -> LoaderOptions:
    """How a run with these settings loads its batches; without the JPEG engine, where its fraction is left open."""
    fraction = config.train.hw_decoder_load
    return LoaderOptions(
        device=device,
        threads=config.train.threads,
        half=config.train.amp and device.type == "cuda",
        max_bad=config.data.max_bad,
        paranoid=config.data.paranoid,
        prefetch=config.train.prefetch,
        hw_decoder_load=0.0 if fraction == "auto" else fraction,
    )


def _configure_torch(config: Config) -> None:
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.train.tf32
