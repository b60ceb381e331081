"""Linear probes: how well linear classifiers tell classes by the frozen features of each layer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from fastssl.addresses import masked
from fastssl.config import Config
from fastssl.errors import UsageError
from fastssl.evaluate.evaluation import Dataset, Measured, Metric, Row, Sheet
from fastssl.evaluate.features import check_finite
from fastssl.evaluate.labelled import INTERVALS, TOPS, Labelled, open_labelled, right_rank, top_row
from fastssl.evaluate.probes import DIMENSIONS, Probes, Schedule, resized_maps
from fastssl.evaluate.progress import Progress, digest, progress_of
from fastssl.evaluate.subject import Subject, every_sample, statistics_of
from fastssl.loader import Domain, LoaderOptions
from fastssl.train import run_device

log = logging.getLogger(__name__)

PROGRESS = "linear_probes.pt"
"""In the run's folder, as long as probes learn."""


@dataclass(frozen=True, kw_only=True)
class Linear:
    """How well linear classifiers tell classes by the frozen features of each layer.

    The protocol of Zhang et al., Split-Brain Autoencoders, CVPR 2017: maps after their ReLU are resized to 9,600
    numbers or a little less, normalised by a batch norm without scale and shift, and classified by a linear layer that
    learns by SGD. Images are seen through their centre window, also those that are learnt from. All layers are
    probed at once.
    """

    name: ClassVar[str] = "linear"
    title: ClassVar[str] = "Classes by linear probes"
    note: ClassVar[str] = (
        "For each layer a linear classifier learns the classes of the training images by features that stay as they "
        "are. Top-1 is the fraction of test images whose class it finds most likely, top-5 that of those whose class "
        "is among the first five. Trained reestimated has batch norms with the statistics of the training images."
    )
    sheet: ClassVar[Sheet | None] = None
    metrics: ClassVar[tuple[Metric, ...]] = (
        *(
            Metric(
                path=(f"top_{top}",),
                name=f"Top-{top}",
                group="Compared layer",
                key="Classes by a linear probe, top-1" if top == 1 else "",
                unit="%",
                better="higher",
                digits=1,
                factor=100,
            )
            for top in TOPS
        ),
        *(
            Metric(
                path=("layers", "*", f"top_{top}"),
                name="*",
                group=f"Each layer, top-{top}",
                unit="%",
                better="higher",
                digits=1,
                factor=100,
            )
            for top in TOPS
        ),
    )

    train: Annotated[Dataset, "Packed photos with classes to learn from: a folder or an address."]
    test: Annotated[Dataset, "Packed photos with the same classes to test on: a folder or an address."]
    epochs: Annotated[int, "Passes over the training images."] = 28
    batch_size: Annotated[int, "Images of a step, at most."] = 256
    lr: Annotated[float, "Learning rate of the first epochs; of biases twice that."] = 0.01
    momentum: Annotated[float, "Of SGD."] = 0.9
    weight_decay: Annotated[float, "Of weights; biases have none."] = 5e-4
    drop_every: Annotated[int, "Epochs after which the learning rate drops, again and again."] = 8
    drop_factor: Annotated[float, "By which it is multiplied then."] = 0.1
    seed: Annotated[int, "Of the order of the images."] = 0
    cache_gib: Annotated[float, "Memory for features; where it does not hold all, each epoch computes them anew."] = 4.0
    progress: Annotated[
        Path | None, "Folder that keeps what is learnt until all is done; by default the run's. Others have none."
    ] = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "drop_every", "drop_factor"):
            if not getattr(self, name) > 0:
                where = f"--{name.replace('_', '-')}"
                raise UsageError("the setting is out of range", where=where, seen=getattr(self, name), expected="> 0")
        for name in ("momentum", "weight_decay", "seed", "cache_gib"):
            if not getattr(self, name) >= 0:
                where = f"--{name.replace('_', '-')}"
                raise UsageError("the setting is out of range", where=where, seen=getattr(self, name), expected=">= 0")

    @staticmethod
    def lack(config: Config) -> str:
        """Nothing: any features can be probed."""
        return ""

    @property
    def schedule(self) -> Schedule:
        """How the probes learn."""
        return Schedule(*(getattr(self, name) for name in Schedule._fields))

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Train the probes of all layers and test them.

        What was learnt by the end of each epoch is kept in the run's folder until all is done: the same command, after
        a kill, goes on from there to the same numbers. A subject that is no run keeps it in `progress`.

        Raises:
            DataError: as `open_labelled`; features are not finite; or the training data are not those of the run.
            UsageError: a probe diverges.
        """
        labelled = open_labelled(subject, self.train, self.test)
        again = subject.reestimated(labelled.train, until=subject.backbone.last)
        subjects = [subject, *([again] if again else []), *beside, *subject.baselines()]
        progress = progress_of(subject, PROGRESS, self.progress)
        ranks = {one.name: self._ranks(one, labelled, progress) for one in subjects}
        progress.forget()
        compared = {one.name: one.layer for one in subjects}
        layers = subject.backbone.feature_info
        rows = [_row(metric, ranks, compared) for stated in self.metrics for metric in stated.of_each(layers)]
        conditions = {
            "layer": subject.layer,
            "train": masked(str(self.train)),
            "test": masked(str(self.test)),
            "images": len(labelled.test_classes),
            "training_images": len(labelled.train_classes),
            "classes": labelled.num_classes,
            "views": "the centre window, of training images too",
            "dimensions": f"at most {DIMENSIONS}",
            **self.schedule._asdict(),
            "seed": self.seed,
            "statistics": statistics_of(subject, subjects),
            "intervals": INTERVALS,
        }
        return Measured(rows=rows, conditions=conditions)

    def _ranks(self, subject: Subject, labelled: Labelled, progress: Progress) -> dict[str, Tensor]:
        """`right_rank` of the test images by each layer's probe, on the CPU."""
        train = subject.sees(labelled.train)
        key = f"{self.schedule} {self.seed} {labelled.train.fingerprint} {train.config.data} {digest(subject.backbone)}"
        features = Features(subject, train, self.batch_size, self.cache_gib)
        probes = Probes(features.shapes, labelled.num_classes, self.schedule).to(run_device())
        done, state = progress.of(subject.name, key)
        if state:
            probes.restore(state)
            log.info("%s: %d of %d epochs were done before", subject.name, done, self.epochs)
        for epoch in range(done, self.epochs):
            batches = self.schedule.batches(len(train.samples), epoch, self.seed)
            for numbers, maps in zip(batches, features.of(batches), strict=True):
                probes.learn(maps, labelled.train_classes[numbers].to(run_device()), epoch)
            progress.keep(subject.name, key, epoch + 1, probes.state())
        return _tested(probes.eval(), subject, labelled)


