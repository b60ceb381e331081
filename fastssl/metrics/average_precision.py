"""Average precision of a ranking, in the three forms that PASCAL VOC's results have been told in.

Rankings are of scores, highest first. What has the same score is taken in the order that is worst: what is wrong first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_RECALLS = np.arange(11) / 10


def average_precision(scores: ArrayLike, positives: ArrayLike) -> float:
    """Precision at each recall that is reached, weighted by how far recall rises there, without interpolation.

    It is `sklearn.metrics.average_precision_score` of scores from which positives lose too little to pass another one,
    as Kraehenbuehl's evaluation of VOC takes it (github.com/philkr/voc-classification, src/train_cls.py).

    Args:
        scores: (N,) finite numbers.
        positives: (N,) bools.

    Raises:
        ValueError: nothing is positive.
    """
    right, last = _ranked(scores, positives)
    precision, recall = _curve(right, int(right.sum()))
    # Positives of one score come in at once, behind the last of them.
    return float(np.sum(np.diff(recall[last], prepend=0.0) * precision[last]))


def average_precision_11_points(scores: ArrayLike, positives: ArrayLike) -> float:
    """`interpolated_at_11_points` of a ranking; arguments as of `average_precision`."""
    right, _ = _ranked(scores, positives)
    return interpolated_at_11_points(right, int(right.sum()))


def interpolated_at_11_points(right: ArrayLike, positives: int) -> float:
    """The mean over the recalls 0, 0.1, ... 1 of the highest precision at this recall or a higher one.

    VOC's measure until 2009 (Everingham et al., *The PASCAL Visual Object Classes (VOC) Challenge*, IJCV 2010,
    section 3.4.1).

    Args:
        right: (N,) bools, from the highest score to the lowest: whether each is right. It may lack positives.
        positives: how many there are in all.

    Raises:
        ValueError: nothing is positive.
    """
    precision, recall = _curve(right, positives)
    # A recall of 3 in 10 has to reach 0.3, whatever they are in binary.
    reached = [precision[recall >= least - 1e-9] for least in _RECALLS]
    return float(np.mean([part.max(initial=0.0) for part in reached]))


def interpolated_area(right: ArrayLike, positives: int) -> float:
    """The area below the curve of precision over recall, made monotone: at each recall the highest precision at this
    or a higher one.

    VOC's measure from 2010 on (Everingham et al., *The PASCAL Visual Object Classes Challenge: A Retrospective*, IJCV
    2015, section 2.2); arguments and errors as of `interpolated_at_11_points`.
    """
    precision, recall = _curve(right, positives)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * highest))


def _ranked(scores: ArrayLike, positives: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each is positive, from the highest score on, and whether the next one differs in score or in that."""
    scores, positives = np.asarray(scores, np.float64), np.asarray(positives, bool)
    order = np.lexsort((positives, -scores))
    scores, positives = scores[order], positives[order]
    changes = (np.diff(scores) != 0) | (positives[1:] != positives[:-1])
    return positives, np.append(changes, np.ones(min(1, len(scores)), bool))


def _curve(right: ArrayLike, positives: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision and recall behind each place of a ranking."""
    if positives < 1:
        raise ValueError("an average precision needs a positive")
    hits = np.cumsum(np.asarray(right, bool), dtype=np.float64)
    return hits / np.arange(1, len(hits) + 1), hits / positives
