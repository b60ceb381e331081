"""Objects of PASCAL VOC: how well a Fast R-CNN finds them that began from the features."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from fastssl.config import Config
from fastssl.errors import DataError, UsageError
from fastssl.evaluate.detections import (
    LEAST_OVERLAP,
    Detections,
    Objects,
    read_detections,
    right_ones,
    write_detections,
)
from fastssl.evaluate.detector import Detecting, Lessons, Photo, fingerprint, regions_to_learn
from fastssl.evaluate.evaluation import Measured, Metric, Row, Sheet
from fastssl.evaluate.fast_rcnn import FastRCNN, torchvision_operators
from fastssl.evaluate.fine_tuning import Training
from fastssl.evaluate.progress import Progress, progress_of
from fastssl.evaluate.proposals import read_proposals
from fastssl.evaluate.protocol import deviations_of, protocol_of
from fastssl.evaluate.regions import Offsets, Sampling
from fastssl.evaluate.subject import Subject
from fastssl.evaluate.voc_devkit import VOC_CLASSES, VocDevkit, VocObject, Year, chosen_classes
from fastssl.metrics import interpolated_area, interpolated_at_11_points
from fastssl.sources.regular import open_file
from fastssl.train import run_device

log = logging.getLogger(__name__)

PROGRESS = "voc_det.pt"
"""In the run's folder, as long as detectors learn."""
_PREDICTIONS = "predictions"
"""The column of detections that were made elsewhere."""
_SPLITS: Mapping[Year, tuple[str, str]] = {"VOC2007": ("trainval", "test"), "VOC2012": ("train", "val")}
"""To learn from and to test on."""
_DATA = ("devkit", "train_proposals", "test_proposals", "detections", "out", "year", "seed", "progress")
"""Fields whose values are no part of the protocol."""
_OF_THE_TEST = ("test_scale", "test_longest", "suppression", "per_image", "mean_per_image")
"""Fields on which the training does not depend."""
_RANGES = {
    **dict.fromkeys(("seed", "weight_decay"), (0, math.inf)),
    **dict.fromkeys(("lr", "foreground_overlap"), (1e-12, 1)),
    **dict.fromkeys(("momentum", "dropout"), (0, math.nextafter(1, 0))),
    **dict.fromkeys(("foreground", "background_overlap", "suppression", "drop_factor"), (0, 1)),
}
"""Of the numbers that may be less than 1."""


