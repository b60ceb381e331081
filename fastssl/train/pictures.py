"""The picture of predictions beside the ground truth that trainings and evaluations leave behind."""

from __future__ import annotations

import torch
from PIL import Image

from fastssl.batch import IMAGE_MEAN, SyntheticBatch
from fastssl.models import Networks
from fastssl.pictures import Picture, depth_picture, edge_picture, grid, image_picture, normal_picture

_NEAR, _FAR = 0.5, 10.0
_TITLES = {"depth": "depth", "normal": "normals", "edge": "contours"}


@torch.no_grad()
def prediction_sheet(networks: Networks, batch: SyntheticBatch, rows: int = 6) -> Image.Image:
    """One row per image: the input, then each task's ground truth and prediction.

    The networks predict in evaluation mode and are left in the mode that they were in.

    Sync: waits for the predictions.
    """
    backbone, heads = networks.backbone, networks.heads
    training = backbone.training
    backbone.eval(), heads.eval()
    predictions = {task: values.float().cpu() for task, values in heads(backbone(batch.image[:rows])["fc7"]).items()}
    backbone.train(training), heads.train(training)
    headings = ["image"]
    for task in predictions:
        headings += [f"{_TITLES[task]}: true", "predicted"]
    images = batch.image[:rows].float().cpu().numpy()
    pictures = [[image_picture(image, IMAGE_MEAN)] for image in images]
    for row, line in enumerate(pictures):
        for task, values in predictions.items():
            line += [_truth(task, batch, row), _prediction(task, values[row])]
    return grid(pictures, headings)


def _truth(task: str, batch: SyntheticBatch, row: int) -> Picture:
    plane = getattr(batch, task)[row].float().cpu().numpy()
    if task == "depth":
        return depth_picture(plane[0], _NEAR, _FAR)
    return normal_picture(plane) if task == "normal" else edge_picture(plane[0])


def _prediction(task: str, values: torch.Tensor) -> Picture:
    if task == "depth":
        return depth_picture(values[0].exp().numpy(), _NEAR, _FAR)
    return normal_picture(values.numpy()) if task == "normal" else edge_picture(values[0].sigmoid().numpy())