def _row(metric: Metric, ranks: Mapping[str, Mapping[str, Tensor]], compared: Mapping[str, str]) -> Row:
    """A metric of those that have its layer, or of the layers by which each is compared."""
    own = {name: metric.path[1] if len(metric.path) > 1 else compared[name] for name in ranks}
    found = {name: layers[own[name]] for name, layers in ranks.items() if own[name] in layers}
    return top_row(metric, int(metric.path[-1].removeprefix("top_")), found)


@torch.no_grad()
def _tested(probes: Probes, subject: Subject, labelled: Labelled) -> dict[str, Tensor]:
    ranks = dict[str, list[Tensor]]()
    rest = labelled.test_classes
    with every_sample(subject.sees(labelled.test)) as batches:
        for batch in batches:
            right, rest = rest[: len(batch.image)], rest[len(batch.image) :]
            maps = resized_maps(subject.backbone, batch.image)
            check_finite(maps)
            for layer, scores in probes(maps).items():
                if not scores.isfinite().all():
                    raise UsageError(
                        "a probe has diverged",
                        where="--lr, --momentum, --weight-decay",
                        seen=f"scores of {layer} of {subject.name} that are not finite",
                        hint="lower them",
                    )
                ranks.setdefault(layer, []).append(right_rank(scores.cpu(), right))
    return {layer: torch.cat(parts) for layer, parts in ranks.items()}


class Features:
    """Resized maps of a domain's images, in memory where they fit there, or else computed whenever they are asked for.

    Args:
        subject: whose maps these are.
        images: as it sees them.
        batch_size: the most images that are asked for at once.
        cache_gib: memory that they may take.

    Raises:
        DataError: some are not finite.
    """

    def __init__(self, subject: Subject, images: Domain, batch_size: int, cache_gib: float) -> None:
        self._backbone, self._images, self._batch_size = subject.backbone, images, batch_size
        (first,) = self._computed([torch.zeros(1, dtype=torch.int64)])
        self.shapes = {layer: tuple(map_.shape[1:]) for layer, map_ in first.items()}
        num_bytes = len(images.samples) * sum(map_.nbytes for map_ in first.values())
        self._fits = num_bytes <= cache_gib * 2**30
        self._kept = dict[str, Tensor]()
        if not self._fits:
            log.warning(
                "features of %s take %.1f GiB and --cache-gib is %g: each epoch computes them anew",
                images.samples.path,
                num_bytes / 2**30,
                cache_gib,
            )

    def of(self, batches: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Maps of images by their numbers, batch by batch, on the device."""
        if not self._fits:
            yield from self._computed(batches)
            return
        if not self._kept:
            self._keep()
        for numbers in batches:
            yield {layer: kept[numbers].to(run_device()) for layer, kept in self._kept.items()}

    def _keep(self) -> None:
        count = len(self._images.samples)
        self._kept = {layer: torch.empty(count, *shape) for layer, shape in self.shapes.items()}
        every = torch.arange(count).split(self._batch_size)
        for numbers, maps in zip(every, self._computed(every), strict=True):
            for layer, map_ in maps.items():
                self._kept[layer][numbers] = map_.cpu()

    def _computed(self, batches: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        options = LoaderOptions(device=run_device(), threads=self._images.config.train.threads)
        chosen = (numbers.numpy() for numbers in batches)
        with self._images.chosen_batches(options, chosen, self._batch_size) as loaded:
            for batch in loaded:
                maps = resized_maps(self._backbone, batch.image)
                check_finite(maps)
                yield maps
