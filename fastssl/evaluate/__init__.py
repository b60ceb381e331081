"""Measurements of a run on data it has not seen, one file per protocol."""

from fastssl.evaluate.domain import evaluate_domain
from fastssl.evaluate.neighbours import evaluate_neighbours
from fastssl.evaluate.tasks import evaluate_tasks

__all__ = ["evaluate_domain", "evaluate_neighbours", "evaluate_tasks"]
