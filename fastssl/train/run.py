"""A training from settings to files: opens the data, prepares the run folder, trains, or continues a run."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastssl.batch import RealBatch, SyntheticBatch
from fastssl.config import Config, read_config, write_config
from fastssl.errors import CheckpointError, ConfigError, DataError, FastsslError, MachineError, UsageError
from fastssl.faults import machine_faults_named
from fastssl.files import PARTIAL
from fastssl.loader import (
    Batches,
    LoaderOptions,
    Mixture,
    Plan,
    Share,
    ViewSettings,
    open_domain,
    real_batches,
    synthetic_batches,
)
from fastssl.loader.calibration import calibrated
from fastssl.models import build_networks
from fastssl.telemetry import CONTINUE, Advance, merge_summary
from fastssl.train.checkpoint import check_data, latest_checkpoint, read_checkpoint
from fastssl.train.step import TrainingStep
from fastssl.train.trainer import Trainer

log = logging.getLogger(__name__)

_SYNTHETIC, _REAL = 0, 1


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
            raise UsageError("the output is a file", where=run, do="give another --out") from error
    if not names:
        return
    if "checkpoints" in names and "config.yaml" not in names:
        raise UsageError(
            "the folder holds checkpoints and not the settings of their run",
            where=run,
            expected="config.yaml",
            do="put it back (each checkpoint holds the settings too), or give another --out",
        )
    if "config.yaml" in names and latest_checkpoint(run) is None:
        raise UsageError(
            "the folder holds a run that has no checkpoint yet",
            where=run,
            do="begin it again from the start, with its own settings, by --out and --resume alone; "
            "or remove the folder, or give another --out",
        )
    raise UsageError(
        "the output folder is not empty", where=run, do="give another --out, or --resume to continue the run"
    )


def _prepare(config: Config, run: Path) -> None:
    with machine_faults_named(run, do=CONTINUE):
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(
                "the run folder cannot be made", where=run, seen=error.strerror, do="give another --out"
            ) from error
        for left in run.glob(f"*{PARTIAL}"):
            left.unlink()  # of a process that was killed while it wrote
    if not (run / "config.yaml").exists():
        with machine_faults_named(run / "config.yaml", do="then train again"):
            write_config(config, run / "config.yaml")


def training_batches(
    config: Config,
    synthetic: Mixture,
    real: Mixture | None,
    *,
    first_step: int,
    device: torch.device,
    options: LoaderOptions | None = None,
) -> tuple[Batches[SyntheticBatch], Batches[RealBatch] | None]:
    """Endless random batches of both domains, from step `first_step` on; None for the photos if `real` is.

    Without options these are `calibrated_options`.
    """
    options = options or calibrated_options(config, synthetic, device)
    batches = synthetic_batches(synthetic, _plan(config, synthetic, _SYNTHETIC, first_step), options)
    photos = None if real is None else real_batches(real, _plan(config, real, _REAL, first_step), options)
    return batches, photos


def run_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _open_datasets(config: Config) -> tuple[Mixture, Mixture | None]:
    data = config.data
    if not data.synthetic:
        raise UsageError("no synthetic dataset is given", do="add --synthetic FOLDER")
    synthetic = open_domain(data.synthetic, "synthetic")
    _check_labels(config, synthetic)
    if config.model.adapted_layer == "none":
        _check_size(config, synthetic)
        return synthetic, None
    if not data.real:
        raise UsageError("no real dataset is given", do="add --real FOLDER, or --set model.adapted_layer=none")
    real = open_domain(data.real, "real")
    _check_size(config, synthetic, real)
    return synthetic, real


def _check_labels(config: Config, synthetic: Mixture) -> None:
    """Refuse to learn what no sample tells: a pixel counts where its depth and its normal are known."""
    for plane in ("depth", "normal"):
        known = sum(dataset.manifest.statistics.planes[plane].known for dataset in synthetic.datasets)
        if known == 0 and {"depth", "normal"} & set(config.model.tasks):
            raise DataError(
                f"no {plane} is known in any sample of the dataset",
                where=synthetic.path,
                expected="samples with known depth and normals",
                do="look whether it was packed with the right layout, or learn contours alone: "
                "--set model.tasks=[edge]",
            )


def _check_size(config: Config, *datasets: Mixture) -> None:
    for shards in datasets:
        if min(shards.image_size) < config.data.size:
            raise ConfigError(
                "the packed images are smaller than the network's input",
                where=shards.path,
                seen=f"{shards.image_size[0]} x {shards.image_size[1]} pixels",
                expected=f"at least data.size = {config.data.size}",
                do="pack them larger, or lower data.size",
            )


def _train(config: Config, run: Path, content: dict[str, Any] | None, advance: Advance) -> None:
    synthetic, real = _open_datasets(config)
    _configure_torch(config)
    device = run_device()
    networks = build_networks(config.model, config.train.seed).to(device)
    if config.train.channels_last:
        networks = networks.to(memory_format=torch.channels_last)
    step = TrainingStep(networks, config, device)
    first_step = 0
    fingerprints = {"synthetic": synthetic.fingerprint, "real": "" if real is None else real.fingerprint}
    if content is not None:
        check_data(content["data"], fingerprints, config)
        step.load_state_dict(content["state"])
        first_step = content["step"]
    total_steps = config.train.steps or config.train.epochs * math.ceil(len(synthetic) / config.data.batch_synthetic)
    if first_step >= total_steps:
        raise CheckpointError(
            "the run is finished",
            where=run,
            seen=f"{first_step} steps",
            expected=f"fewer than {total_steps}",
            do="measure it (fastssl eval), or begin another run",
        )
    options = calibrated_options(config, synthetic, device)
    batches, photos = training_batches(config, synthetic, real, first_step=first_step, device=device, options=options)
    # Not before: a start that fails leaves nothing behind.
    _prepare(config, run)

    def damaged() -> dict[str, object]:
        return {"synthetic": batches.damaged(), "real": [] if photos is None else photos.damaged()}

    def summarise(summary: dict[str, object]) -> None:
        sections = {"steps": total_steps, **summary, "damaged_samples": damaged()}
        if device.type == "cuda":
            sections["hw_decoder_load"] = options.hw_decoder_load
        merge_summary(run, sections)

    try:
        Trainer(step, config, run, total_steps, fingerprints).fit(batches, photos, first_step, advance, summarise)
    except BaseException:
        try:
            merge_summary(run, {"damaged_samples": damaged()})
        except FastsslError as second:  # the training's error is the one that is told
            log.warning("the damaged samples are not in the summary: %s (%s)", second.what, second.where)
        raise


def _plan(config: Config, shards: Mixture, stream: int, first_step: int) -> Plan:
    """The random steps of one domain from `first_step` on."""
    data = config.data
    batch_size = data.batch_synthetic if stream == _SYNTHETIC else data.batch_real
    order = shards.order(seed=config.train.seed, stream=stream, buffer=data.shuffle_buffer)
    share = Share(order=order, batch_size=batch_size)
    whole = stream == _REAL and data.real_window == "whole"
    settings = ViewSettings(data=data, augment=config.augment, stored=shards.image_size, whole=whole)
    return shards.training_plan(settings, share, position=first_step * share.global_batch)


def calibrated_options(config: Config, synthetic: Mixture, device: torch.device) -> LoaderOptions:
    """`loader_options`; on a GPU the share of its JPEG engine is found out, where the settings leave it open.

    Not for a deterministic run: engine and kernels round differently, and the share found is not the same each time.
    """
    options = loader_options(config, device)
    if config.train.hw_decoder_load != "auto" or config.train.deterministic:
        return options
    found = calibrated(synthetic, lambda: _plan(config, synthetic, _SYNTHETIC, 0), options)
    return replace(options, hw_decoder_load=found.load)


def loader_options(config: Config, device: torch.device) -> LoaderOptions:
    """How a run with these settings loads its batches; without the JPEG engine, where its share is left open."""
    share = config.train.hw_decoder_load
    return LoaderOptions(
        device=device,
        threads=config.train.threads,
        half=config.train.amp and device.type == "cuda",
        max_bad=config.data.max_bad,
        paranoid=config.data.paranoid,
        prefetch=config.train.prefetch,
        hw_decoder_load=0.0 if share == "auto" else share,
    )


def _configure_torch(config: Config) -> None:
    torch.use_deterministic_algorithms(config.train.deterministic)
    torch.backends.cudnn.benchmark = not config.train.deterministic
    torch.set_float32_matmul_precision("high" if config.train.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = config.train.tf32
