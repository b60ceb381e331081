"""Results of an evaluation in the run folder: kept where that can be written to, and told either way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from fastssl.errors import MachineError
from fastssl.faults import machine_error
from fastssl.pictures import write_picture
from fastssl.telemetry import merge_summary

log = logging.getLogger(__name__)


def keep_results(run: Path, values: Mapping[str, object], pictures: Mapping[str, Image.Image] | None = None) -> None:
    """Add sections to the run's summary and pictures to its samples.

    Where the folder cannot be written to, a warning says so and why, and that is all: the numbers were measured, and
    whoever asked for them gets them.

    Args:
        run: the run folder.
        values: as for `merge_summary`.
        pictures: by file name.
    """
    try:
        merge_summary(run, values)
        for name, picture in (pictures or {}).items():
            write_picture(picture, run / "samples" / name)
    except (OSError, MachineError) as error:
        why = error if isinstance(error, MachineError) else machine_error(error)
        reason = why.what if why.seen is None else f"{why.what}: {why.seen}"
        log.warning("these results could not be kept in %s (%s)", run, reason)
