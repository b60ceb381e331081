"""The training loop: steps, metrics, pictures and checkpoints."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from fastssl.batch import Batch
from fastssl.config import Config, OptimSettings
from fastssl.errors import MachineError, NonFiniteLossError, ShardError
from fastssl.faults import machine_faults_named
from fastssl.loader import Batches
from fastssl.methods import Method, StepContext
from fastssl.pictures import write_picture
from fastssl.ranks import Ranks
from fastssl.telemetry import Advance, MetricsWriter, gpu_readings
from fastssl.trackers import Trackers
from fastssl.train.balance import Balance
from fastssl.train.checkpoint import Best, CheckpointWriter, Moment, copied, read_best
from fastssl.train.stop import Stopped, StopSignals
from fastssl.train.validation import PREFIX, Validation, mean_statistics

log = logging.getLogger(__name__)

# Waiting for data more than this fraction of the time makes data the limit.
_DATA_LIMIT = 0.1
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a training begins."""

    step: int
    """The last step that is made already."""
    positions: Mapping[str, int]
    """The next position of each domain's endless sequence."""


class Trainer:
    """Runs a method's steps on batches and leaves the run's files behind.

    Knows nothing of where batches come from, nor of any network. Among several ranks all make the same steps, and one
    writes.
    """

    def __init__(
        self,
        method: Method,
        context: StepContext,
        config: Config,
        run: Path,
        total_steps: int,
        fingerprints: dict[str, str],
        validation: Validation | None = None,
    ) -> None:
        self.method, self.context, self.config = method, context, config
        self.run, self.total_steps = run, total_steps
        self._fingerprints, self._validation = fingerprints, validation
        self.step = 0
        """The last step that is made."""

    def fit(
        self,
        batches: Mapping[str, Batches],
        start: Start,
        advance: Advance,
        summarise: Callable[[dict[str, object]], None],
        stop: StopSignals,
    ) -> None:
        """Make the steps from `start` to the last.

        Args:
            batches: endless ones of each domain that the method wants, the first of which counts for the rates.
            start: where to begin.
            advance: is told how far it is.
            summarise: called with the run's `throughput` and `limited_by` before the last checkpoint is written. That
                one makes the run finished, so where the summary cannot be kept, the run can still be continued.
            stop: tells whether a signal asks for an end; it comes after the step that is being made, or while
                held-out images are measured.

        Raises:
            Stopped: a signal asked for it, and the checkpoint of the last step is written.
            NonFiniteLossError: a loss became infinite or not a number; names task and step; nothing is written after.
            ShardError: more samples are damaged, over all ranks, than the settings allow.
            MachineError: the last checkpoint, or a line of metrics, cannot be written.
        """
        settings, ranks = self.config.train, self.context.ranks
        meter = _Meter(self.context.device, self.method.unit, ranks)
        balance = Balance(self.method.chance(self.config))
        with self._files(start.step) as files:
            for number in range(start.step + 1, self.total_steps + 1):
                factor = lr_factor(self.config.optim, number - 1, self.total_steps)
                self.method.set_lr_factor(factor)
                started = time.perf_counter()
                step_batches = {name: next(domain) for name, domain in batches.items()}
                meter.waited(time.perf_counter() - started)
                meter.add(self.method(step_batches), number, len(next(iter(step_batches.values())).keys))

                self.step = number
                (asked,) = ranks.largest([stop.wanted or 0])
                last = number == self.total_steps
                checkpoint_due = last or asked or _is_due(number, settings.checkpoint_every, settings.keep_every)
                validation_due = not asked and self._has_validation(number)
                outcome = _Outcome()
                if number % settings.log_every == 0 or checkpoint_due or validation_due:
                    values = meter.read()
                    self._check_damage(batches)
                    values["lr"] = self.config.optim.lr * factor
                    if validation_due:
                        advance(number, self.total_steps, "validation")
                        with meter.paused():
                            outcome = self._validate(files, number, stop)
                        values |= outcome.values
                        asked = outcome.asked
                        checkpoint_due = checkpoint_due or bool(asked)
                    if files is not None:
                        balance.look(values, number)
                        values |= self._gpu()
                        files.write(number, values)
                        advance(number, self.total_steps, meter.words(values))
                if files is not None and (last or number % settings.picture_every == 0):
                    self._draw(step_batches, number)
                if files is not None and last:
                    summarise(meter.summary())
                if checkpoint_due or outcome.is_best:
                    self._save(files, number, start, outcome, regular=bool(checkpoint_due))
                if asked and not last:
                    self._finish(files)
                    raise Stopped(signal.Signals(asked), number)
            self._finish(files)

    @contextmanager
    def _files(self, first_step: int) -> Iterator[_Files | None]:
        """What the rank that leads writes to; None on the others."""
        if not self.context.ranks.leads:
            yield None
            return
        logged = first_step - first_step % self.config.train.log_every
        best = None
        if self._validation is not None and self.config.train.best_by != "none":
            best = read_best(self.run, self.config, self._validation.fingerprints)
        with (
            MetricsWriter(self.run, first_step, logged) as metrics,
            Trackers(self.run, self.config, first_step) as trackers,
            closing(CheckpointWriter(self.run, self.config, self._fingerprints, best)) as checkpoints,
        ):
            yield _Files(metrics, trackers, checkpoints)

    def _has_validation(self, number: int) -> bool:
        is_due = number == self.total_steps or _is_due(number, self.config.train.validate_every)
        return self._validation is not None and is_due

    def _validate(self, files: _Files | None, number: int, stop: StopSignals) -> _Outcome:
        """Measure on held-out data; every rank waits for the one that leads."""
        validation, ranks, name = self._validation, self.context.ranks, self.config.train.best_by
        assert validation is not None
        found = validation(ranks, stop)
        best = None
        if files is not None and name in found.values:
            before, cost = files.checkpoints.best, validation.metrics[name].cost
            if before is None or cost(found.values[name]) < cost(before.value):
                best = Best(name=name, value=found.values[name], step=number, data=validation.fingerprints)
        (is_best,) = ranks.largest([int(best is not None)])
        values = {f"{PREFIX}{name}": value for name, value in found.values.items()}
        return _Outcome(values=values, asked=found.asked, best=best, is_best=bool(is_best))

    def _save(self, files: _Files | None, number: int, start: Start, outcome: _Outcome, *, regular: bool) -> None:
        """Begin a checkpoint; every rank gives its part."""
        ranks, data, networks = self.context.ranks, self.config.data, self.method.networks
        if regular:
            # Steps use the statistics of their batches: these means change nothing but what is kept.
            ranks.average(buffer for buffer in networks.buffers() if buffer.is_floating_point())
        of_ranks = ranks.gathered(copied(self.method.rank_state_dict()))
        made = (number - start.step) * ranks.world_size
        positions = {name: first + made * data.batch_size(name) for name, first in start.positions.items()}
        # Of one that is only the best, no trace is left in the run.
        with nullcontext() if regular else mean_statistics(networks, ranks):
            if files is not None:
                state = {**self.method.state_dict(), "context": self.context.state_dict()}
                moment = Moment(step=number, positions=positions, state=state, ranks=of_ranks)
                files.checkpoints.begin(moment, regular=regular, best=outcome.best)

    def _finish(self, files: _Files | None) -> None:
        if files is not None:
            files.checkpoints.finish()

    def _check_damage(self, batches: Mapping[str, Batches]) -> None:
        """Let all ranks stop at the same step where all together have met too much damage."""
        if self.context.ranks.world_size == 1:
            return  # the loader counts by itself
        for name, domain in batches.items():
            (count,) = self.context.ranks.total([len(domain.damaged())])
            if count > self.config.data.max_bad:
                raise ShardError(
                    "too many samples are damaged",
                    where=f"{name} data",
                    seen=f"{count:.0f} on all ranks together",
                    expected=f"at most data.max_bad = {self.config.data.max_bad}",
                    hint="see the warnings; fastssl verify finds all of them",
                )

    def _draw(self, batches: Mapping[str, Batch], number: int) -> None:
        sheet = self.method.picture(batches)
        if sheet is None:
            return
        path = self.run / "samples" / f"train_{number:08d}.png"
        try:
            with machine_faults_named(path):
                write_picture(sheet, path)
        except MachineError as error:
            log.warning("a picture could not be written, and the training goes on: %s (%s)", error.what, path)

    def _gpu(self) -> dict[str, float]:
        device = self.context.device
        return gpu_readings(device.index or 0) if device.type == "cuda" else {}


