"""The training loop: steps, metrics, pictures and checkpoints."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastssl.batch import Batch
from fastssl.config import Config, OptimSettings
from fastssl.errors import MachineError, NonFiniteLossError, ShardError
from fastssl.faults import machine_faults_named
from fastssl.loader import Batches
from fastssl.methods import ManyLosses, Method, StepContext, unit_of
from fastssl.pictures import write_picture
from fastssl.ranges import traced
from fastssl.ranks import Ranks
from fastssl.telemetry import Advance, MetricsWriter, gpu_readings
from fastssl.trackers import Trackers
from fastssl.train.average import WeightAverage
from fastssl.train.balance import Balance
from fastssl.train.checkpoint import Best, CheckpointWriter, Moment, copied, read_best
from fastssl.train.stop import Stopped, StopSignals
from fastssl.train.validation import PREFIX, Validation, mean_statistics, moving_statistics

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
        decay = config.optim.average_decay
        self.average = WeightAverage(method.networks, decay) if decay else None
        """The mean of the weights, where the settings ask for one."""
        self.step = 0
        """The last step that is made."""
        self.around: Callable[[int], AbstractContextManager[object]] = nullcontext
        """Surrounds each step, of this number."""

    def restore(self, content: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's content."""
        restore(self.method, self.context, content)
        if self.average is not None:
            self.average.load_state_dict(content["state"]["average"])

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
        meter = _Meter(self.context.device, unit_of(self.config), ranks)
        balance = Balance(self.method.chance(self.config))
        if ranks.leads:
            layout = "channels-last" if self.context.channels_last else "contiguous"
            log.info("on %s: %s optimizers, networks %s in memory",
                     self.context.device.type, self.config.optim.backend, layout)  # fmt: skip
        with self._files(start.step) as files:
            for number in range(start.step + 1, self.total_steps + 1):
                factor = lr_factor(self.config.optim, number - 1, self.total_steps)
                self.method.begin_step(number, factor)
                with self.around(number):
                    step_batches = self._make_step(number, batches, meter)
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
                    with meter.paused():  # on all ranks, whose batch norms may be joined
                        gradients = self._gradients(step_batches, number)
                    if files is not None:
                        balance.look(values, number)
                        values |= gradients | self._gpu()
                        files.write(number, values)
                        advance(number, self.total_steps, meter.words(values))
                if checkpoint_due:
                    self._check_weights(number)
                if files is not None:
                    self._show(step_batches, number, meter, summarise)
                if checkpoint_due or outcome.is_best:
                    self._save(files, number, start, outcome, regular=bool(checkpoint_due))
                if asked and not last:
                    self._finish(files)
                    raise Stopped(signal.Signals(asked), number)
            self._finish(files)

    def _make_step(self, number: int, batches: Mapping[str, Batches], meter: _Meter) -> dict[str, Batch]:
        """One step, on one batch of each domain or several; returns the last ones."""
        parts, taken = self.config.train.accumulate, dict[str, Batch]()
        for part in range(parts):
            started = time.perf_counter()
            with traced("wait for data"):
                taken = {name: next(domain) for name, domain in batches.items()}
            meter.waited(time.perf_counter() - started)
            with self.context.part(part, parts):
                losses = self.method(taken)
            meter.add(losses, number, len(next(iter(taken.values())).keys))
        if self.average is not None:
            self.average.add(number)
        return taken

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

    def _check_weights(self, number: int) -> None:
        """Refuse to keep weights with which no step can be made; all ranks have the same.

        Also finite ones whose squares are not, such as a learning rate of 1e30 leaves.
        """
        norms = torch._foreach_norm([weights.detach().float() for weights in self.method.networks.parameters()])
        if not torch.stack(norms).square().isfinite().all():
            raise _not_finite("the weights are not finite, or too large to go on with", number)

    def _has_validation(self, number: int) -> bool:
        is_due = number == self.total_steps or _is_due(number, self.config.train.validate_every)
        return self._validation is not None and is_due

    def _validate(self, files: _Files | None, number: int, stop: StopSignals) -> _Outcome:
        """Measure on held-out data; every rank waits for the one that leads."""
        validation, ranks, name = self._validation, self.context.ranks, self.config.train.best_by
        assert validation is not None
        with nullcontext() if self.average is None else self.average.in_place():
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
            ranks.average(moving_statistics(networks))
        of_ranks = ranks.gathered(copied(self.method.rank_state_dict()))
        made = (number - start.step) * ranks.world_size * self.config.train.accumulate
        positions = {name: first + made * data.batch_size(name) for name, first in start.positions.items()}
        # Of one that is only the best, no trace is left in the run.
        with nullcontext() if regular else mean_statistics(networks, ranks):
            if files is not None:
                state = {**self.method.state_dict(), "context": self.context.state_dict()}
                if self.average is not None:
                    state["average"] = self.average.state_dict()
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

    def _show(
        self,
        batches: Mapping[str, Batch],
        number: int,
        meter: _Meter,
        summarise: Callable[[dict[str, object]], None],
    ) -> None:
        """The picture of a step, and after the last one the run's summary."""
        last = number == self.total_steps
        if last or number % self.config.train.picture_every == 0:
            self._draw(batches, number)
        if last:
            summarise(meter.summary())

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

    def _gradients(self, batches: Mapping[str, Batch], number: int) -> dict[str, float]:
        """How strongly each loss pulls at the backbone, beside every picture."""
        if not isinstance(self.method, ManyLosses) or number % self.config.train.picture_every:
            return {}
        return {f"gradient/{name}": float(norm) for name, norm in self.method.gradient_norms(batches).items()}

    def _gpu(self) -> dict[str, float]:
        device = self.context.device
        return gpu_readings(device.index or 0) if device.type == "cuda" else {}


def _not_finite(what: str, step: int) -> NonFiniteLossError:
    """The error of a step; what can be done about it depends on the settings, which the run knows."""
    error = NonFiniteLossError(what, where=f"step {step}", seen="inf or nan", expected="a finite number")
    error.step = step
    return error


def restore(method: Method, context: StepContext, content: Mapping[str, Any]) -> None:
    """Put a checkpoint's state into place; the log says what other ranks, or other threads, change."""
    ranks, threads = context.ranks, content.get("threads", torch.get_num_threads())
    if context.device.type == "cpu" and ranks.leads and threads != torch.get_num_threads():
        log.info("the run goes on with %d threads of torch instead of %d (OMP_NUM_THREADS): its sums are rounded "
                 "otherwise, and differ in their last bits", torch.get_num_threads(), threads)  # fmt: skip
    method.load_state_dict(content["state"])
    method.load_rank_state_dicts(content["ranks"])
    context.load_state_dict(content["state"]["context"])
    if ranks.leads and len(content["ranks"]) != ranks.world_size:
        log.info("the run goes on with %d ranks instead of %d: the samples are those that would have come, and what "
                 "each rank had for itself is spread anew", ranks.world_size, len(content["ranks"]))  # fmt: skip


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
    warmed = min((steps_done + 1) / (optim.warmup_steps + 1), 1.0)
    if optim.schedule == "constant":
        return warmed
    if optim.schedule == "cosine":
        done = max(steps_done - optim.warmup_steps, 0) / max(total_steps - optim.warmup_steps, 1)
        return warmed * (1 + math.cos(math.pi * done)) / 2
    drops = sum(steps_done >= fraction * total_steps for fraction in optim.drop_at)
    return float(warmed * optim.drop_factor**drops)


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
            raise _not_finite(f"the {name} loss is not finite", step)