@dataclass(frozen=True, kw_only=True)
class VocDetection:
    """How well a Fast R-CNN that begins from the features finds objects of PASCAL VOC.

    R. Girshick, Fast R-CNN, ICCV 2015, as Kraehenbuehl et al., ICLR 2016, and those after them measure features: scales
    drawn for each photo, 150,000 steps, all layers learn. Proposed boxes are made beforehand. Batch norms are folded
    into the convolutions. Without RUN it scores the files of --detections.
    """

    name: ClassVar[str] = "voc-det"
    title: ClassVar[str] = "Objects of PASCAL VOC by Fast R-CNN"
    note: ClassVar[str] = (
        "The whole network learns to find objects, beginning from the weights that are measured. Average precision is "
        "VOC's: of 2007 at 11 recalls, of 2012 the area below the curve. A detection has to overlap its object by "
        "half; difficult objects count neither as found nor as missed. The settings that differ from the protocol's "
        "are under deviations in summary.json."
    )
    sheet: ClassVar[Sheet | None] = None
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric(
            path=("mean_ap",),
            name="Mean average precision",
            key="Objects of VOC, mean AP",
            unit="%",
            better="higher",
            digits=1,
            factor=100,
        ),
        *(
            Metric(
                path=("classes", name),
                name=name,
                group="Average precision of each class",
                unit="%",
                better="higher",
                digits=1,
                factor=100,
            )
            for name in VOC_CLASSES
        ),
    )

    devkit: Annotated[Path, "VOCdevkit, the folder that holds it, or the folder of the year."]
    train_proposals: Annotated[
        Path | None, "Proposed boxes of the training photos: a .mat file of selective search, or JSON, ID to boxes."
    ] = None
    test_proposals: Annotated[Path | None, "Proposed boxes of the test photos."] = None
    detections: Annotated[Path | None, "Folder of comp4_det_SPLIT_CLASS.txt files to score, without RUN."] = None
    out: Annotated[Path | None, "Folder for these files of what is detected, in a folder of each column's name."] = None
    year: Annotated[Year, "2007: trainval and test; 2012: train and val."] = "VOC2007"
    classes: Annotated[str, "Those that are learnt and tested, with commas between them."] = "all"
    iterations: Annotated[int, "Steps of SGD."] = 150_000
    lr: Annotated[float, "Learning rate of the first steps; of biases twice that."] = 0.001
    momentum: Annotated[float, "Of SGD."] = 0.9
    weight_decay: Annotated[float, "Of weights; biases have none."] = 5e-4
    drop_every: Annotated[int, "Steps after which the learning rate drops, again and again."] = 50_000
    drop_factor: Annotated[float, "By which it is multiplied then."] = 0.1
    dropout: Annotated[float, "Of the two fully connected layers."] = 0.5
    frozen: Annotated[str, "Deepest layer that does not learn, such as conv1."] = "none"
    batch_size: Annotated[int, "Photos of a step."] = 2
    regions: Annotated[int, "Regions of a photo that a step learns from, at most."] = 64
    foreground: Annotated[float, "Part of them that shows objects, at most."] = 0.25
    foreground_overlap: Annotated[float, "Overlap with an object from which on a region shows it."] = 0.5
    background_overlap: Annotated[float, "Overlap from which on a region that shows none is background."] = 0.1
    flip: Annotated[bool, "Learn from each photo also as a mirror shows it."] = True
    difficult: Annotated[bool, "Learn from difficult objects too."] = True
    scales: Annotated[str, "Pixels of the shorter side in training, one of which is drawn for each photo."] = (
        "480,576,688,864,1200"
    )
    longest: Annotated[int, "Pixels of the longer side in training, at most."] = 2000
    test_scale: Annotated[int, "Pixels of the shorter side in the test."] = 600
    test_longest: Annotated[int, "Pixels of the longer side in the test, at most."] = 1000
    suppression: Annotated[float, "Overlap above which only the higher score of two detections stays."] = 0.3
    per_image: Annotated[int, "Detections of a class in a photo before that, at most."] = 100
    mean_per_image: Annotated[int, "The same, the mean over all photos."] = 40
    seed: Annotated[int, "Of drawn weights, photos, regions and dropout."] = 0
    progress: Annotated[Path | None, "Folder that keeps what was learnt, against a kill; by default the run's."] = None

    def __post_init__(self) -> None:
        chosen_classes(self.classes, "--classes")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                _check(field.name, value)
        if round(self.foreground * self.regions) < 1:
            what, seen = "no region that shows an object would be learnt from", f"{self.foreground:g} of {self.regions}"
            raise UsageError(what, where="--foreground, --regions", seen=seen, expected="one of a photo at least")
        if self.background_overlap >= self.foreground_overlap:
            raise UsageError(
                "no region would be background",
                where="--background-overlap",
                seen=self.background_overlap,
                expected=f"less than --foreground-overlap, {self.foreground_overlap:g}",
            )
        if not all(text.strip().isdecimal() and int(text) > 0 for text in self.scales.split(",")):
            expected = "numbers of pixels with commas between them"
            raise UsageError("the setting cannot be read", where="--scales", seen=self.scales, expected=expected)

    @staticmethod
    def lack(config: Config) -> str:
        """Nothing: any backbone can begin a detector; one that cannot is named when its detector is built."""
        return ""

    def __call__(self, subject: Subject, beside: Sequence[Subject]) -> Measured:
        """Train a detector from each subject and test it.

        What was learnt is kept once a minute in the run's folder, or in `progress`, until all is done: the same
        command, after a kill, goes on from there to the same numbers.

        Raises:
            DataError: the devkit, a photo or the proposed boxes cannot be used; or the training data are not those of
                the run.
            UsageError: proposals are not given, or torchvision is not installed.
        """
        if self.train_proposals is None or self.test_proposals is None:
            missing = "--test-proposals" if self.train_proposals else "--train-proposals"
            hint = "selective search's .mat file of the split, or JSON; fastssl proposes no boxes itself"
            raise UsageError("detection needs proposed boxes of photos", where=missing, hint=hint)
        torchvision_operators()
        devkit = VocDevkit(self.devkit, self.year)
        train_split, test_split = _SPLITS[self.year]
        truth = self._truth(devkit, test_split)
        tested = _photos(devkit, test_split, self.test_proposals)
        for photos in (tested, learnt_from := _photos(devkit, train_split, self.train_proposals)):
            _warn_of_boxes_outside(devkit, photos)
        learnt = [self._with_objects(devkit, one) for one in learnt_from]
        deviations = deviations_of(self, _DATA)
        progress = progress_of(subject, PROGRESS, self.progress)
        subjects = [subject, *beside, *subject.baselines()]
        # All of them first: what cannot learn is refused before anything does.
        networks = {one.name: self._network(one) for one in subjects}
        if self.out is not None:  # a folder that cannot be is told before anything is learnt
            self.out.mkdir(parents=True, exist_ok=True)
        precisions = dict[str, dict[str, float]]()
        for one in subjects:
            network = networks[one.name]
            offsets = self._train(network, learnt, progress, one.name)
            found = self._detecting.detect(network, tested, offsets, list(truth), one.name)
            if self.out is not None:
                write_detections(self.out / one.name, test_split, found)
            precisions[one.name] = self._precisions(found, truth)
        progress.forget()
        conditions = {
            **self._conditions(tested),
            "train_split": train_split,
            "training_images": len(learnt),
            "train_proposals": str(self.train_proposals),
            "test_proposals": str(self.test_proposals),
            **protocol_of(self, _DATA),
            "seed": self.seed,
            "network": {name: network.words for name, network in networks.items()},
            "views": "whole photos in colour, RGB less the mean of images",
            "deviations": deviations,
        }
        return Measured(rows=_rows(precisions), conditions=conditions)

    def scored(self) -> Measured | None:
        """The average precisions of the files of `detections`, in the column `predictions`; None without that folder.

        Raises:
            DataError: a file is missing or damaged, or the devkit cannot be used.
        """
        if self.detections is None:
            return None
        devkit = VocDevkit(self.devkit, self.year)
        _, split = _SPLITS[self.year]
        truth, images = self._truth(devkit, split), devkit.images(split)
        found = read_detections(self.detections, split, list(truth), images)
        conditions = {**self._conditions(images), "classes": self.classes, "detections": str(self.detections)}
        return Measured(rows=_rows({_PREDICTIONS: self._precisions(found, truth)}), conditions=conditions)

    @property
    def _names(self) -> tuple[str, ...]:
        return chosen_classes(self.classes, "--classes")

    def _conditions(self, images: Sequence[object]) -> dict[str, object]:
        """Those of the measure itself."""
        _, split = _SPLITS[self.year]
        measure = "mean over 11 recalls" if self.year == "VOC2007" else "area below the monotone curve"
        return {
            "devkit": str(self.devkit),
            "year": self.year,
            "split": split,
            "images": len(images),
            "average_precision": f"{measure}, overlap of {LEAST_OVERLAP:g}, difficult objects left out",
        }

    def _truth(self, devkit: VocDevkit, split: str) -> dict[str, dict[str, Objects]]:
        """The objects of each class by photos' IDs.

        Raises:
            DataError: a class has no object that counts.
        """
        objects = {identity: devkit.objects(identity) for identity in devkit.images(split)}
        truth = {name: _of_class(objects, name) for name in self._names}
        for name, by_image in truth.items():
            if not _count(by_image):
                raise DataError(
                    "no photo of the split shows an object of the class that counts",
                    where=devkit.path,
                    seen=f"{name}, {split}",
                    hint="leave the class out by --classes",
                )
        return truth

    def _with_objects(self, devkit: VocDevkit, photo: Photo) -> Photo:
        """A photo that is learnt from, with the objects that are."""
        kept = [
            one
            for one in devkit.objects(photo.identity)
            if one.name in self._names and (self.difficult or not one.difficult)
        ]
        boxes = torch.tensor([one.box for one in kept], dtype=torch.float64).reshape(-1, 4)
        classes = torch.tensor([1 + self._names.index(one.name) for one in kept], dtype=torch.int64)
        return photo._replace(objects=boxes, classes=classes)

    def _network(self, subject: Subject) -> FastRCNN:
        return FastRCNN(
            subject.backbone,
            len(self._names),
            fc_channels=subject.config.model.fc_channels,
            dropout=self.dropout,
            frozen=self.frozen,
            seed=self.seed,
        ).to(run_device())

    def _train(self, network: FastRCNN, photos: Sequence[Photo], progress: Progress, name: str) -> Offsets:
        lessons = self._lessons(photos)
        groups = network.parameter_groups(self.lr, self.weight_decay)
        optimizer = torch.optim.SGD(groups, self.lr, self.momentum)
        training = Training(
            steps=self.iterations, lr_factor=lambda step: self.drop_factor ** (step // self.drop_every), seed=self.seed
        )
        settings = protocol_of(self, (*_DATA, *_OF_THE_TEST))
        key = f"{settings} {fingerprint(photos)}"
        network.train()
        training.run(network, optimizer, lambda step: lessons.loss(network, step), progress, name, key)
        return lessons.offsets

    def _lessons(self, photos: Sequence[Photo]) -> Lessons:
        sampling = Sampling(
            count=self.regions,
            foreground_fraction=self.foreground,
            foreground_overlap=self.foreground_overlap,
            background_least=self.background_overlap,
        )
        photos, regions = regions_to_learn(photos, sampling)
        return Lessons(
            photos=photos,
            regions=regions,
            offsets=Offsets.of(regions, len(self._names), self.foreground_overlap, flip=self.flip),
            sampling=sampling,
            images_per_step=self.batch_size,
            scales=[int(text) for text in self.scales.split(",")],
            longest=self.longest,
            flip=self.flip,
            seed=self.seed,
        )

    @property
    def _detecting(self) -> Detecting:
        return Detecting(
            scale=self.test_scale,
            longest=self.test_longest,
            per_image=self.per_image,
            mean_per_image=self.mean_per_image,
            suppression=self.suppression,
        )

    def _precisions(
        self, found: Mapping[str, Detections], truth: Mapping[str, Mapping[str, Objects]]
    ) -> dict[str, float]:
        """The average precision of each class."""
        measure = interpolated_at_11_points if self.year == "VOC2007" else interpolated_area
        return {name: measure(right_ones(found[name], by_image), _count(by_image)) for name, by_image in truth.items()}


def _check(name: str, value: float) -> None:
    least, most = _RANGES.get(name, (1, math.inf))
    if not least <= value <= most:
        expected = f">= {least:g}" if most == math.inf else f"{least:g} to {most:g}"
        where = f"--{name.replace('_', '-')}"
        raise UsageError("the setting is out of range", where=where, seen=value, expected=expected)


def _photos(devkit: VocDevkit, split: str, proposals: Path) -> list[Photo]:
    """The photos of a split, without their objects."""
    paths = {identity: devkit.image_path(identity) for identity in devkit.images(split)}
    sizes = {identity: _size(path) for identity, path in paths.items()}
    boxes = read_proposals(proposals, sizes)
    nothing = torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    return [
        Photo(identity, path, sizes[identity], *nothing, torch.from_numpy(boxes[identity]))
        for identity, path in paths.items()
    ]


def _warn_of_boxes_outside(devkit: VocDevkit, photos: Sequence[Photo]) -> None:
    """VOC's own objects lie within their photos; those of a devkit that was made otherwise may not."""
    outside = [
        one.identity
        for one in photos
        for x1, y1, x2, y2 in (thing.box for thing in devkit.objects(one.identity))
        if min(x1, y1) < 0 or x2 > one.size[0] - 1 or y2 > one.size[1] - 1
    ]
    if outside:
        log.warning(
            "%d objects reach beyond their photos, such as one of %s; their boxes are taken as they are",
            len(outside),
            outside[0],
        )


def _size(path: Path) -> tuple[int, int]:
    """Width and height of a photo, by its header."""
    try:
        with open_file(path, "a photo") as file, Image.open(file) as image:
            return image.size
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        seen = "no image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DataError("a photo cannot be read", where=path, seen=seen) from error


def _of_class(objects: Mapping[str, Sequence[VocObject]], name: str) -> dict[str, Objects]:
    found = dict[str, Objects]()
    for identity, every in objects.items():
        if own := [one for one in every if one.name == name]:
            boxes = np.array([one.box for one in own], np.float64)
            found[identity] = Objects(boxes, np.array([one.difficult for one in own]))
    return found


def _count(by_image: Mapping[str, Objects]) -> int:
    """Objects that count."""
    return sum(int((~own.difficult).sum()) for own in by_image.values())


def _rows(precisions: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """The mean, and the classes that were chosen, by the subjects' names."""
    mean, *each = VocDetection.metrics
    chosen = next(iter(precisions.values()))
    return [
        Row(mean, {subject: float(np.mean(list(own.values()))) for subject, own in precisions.items()}),
        *(
            Row(metric, {subject: own[metric.name] for subject, own in precisions.items()})
            for metric in each
            if metric.name in chosen
        ),
    ]
