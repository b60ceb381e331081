"""Surface normals and depth of photos of rooms: networks fine-tuned on NYU Depth v2, or taken as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastssl.backbones import HeadForm
from fastssl.batch import IMAGE_MEAN, Task
from fastssl.config import Config
from fastssl.errors import DataError, UsageError
from fastssl.evaluate.dense import DenseNetwork, dense_network
from fastssl.evaluate.evaluation import Measured, Metric, Row, Sheet
from fastssl.evaluate.fine_tuning import Training
from fastssl.evaluate.nyud import Frame, NyuFrames, SmallFrames, resized
from fastssl.evaluate.progress import Progress, progress_of
from fastssl.evaluate.subject import Subject
from fastssl.losses import depth_loss, normal_loss
from fastssl.metrics import PLANE_METRICS, DepthMetrics, angle_statistics, angles_between
from fastssl.pictures import angle_picture, grid, image_picture, normal_picture
from fastssl.train import run_device

log = logging.getLogger(__name__)

PROGRESS = "normals_training.pt"
"""In the run's folder, as long as networks are fine-tuned."""
_SHOWN = 6
"""Rows of the picture."""
_GREEN = 1
_POSITIVE = ("height", "width", "batch_size", "lr", "drop_every", "drop_factor", "head_lr", "head_channels")
_NOT_LEARNT = ("frames", "truth", "progress")
_NOT_NEGATIVE = ("steps", "depth_weight", "seed")

Predict = Callable[[Tensor], dict[str, Tensor]]
"""Images as a network sees them, to normals (N, 3, h, w), unit vectors, and the logarithm of depth (N, 1, h, w)."""


def _metrics() -> tuple[Metric, ...]:
    keys = {("normal", "mean"): "Normals of NYU photos, mean error"}
    chosen = sorted((one for one in PLANE_METRICS if one.path[0] != "edge"), key=lambda one: one.path[0] == "depth")
    return tuple(replace(one, key=keys.get((one.path[0], one.path[1]), "")) for one in chosen)