class _Files(NamedTuple):
    metrics: MetricsWriter
    trackers: Trackers
    checkpoints: CheckpointWriter

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.metrics.write(step, values)
        self.trackers.write(step, values)


class _Outcome(NamedTuple):
    """What came of a validation, or of a step without one."""

    values: Mapping[str, float] = MappingProxyType({})
    """By their names in `metrics.jsonl`."""
    asked: int = 0
    """Number of the signal that ended it."""
    best: Best | None = None
    """On the rank that leads, where none before was better."""
    is_best: bool = False


def _is_due(number: int, *every: int) -> bool:
    return any(step and number % step == 0 for step in every)


def lr_factor(optim: OptimSettings, steps_done: int, total_steps: int) -> float:
    """The fraction of the configured learning rate that the step after `steps_done` uses."""
    if optim.schedule == "constant":
        return 1.0
    drops = sum(steps_done >= fraction * total_steps for fraction in optim.drop_at)
    return optim.drop_factor**drops


@dataclass(slots=True)
class _Stretch:
    """Steps in a row: their number, images of the first domain, time and the part of it spent waiting, in seconds."""

    steps: int = 0
    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, other: _Stretch) -> None:
        self.steps += other.steps
        self.images += other.images
        self.seconds += other.seconds
        self.waited += other.waited


