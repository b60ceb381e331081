"""The export of a run: checked, written, read back, and only then there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastssl.errors import FastsslError, UsageError
from fastssl.export import Exporter, Weights, find_exporter
from fastssl.faults import machine_fault, machine_faults_named
from fastssl.files import complete_or_absent
from fastssl.train import load_trained
from fastssl.train.checkpoint import named_checkpoint

TOLERANCE = 1e-4
"""By which features may differ, as a fraction of the largest value of a map in float32; rounding alone leaves less."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written."""

    path: str
    format: str
    backbone: str
    step: int
    num_bytes: int
    difference: float
    """The largest of its features from the run's, as a fraction of the largest value of a map."""
    usage: str
    """A line of Python that loads it."""


def export_run(run: Path, out: Path, name: str, *, layer: str | None = None, checkpoint: str | None = None) -> Exported:
    """Write a run's backbone in the form of another library; a file of that name is replaced.

    Args:
        run: the run folder, or one of its checkpoints.
        out: the file; its folder is there.
        name: of the format.
        layer: the layer whose map is wanted; what a format does with it, its exporter says.
        checkpoint: ``best``, or the number of a step; None = the newest.

    Raises:
        UsageError: there is no such format, layer or checkpoint, the format cannot hold the backbone, or a package is
            not installed.
        DataError: the folder is no run, or has no sound checkpoint.
        FastsslError: the file does not give the run's features again; it is not there then.
        MachineError: it cannot be written.
    """
    exporter = find_exporter(name)
    if out.is_dir():
        raise UsageError("a folder stands where the file is to be", where=out, hint="give the name of a file")
    if not out.parent.is_dir():
        raise UsageError("there is no folder for the file", where=out.parent, hint="make it, or name another one")
    trained = load_trained(run if checkpoint is None else named_checkpoint(run, checkpoint))
    method = trained.method
    if layer is not None:
        method.backbone.check_layer(layer)
    weights = Weights(
        backbone=method.backbone,
        config=trained.config,
        step=trained.step,
        compared_layer=method.compared_layer,
        layer=layer,
    )
    return export_weights(weights, exporter, out)


def export_weights(weights: Weights, exporter: type[Exporter], out: Path) -> Exported:
    """As `export_run`, of weights that are at hand."""
    exporter.check(weights)
    with machine_faults_named(out), complete_or_absent(out) as file:
        exporter.write(weights, file)
        file.flush()
        num_bytes = file.tell()
        difference = _verified(weights, exporter, Path(file.name), out)
    return Exported(
        path=str(out),
        format=exporter.name,
        backbone=weights.backbone.name,
        step=weights.step,
        num_bytes=num_bytes,
        difference=difference,
        usage=exporter.usage(weights, out),
    )


def _verified(weights: Weights, exporter: type[Exporter], path: Path, out: Path) -> float:
    """The difference of what was written, which is not kept if it is too large."""
    where = f"{out}, as {exporter.name}"
    try:
        difference = exporter.verify(weights, path)
    except Exception as error:  # whatever the library has that cannot load it
        if machine_fault(error) is not None:
            raise
        words = str(error).splitlines()[0] if str(error) else repr(error)
        raise FastsslError("what was written cannot be loaded, so it was not kept", where=where, seen=words) from error
    if difference > TOLERANCE:
        raise FastsslError(
            "what was written gives other features than the run, so it was not kept",
            where=where,
            seen=f"a difference of {difference:.2g} of a map's largest value",
            expected=f"at most {TOLERANCE:g}",
            hint="if the run's own features are not finite, export an earlier checkpoint",
        )
    return difference