@dataclass(frozen=True, kw_only=True)
class Normals:
    """Surface normals of NYU Depth v2, by a network that is fine-tuned on its training images.

    Learns from the 795 training images of splits.mat and is measured on all pixels of the 654 test images whose true
    normal is known. The backbone learns on, with the heads that a run has for these tasks, or else with new ones;
    --frozen keeps the backbone, and --steps 0 takes a run as it is. Size, batch, optimizer, rates and loss are those of
    Zhang et al., Physically-Based Rendering for Indoor Scene Understanding, CVPR 2017.
    """

    name: ClassVar[str] = "normals"
    title: ClassVar[str] = "Surface normals of NYU photos"
    note: ClassVar[str] = (
        "The angle between predicted and true normals, over all pixels of all test images whose normal is known. Each "
        "network was fine-tuned in the same way, as the conditions say; the mean of the training images is beside it."
    )
    sheet: ClassVar[Sheet | None] = Sheet(
        "normals.png",
        "Test photos in rows: the photo, its true normals, the predicted ones, and the angle between the two",
        "Test photos. Normals are red where they point right, green where up, blue towards the viewer; gray is not "
        "known. Angles are light where small and darkest from 60 degrees on.",
    )
    metrics: ClassVar[tuple[Metric, ...]] = _metrics()

    frames: Annotated[Path, "Folder of nyu_depth_v2_labeled.mat and splits.mat."]
    truth: Annotated[Path, "Folder of true normals, nm_000001.mat and so on, or PNGs of 8 bits."]
    convention: Annotated[str, "Of the true normals, such as rdf-away; asked for, with what fits, if not stated."] = ""
    whole_frame: Annotated[bool, "Count what is known outside rows 45 to 471 and columns 41 to 601 too."] = False
    depth: Annotated[bool, "Learn and measure depth, too, which heads then share the backbone with."] = False
    frozen: Annotated[bool, "Keep the backbone as it is; heads alone learn."] = False
    steps: Annotated[int, "Steps of fine-tuning; 0 = none, for runs that have heads."] = 10_000
    height: Annotated[int, "Rows of what networks see."] = 240
    width: Annotated[int, "Columns of what networks see."] = 320
    colour: Annotated[bool, "Show colours to networks that learnt from gray images, too."] = False
    flip: Annotated[float, "Fraction of the training images that are mirrored."] = 0.5
    batch_size: Annotated[int, "Images of a step."] = 10
    lr: Annotated[float, "Learning rate of RMSprop for what was trained before."] = 1e-4
    head_lr: Annotated[float, "Learning rate of heads that are new."] = 1e-3
    drop_every: Annotated[int, "Steps after which the learning rates drop, again and again."] = 150_000
    drop_factor: Annotated[float, "By which they are multiplied then."] = 0.2
    depth_weight: Annotated[float, "Of the loss of depth, beside 1 for that of normals."] = 0.5
    heads: Annotated[HeadForm, "Form of heads that are new."] = "light"
    head_channels: Annotated[int, "Channels of heads that are new, where their map is largest."] = 64
    seed: Annotated[int, "Of new heads, of the order of the images, and of what is mirrored."] = 0
    progress: Annotated[
        Path | None, "Folder that keeps what is learnt until all is done; by default the run's. Others have none."
    ] = None

    def __post_init__(self) -> None:
        ranges = {name: ("> 0", getattr(self, name) > 0) for name in _POSITIVE}
        ranges |= {name: (">= 0", getattr(self, name) >= 0) for name in _NOT_NEGATIVE}
        ranges["flip"] = ("from 0 to 1", 0 <= self.flip <= 1)
        for name, (expected, is_right) in ranges.items():
            if not is_right:
                where = f"--{name.replace('_', '-')}"
                raise UsageError(
                    "the setting is out of range", where=where, seen=getattr(self, name), expected=expected
                )

    @staticmethod
    def lack(config: Config) -> str:
        """Nothing: any backbone can get heads."""
        return ""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What is predicted."""
        return ("normal", "depth") if self.depth else ("normal",)

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Fine-tune and measure the subject and all others.

        What was learnt is kept in the run's folder once a minute until all is done: the same command, after a kill,
        goes on from there to the same numbers. A subject that is no run keeps it in `progress`.

        Raises:
            DataError: as `NyuFrames`; a loss or a prediction is not finite; or the training data of the run, whose
                untrained network is measured too, are not those that it was trained on.
            UsageError: as `NyuFrames`; a network cannot see images of this size, or has no heads and is not to learn.
        """
        frames = NyuFrames(self.frames, self.truth, self.convention, whole_frame=self.whole_frame)
        small = SmallFrames(frames, self.height, self.width)
        progress = progress_of(subject, PROGRESS, self.progress)
        results, heads, pictures = dict[str, Mapping[str, float | None]](), dict[str, str](), dict[str, Image.Image]()
        for one in (subject, *beside, *subject.baselines()):
            network = dense_network(one, self.tasks, self.heads, self.head_channels, self.seed)
            heads[one.name] = network.origin
            if self.steps:
                self._train(network, one, frames, small, progress)
            else:
                _refuse_new_heads(one, network)
            predict = self._predictor(network, one)
            results[one.name] = self._measure(predict, frames, one.name)
            if one is subject:
                pictures["normals.png"] = self._sheet(predict, frames)
        results["constant"] = self._measure(self._constant(frames, small), frames, "constant")
        progress.forget()
        rows = [Row(one, {name: found["/".join(one.path)] for name, found in results.items()}) for one in self._rows()]
        return Measured(rows=rows, conditions=self._conditions(frames, heads), pictures=pictures)

    def _rows(self) -> list[Metric]:
        return [metric for metric in self.metrics if metric.path[0] in self.tasks]

    def _conditions(self, frames: NyuFrames, heads: Mapping[str, str]) -> dict[str, object]:
        settings = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "progress"}
        return {
            **{name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
            "images": len(frames.test),
            "training_images": len(frames.train),
            "pixels": "all of 480 x 640 that count, predictions enlarged to them",
            "optimizer": "RMSprop, mean of squares over 100 steps, no momentum",
            "loss": "1 - cosine, and Eigen's of log depth" if self.depth else "1 - cosine",
            "head_origin": dict(heads),
        }

    def _train(
        self, network: DenseNetwork, subject: Subject, frames: NyuFrames, small: SmallFrames, progress: Progress
    ) -> None:
        rates = {"backbone": self.lr, "heads": self.head_lr if network.has_new_heads else self.lr}
        groups = [
            {"params": [one for one in getattr(network, part).parameters() if one.requires_grad], "lr": lr}
            for part, lr in rates.items()
            if not (self.frozen and part == "backbone")
        ]
        network.train()
        network.keep_backbone(self.frozen)
        settings = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _NOT_LEARNT}
        key = f"{settings} {frames.fingerprint} {self._is_gray(subject)} {network.origin}"
        optimizer = torch.optim.RMSprop([group for group in groups if group["params"]], alpha=0.99, eps=1e-8)
        Training(
            steps=self.steps, lr_factor=lambda step: self.drop_factor ** (step // self.drop_every), seed=self.seed
        ).run(
            network,
            optimizer,
            lambda step: self._loss(network, subject, frames, small, step),
            progress,
            subject.name,
            key,
        )
        network.eval()

    def _loss(
        self, network: DenseNetwork, subject: Subject, frames: NyuFrames, small: SmallFrames, step: int
    ) -> Tensor:
        batch = self.training_batch(frames.train, small, step)
        predicted = network(self._seen(batch.image, subject))
        known = batch.normal.any(dim=1, keepdim=True)
        loss = normal_loss(predicted["normal"], batch.normal, known)
        if self.depth:
            loss = loss + self.depth_weight * depth_loss(predicted["depth"], batch.depth, batch.depth > 0, "eigen")
        return loss

    def training_batch(self, numbers: Sequence[int], small: SmallFrames, step: int) -> Frame:
        """The images and truth of a step, by `seed` and its number alone: pass after pass in random orders."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        passes = {place // len(numbers) for place in places}
        orders = {one: np.random.default_rng((self.seed, one)).permutation(len(numbers)) for one in passes}
        chosen = [numbers[orders[place // len(numbers)][place % len(numbers)]] for place in places]
        flipped = torch.from_numpy(np.random.default_rng((self.seed, step, 1)).random(len(chosen)) < self.flip)
        return mirrored(Frame(*(plane.to(run_device()) for plane in small.of(chosen))), flipped.to(run_device()))

    def _is_gray(self, subject: Subject) -> bool:
        return subject.config.data.gray != "off" and not self.colour

    def _seen(self, image: Tensor, subject: Subject) -> Tensor:
        """(N, 3, h, w) uint8 as a network sees it: RGB / 255 minus the mean, or green thrice if it learnt from gray."""
        seen = image.float() / 255 - torch.from_numpy(IMAGE_MEAN).view(3, 1, 1).to(image.device)
        return seen[:, _GREEN : _GREEN + 1].expand(-1, 3, -1, -1) if self._is_gray(subject) else seen

    def _predictor(self, network: DenseNetwork, subject: Subject) -> Predict:
        return lambda image: network(self._seen(image, subject))

    def _constant(self, frames: NyuFrames, small: SmallFrames) -> Predict:
        """The mean normal, and the mean depth, of all that is known of the training images."""
        normal, depth, count = torch.zeros(3, dtype=torch.float64), 0.0, 0
        for number in frames.train:
            batch = small.of([number])
            normal += batch.normal.double().sum(dim=(0, 2, 3))
            depth, count = depth + float(batch.depth.double().sum()), count + int((batch.depth > 0).sum())
        planes = {"normal": F.normalize(normal, dim=0), "depth": torch.tensor([depth / max(count, 1)]).log()}
        return lambda image: {
            task: plane.to(image.device)[None, :, None, None].expand(len(image), -1, *image.shape[2:])
            for task, plane in planes.items()
        }

    @torch.no_grad()
    def _measure(self, predict: Predict, frames: NyuFrames, name: str) -> dict[str, float | None]:
        """The metrics of all test images, by their paths."""
        angles, depths = list[Tensor](), DepthMetrics()
        for number in frames.test:
            frame = frames.frame(number)
            predicted = _enlarged(predict(self._small_image(frame)), *frame.image.shape[1:])
            known = frame.normal.any(dim=0)
            normal = predicted["normal"][0].cpu()
            if not normal.isfinite().all():
                hint = "lower the learning rates" if self.steps else None
                raise DataError("predicted normals are not finite", where=f"{name}, frame {number}", hint=hint)
            angles.append(angles_between(normal[:, known].T, frame.normal[:, known].T))
            if self.depth:
                depths.add(predicted["depth"].cpu(), frame.depth[None], frame.depth[None] > 0)
        found = {f"normal/{metric}": value for metric, value in angle_statistics(torch.cat(angles).numpy()).items()}
        if not self.depth:
            return {**found}
        if depths.lack:
            log.warning("depth (%s) has no value: %s", name, depths.lack)
        return {**found, **{f"depth/{metric}": value for metric, value in depths.result().items()}}

    def _small_image(self, frame: Frame) -> Tensor:
        return resized(frame, self.height, self.width).image[None].to(run_device())

    @torch.no_grad()
    def _sheet(self, predict: Predict, frames: NyuFrames) -> Image.Image:
        rows = []
        for number in frames.test[:: -(-len(frames.test) // _SHOWN)]:
            frame = resized(frames.frame(number), self.height, self.width)
            predicted = predict(frame.image[None].to(run_device()))["normal"][0].cpu().float()
            truth = frame.normal.float()
            known = truth.any(dim=0)
            angle = torch.rad2deg(torch.acos((predicted * truth).sum(dim=0).clamp(-1, 1)))
            image = image_picture(frame.image.numpy() / 255, np.zeros(3))
            pictures = [normal_picture(truth.numpy()), normal_picture(predicted.numpy())]
            rows.append([image, *pictures, angle_picture(angle.numpy(), known.numpy())])
        return grid(rows, ["image", "normals: true", "predicted", "angle"])


def _refuse_new_heads(subject: Subject, network: DenseNetwork) -> None:
    if network.has_new_heads:
        raise UsageError(
            "without any step of fine-tuning new heads would predict nothing",
            where=subject.name,
            seen=f"heads that are {network.origin}, and --steps 0",
            hint="give --steps, or measure a run that has learnt these tasks",
        )


def mirrored(batch: Frame, which: Tensor) -> Frame:
    """Some of a batch's images, `which` (N,) bool, with left and right swapped; so their normals' x is negated."""
    turned = Frame(*(plane.flip(-1) for plane in batch))
    sign = torch.tensor([-1, 1, 1], dtype=batch.normal.dtype, device=batch.normal.device).view(3, 1, 1)
    turned = turned._replace(normal=turned.normal * sign)
    return Frame(*(torch.where(which[:, None, None, None], *pair) for pair in zip(turned, batch, strict=True)))


def _enlarged(predicted: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
    """Predictions at the truth's size, linearly: normals in float64 and of unit length again, depth in metres."""
    large = {
        task: F.interpolate(plane.double(), (height, width), mode="bilinear", align_corners=False)
        for task, plane in predicted.items()
    }
    large["normal"] = F.normalize(large["normal"], dim=1)
    if "depth" in large:
        large["depth"] = large["depth"].exp()
    return large