class _Meter:
    """Adds up losses on the device and times on the host; `read` is the only place that waits for the device.

    Rates leave the first step out, on every device, unless it is the only one: before its batch comes the loader's
    start, which on a new machine compiles code, and in it libraries load kernels and try which of them are fastest.
    """

    def __init__(self, device: torch.device, unit: str, ranks: Ranks) -> None:
        self._device, self._unit, self._ranks = device, unit, ranks
        self._since = 0.0
        self._first: _Stretch | None = None
        self._now, self._all = _Stretch(), _Stretch()
        self._totals: dict[str, Tensor] = {}
        self._first_bad: dict[str, Tensor] = {}
        self._steps = 0

    def waited(self, seconds: float) -> None:
        if self._since:
            self._now.waited += seconds
        else:
            log.info("the first batch took %.1f s", seconds)
            self._since = time.perf_counter()

    def add(self, losses: dict[str, Tensor], step: int, images: int) -> None:
        for name, loss in losses.items():
            self._totals[name] = self._totals.get(name, 0) + loss
            # The first step with a bad value stays; 0 = none so far.
            bad = torch.where(torch.isfinite(loss), 0, step)
            before = self._first_bad.get(name, torch.zeros_like(bad))
            self._first_bad[name] = torch.where(before > 0, before, bad)
        self._steps += 1
        if self._first is None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            now = time.perf_counter()
            self._first, self._since = _Stretch(steps=1, images=images, seconds=now - self._since), now
        else:
            self._now.steps += 1
            self._now.images += images

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that counts for no step."""
        before = time.perf_counter()
        yield
        self._since += time.perf_counter() - before

    def read(self) -> dict[str, float]:
        """Means since the last call over all ranks, and the rate of all of them, by metric name."""
        names, ranks = list(self._totals), self._ranks
        sums = ranks.total(torch.stack([self._totals[name] for name in names]).tolist())
        sums = [total / ranks.world_size for total in sums]
        bad = torch.stack([self._first_bad[name] for name in names]).tolist()
        first_bad = ranks.largest([-step if step else -_NEVER for step in bad])
        self._check({name: -step for name, step in zip(names, first_bad, strict=True) if step != -_NEVER})
        now = time.perf_counter()
        self._now.seconds = now - self._since
        timed = self._now if self._now.steps or self._first is None else self._first
        values = {f"loss/{name}": total / self._steps for name, total in zip(names, sums, strict=True)}
        values["time/step_ms"] = 1000 * timed.seconds / timed.steps
        rate, wait = ranks.total([timed.images / timed.seconds, timed.waited / timed.seconds])
        values[f"throughput/{self._unit}_per_s"] = rate
        values["throughput/data_wait_fraction"] = wait / ranks.world_size
        self._all.add(self._now)
        self._totals, self._steps, self._now, self._since = {}, 0, _Stretch(), now
        return values

    def words(self, values: Mapping[str, float]) -> str:
        """What `read` found, for the progress."""
        losses = " ".join(f"{name[5:]} {value:.3f}" for name, value in values.items() if name.startswith("loss/"))
        rate, wait = values[f"throughput/{self._unit}_per_s"], values["throughput/data_wait_fraction"]
        gpu = f", GPU {values['gpu/memory_gib']:.1f} GiB" if "gpu/memory_gib" in values else ""
        return f"{losses} | {rate:.0f} {self._unit}/s, data wait {wait:.0%}{gpu}"

    def summary(self) -> dict[str, object]:
        timed = self._all if self._all.steps else self._first
        if timed is None:
            return {}
        wait = timed.waited / timed.seconds
        return {
            "throughput": {
                f"{self._unit}_per_s": self._ranks.world_size * timed.images / timed.seconds,
                "data_wait_fraction": wait,
            },
            "limited_by": "data" if wait > _DATA_LIMIT else "compute",
        }

    @staticmethod
    def _check(bad: dict[str, int]) -> None:
        """Raise for the first step with a bad loss, by loss."""
        if bad:
            name, step = min(bad.items(), key=lambda item: item[1])
            raise NonFiniteLossError(
                f"the {name} loss is not finite",
                where=f"step {step}",
                seen="inf or nan",
                expected="a finite number",
                hint="lower optim.lr or the task's weight, or train without --amp",
            )
