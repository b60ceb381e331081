"""The settings of an evaluation that are a published protocol, and what differs from it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import fields
from typing import Any, cast

from fastssl.evaluate.evaluation import Evaluation

log = logging.getLogger(__name__)


def protocol_of(evaluation: Evaluation, others: Collection[str]) -> dict[str, Any]:
    """The settings by name, but for the `others`, such as paths, which are no part of a protocol."""
    names = [field.name for field in fields(cast(Any, evaluation)) if field.name not in others]
    return {name: getattr(evaluation, name) for name in names}


def deviations_of(evaluation: Evaluation, others: Collection[str]) -> dict[str, str]:
    """What differs from the protocol, whose settings are the defaults, in words by name; a warning tells it, too."""
    published = {field.name: field.default for field in fields(cast(Any, evaluation))}
    found = {
        name: f"{value} instead of {published[name]}"
        for name, value in protocol_of(evaluation, others).items()
        if value != published[name]
    }
    if found:
        told = ", ".join(f"{name} {words}" for name, words in found.items())
        log.warning("these numbers are not those of the protocol: %s", told)
    return found
