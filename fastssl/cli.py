"""The commands. This module parses and composes; what a command does lives where its name says.

Data goes to stdout, words to stderr. Errors become exit codes as `fastssl.errors` lists them. Every import that costs
time is made inside the command that needs it, so that `fastssl --help` answers at once.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from fastssl import __version__
from fastssl.addresses import local_path
from fastssl.config import dataset_weights
from fastssl.errors import DataError, FastsslError, MachineError, UsageError, one_line, printable
from fastssl.faults import machine_error, machine_fault, machine_faults_named, memory_is_short
from fastssl.telemetry import log_to_stderr, progress_bar

if TYPE_CHECKING:
    from fastssl.shards import Manifest, PackChoices, PassedOver

log = logging.getLogger("fastssl")

_BROKEN_PIPE = 141
"""Exit code of a command whose reader has gone, as the shell has it for one that SIGPIPE ended."""


_PATHS = {
    errno.ENAMETOOLONG: ("a name is longer than the file system allows", "choose a shorter one"),
    errno.ENOENT: ("a file or a folder is missing", "bring it back"),
    errno.ELOOP: ("links lead in a circle", "remove them"),
}


class _Commands(TyperGroup):
    """The commands, whose errors become messages and exit codes."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _errors_told():  # of --help and --version, which are answered here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _errors_told():
            return super().invoke(ctx)


@contextmanager
def _errors_told() -> Iterator[None]:
    """The one place where errors become messages and exit codes, whichever command they come from."""
    try:
        with _written_out():
            yield
    except typer.Exit:
        raise
    except (Exception, SystemExit) as error:  # Rich ends the process so, its help text half printed
        if isinstance(error, BrokenPipeError) or isinstance(error.__cause__ or error.__context__, BrokenPipeError):
            _end_quietly()
        told = _as_ours(error)
        if told is None:
            raise
        _end(told)


def _as_ours(error: BaseException) -> FastsslError | None:
    """The error that tells of it; None for what is no fault of the user, of a dataset or of the machine."""
    if isinstance(error, FastsslError):
        # A dataset is not bad because a disk fails.
        is_machines = isinstance(error, DataError) and machine_fault(error) is not None
        return machine_error(error) if is_machines else error
    if isinstance(error, ImportError):
        return _unloadable(error)
    if isinstance(error, Exception) and machine_fault(error) is not None:
        return machine_error(error)
    if isinstance(error, Exception) and memory_is_short():
        return machine_error(MemoryError(f"{type(error).__name__}: {error}"))
    return _in_the_way(error) if isinstance(error, OSError) and error.filename is not None else None


app = typer.Typer(
    name="fastssl",
    cls=_Commands,
    help="Visual features without labels, from synthetic imagery.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
evaluations = typer.Typer(no_args_is_help=True, help="Measure a run on held-out shards.")
app.add_typer(evaluations, name="eval")
benchmarks = typer.Typer(no_args_is_help=True, help="Measure what limits this machine, in numbers and in words.")
app.add_typer(benchmarks, name="bench")


def _path(text: str) -> Path:
    return local_path(_home(text))


def _home(text: str) -> str:
    """A path with ``~`` expanded, which a shell leaves as it is in ``--out=~/run``.

    An empty one, as of a variable that is not set, would be the current folder.
    """
    if not text:
        raise typer.BadParameter("the path is empty; is a variable not set?")
    return os.path.expanduser(text)  # noqa: PTH111 - pathlib's raises for an unknown user


Workers = Annotated[int, typer.Option(help="Processes that work side by side.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]
Dataset = Annotated[
    str, typer.Argument(parser=_home, help="Packed dataset: a folder, or an address as s3://bucket/rooms.")
]
Run = Annotated[Path, typer.Argument(parser=_path, help="Run folder, the --out of a training.")]
Synthetic = Annotated[
    str, typer.Option(parser=_home, help="Packed dataset of held-out rendered images: a folder or an address.")
]
Real = Annotated[str, typer.Option(parser=_home, help="Packed dataset of held-out photos: a folder or an address.")]


def main() -> None:
    """Entry point of the `fastssl` command."""
    _open_standard_files()
    log_to_stderr()
    app()


def _open_standard_files() -> None:
    """Give a closed stdin, stdout or stderr a file, or the next one that is opened would take its place."""
    was_closed = sys.stdout is None
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115
    if was_closed:
        log.warning("stdout is closed: what the command prints is lost")


@contextmanager
def _written_out() -> Iterator[None]:
    """All that the block prints is out, or an error says why not; an error of the block itself comes first."""
    try:
        yield
    except typer.Exit:
        _flush()
        raise
    _flush()


def _flush() -> None:
    with machine_faults_named("stdout"):
        sys.stdout.flush()


def _end(error: FastsslError) -> NoReturn:
    _drop_stdout()
    _say(f"error: {error}")
    sys.exit(error.exit_code)


def _in_the_way(error: OSError) -> FastsslError:
    """The error for a path that cannot be, as where a folder lies in the place of a file."""
    what, cure = _PATHS.get(error.errno or 0, ("something of another kind stands in the way", "move it away"))
    return DataError(what, where=os.fsdecode(error.filename), seen=error.strerror, hint=f"{cure}, then try again")


def _unloadable(error: ImportError) -> FastsslError:
    """The error for a module that cannot be loaded; one whose files cannot be looked at seems not to be there."""
    if machine_fault(error) is not None:
        return machine_error(error, "a package cannot be loaded")
    return MachineError(
        "a package cannot be loaded",
        where=error.name or error.path,
        seen=str(error),
        hint="see whether its files can be read, or install fastssl again",
    )


def _end_quietly() -> NoReturn:
    _drop_stdout()
    sys.exit(_BROKEN_PIPE)


def _drop_stdout() -> None:
    """Write out what stdout still holds; where that fails, let it go, or Python would try again and fail at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)


def _say(words: str) -> None:
    # Nothing may be loaded for this: it also tells of files that cannot be opened.
    with suppress(OSError):
        sys.stderr.write(f"{printable(words)}\n")


def _say_facts(title: str, facts: Mapping[str, object]) -> None:
    """A heading and a line per fact; long lists show their beginning."""
    _say(title)
    for name, value in facts.items():
        if isinstance(value, list):
            shown = "; ".join(": ".join(item) if isinstance(item, tuple) else str(item) for item in value[:3]) or "none"
            text = f"{shown} ... ({len(value)})" if len(value) > 3 else shown
        else:
            text = f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        _say(f"  {name.replace('_', ' '):18} {text}")


def _print(data: str) -> None:
    with machine_faults_named("stdout"):
        sys.stdout.write(data)


def _print_json(values: object) -> None:
    _print(json.dumps(values, indent=2, allow_nan=False) + "\n")


def _version(wanted: bool) -> None:
    if wanted:
        _print(f"fastssl {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Visual features without labels, from synthetic imagery."""


@app.command()
def render(
    out: Annotated[
        Path, typer.Argument(parser=_path, help="Folder for the rooms; rooms that are complete there are kept.")
    ],
    count: Annotated[int, typer.Option(help="Number of rooms.", min=1)],
    seed: Annotated[int, typer.Option(help="The same seed gives the same rooms.", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Side of the square images in pixels.", min=16)] = 256,
    workers: Workers = 1,
) -> None:
    """Render procedural rooms with depth, normals and instances."""
    from fastssl.render import render_rooms

    with progress_bar("rendering") as advance:
        render_rooms(out, count=count, seed=seed, size=size, workers=workers, progress=advance)


@app.command()
def shard(
    source: Annotated[Path, typer.Argument(parser=_path, help="Dataset to pack.")],
    out: Annotated[
        str,
        typer.Argument(parser=_home, help="New or empty folder for the shards, or an address as s3://bucket/rooms."),
    ],
    layout: Annotated[str | None, typer.Option(help="How the dataset is laid out; found out where it can be.")] = None,
    subset: Annotated[str | None, typer.Option(help="A split that the dataset has, such as train.")] = None,
    size: Annotated[int, typer.Option(help="Side of the packed images in pixels.", min=16)] = 256,
    workers: Workers = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster that does the work instead.")] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    jpeg_quality: Annotated[int, typer.Option(min=1, max=100)] = 95,
    target_codec: Annotated[Literal["lz4", "raw"], typer.Option(help="raw: nothing to decode, more bytes.")] = "lz4",
    lz4_level: Annotated[int, typer.Option(help="0 packs fastest; from 1 to 12 fewer bytes.", min=0, max=12)] = 0,
    licence: Annotated[str | None, typer.Option(help="For the manifest; the layout's own if not given.")] = None,
    max_bad: Annotated[int, typer.Option(help="Unusable samples to leave out and list before giving up.", min=0)] = 100,
    split: Annotated[str | None, typer.Option(help="Folders below OUT, by the keys: train=0.95,val=0.05.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many samples, from the first.", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a packing that was interrupted.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List, try a few samples, and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pack a dataset into WebDataset shards."""
    from fastssl.shards import estimate, pack, parse_split
    from fastssl.sources import open_source

    opened = open_source(source, layout, subset=subset)
    whole = {out: (0.0, 1.0)}
    parts = whole if split is None else {f"{out}/{name}": part for name, part in parse_split(split).items()}
    choices: PackChoices = {
        "size": size,
        "samples_per_shard": samples_per_shard,
        "jpeg_quality": jpeg_quality,
        "target_codec": target_codec,
        "lz4_level": lz4_level,
        "limit": limit,
    }
    results: dict[str, dict[str, Any]] = {}
    try:
        for target, part in parts.items():
            choices["part"] = part
            if dry_run:
                guess = estimate(opened, **choices)
                results[target] = {**asdict(guess), "passed_over": _plain(guess.passed_over)}
            else:
                started = time.perf_counter()
                with progress_bar("packing", unit="samples") as advance:
                    manifest = pack(
                        opened,
                        target,
                        workers=workers,
                        ray=ray,
                        licence=licence,
                        max_bad=max_bad,
                        resume=resume,
                        progress=lambda now: advance(now.references, now.total, f"{now.quarantined} unusable"),
                        **choices,
                    )
                results[target] = _packed_facts(manifest, time.perf_counter() - started)
            _say_packed(target, results[target])
    finally:  # what is packed is told, also where the next part of a split fails
        if as_json and results:
            _print_json(results)


def _packed_facts(manifest: Manifest, seconds: float) -> dict[str, Any]:
    return {
        "layout": manifest.layout,
        "samples": manifest.samples,
        "shards": len(manifest.shards),
        "bytes": sum(entry.bytes for entry in manifest.shards),
        "unusable": manifest.quarantined,
        "seconds": round(seconds, 2),
        "samples_per_s": round(manifest.samples / seconds, 1),
        "classes": len(manifest.classes or ()) or manifest.statistics.classes,
        "passed_over": _plain(manifest.passed_over or {}),
    }


def _say_packed(target: str, facts: dict[str, Any]) -> None:
    passed = facts["passed_over"]
    _say_facts(target, {**facts, "passed_over": sum(entry["count"] for entry in passed.values())})
    for reason, entry in passed.items():
        more = ", ..." if entry["count"] > len(entry["first"]) else ""
        _say(f"    {entry['count']:,} {one_line(reason)}: {one_line(', '.join(entry['first']))}{more}")


def _plain(passed_over: Mapping[str, PassedOver]) -> dict[str, dict[str, Any]]:
    return {reason: entry.model_dump() for reason, entry in passed_over.items()}


class _NamesMethods(TyperCommand):
    """`train`, whose help names the methods; only there it is worth the time to load them."""

    def format_help(self, *arguments: Any) -> None:
        from fastssl.methods import METHODS

        presets = [f"{name} ({', '.join(method.presets)})" for name, method in METHODS.items()]
        self.epilog = f"Methods, and their presets: {'; '.join(presets)}."
        super().format_help(*arguments)


@app.command(cls=_NamesMethods)
def train(
    out: Annotated[
        Path,
        typer.Option(
            parser=_path, metavar="PATH", help="Run folder: new or empty, or with --resume the run to continue."
        ),
    ],
    synthetic: Annotated[list[str] | None, typer.Option(help="Packed rendered images; PATH or PATH=WEIGHT.")] = None,
    real: Annotated[list[str] | None, typer.Option(help="Packed photos; repeat either for several datasets.")] = None,
    method: Annotated[
        str | None, typer.Option(help="How features are learnt: cross_domain if not given; the names stand below.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Settings that belong together: paper, tiny and others.")] = "paper",
    config: Annotated[
        Path | None,
        typer.Option(parser=_path, metavar="PATH", help="YAML file with settings that differ from the preset."),
    ] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Mixed precision.")] = False,
    paranoid: Annotated[bool, typer.Option("--paranoid", help="Check all that is read against its checksum.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its last checkpoint.")] = False,
) -> None:
    """Learn features by a method."""
    given = [synthetic, real, config, overrides, amp, paranoid, preset != "paper", method]
    if resume and any(given):
        raise UsageError("--resume continues a run with its own settings", hint="give --out and --resume alone")
    settings = _training_settings(synthetic, real, amp=amp, paranoid=paranoid)
    from fastssl.methods import load_config
    from fastssl.train import resume_run, start_run

    resolved = load_config(preset, method=method, file=config, overrides=overrides or (), settings=settings)

    with progress_bar("training", patience_s=0) as advance:
        if resume:
            resume_run(out, advance)
        else:
            start_run(resolved, out, advance)
    _say(f"the run is in {one_line(str(out))}")


def _training_settings(
    synthetic: list[str] | None, real: list[str] | None, *, amp: bool, paranoid: bool
) -> dict[str, dict[str, Any]]:
    """Settings that the options of `train` stand for, by section; nothing for those that are not given."""
    named = {"synthetic": synthetic, "real": real}
    data: dict[str, Any] = {name: dataset_weights(paths) for name, paths in named.items() if paths}
    return {"data": data | ({"paranoid": True} if paranoid else {}), "train": {"amp": True} if amp else {}}


@evaluations.command("tasks")
def eval_tasks(run: Run, synthetic: Synthetic) -> None:
    """Depth, normals and contours on held-out renders, beside a constant and the untrained network."""
    from fastssl.evaluate import evaluate_tasks

    _print_json(evaluate_tasks(run, synthetic))


@evaluations.command("domain")
def eval_domain(run: Run, synthetic: Synthetic, real: Real) -> None:
    """How well a linear classifier tells synthetic from real by the adapted layer's features."""
    from fastssl.evaluate import evaluate_domain

    _print_json(evaluate_domain(run, synthetic, real))


@evaluations.command("neighbours")
def eval_neighbours(
    run: Run,
    real: Annotated[
        str, typer.Option(parser=_home, help="Packed photos with classes: crops of one photograph share one.")
    ],
    not_adapted: Annotated[
        Path | None, typer.Option(parser=_path, metavar="PATH", help="Run trained without adaptation, to compare with.")
    ] = None,
) -> None:
    """Whether the nearest neighbours of a crop come from the same photograph."""
    from fastssl.evaluate import evaluate_neighbours

    _print_json(evaluate_neighbours(run, real, not_adapted))


@app.command()
def report(run: Run) -> None:
    """Write the run's report.html (curves, predictions, neighbours, tables, settings) and print the key results."""
    from fastssl.report import summary_table, write_report

    path = write_report(run)
    _print(summary_table(run))
    _say(f"the report is {one_line(str(path))}")


@app.command()
def verify(data: Dataset, workers: Workers = 1, as_json: AsJson = False) -> None:
    """Check every hash, every byte and every sample of a packed dataset; exit code 3 where anything is wrong."""
    from fastssl.addresses import masked
    from fastssl.shards.verify import verify as check

    started = time.perf_counter()
    with progress_bar("verifying", unit="samples") as advance:
        found = check(data, workers=workers, progress=advance)
    seconds = time.perf_counter() - started
    facts = {
        "samples": found.samples,
        "shards": found.shards,
        "bytes": found.num_bytes,
        "faults": found.num_faults,
        "seconds": round(seconds, 2),
        "samples_per_s": round(found.samples / seconds, 1),
    }
    if as_json:
        listed = [asdict(fault) for fault in found.faults]
        _print_json({**facts, "listed": listed, "unlisted": found.unlisted, "names_checked": found.names_checked})
    else:
        lines = [one_line(str(fault)) for fault in found.faults]
        lines += [f"{file}: {count:,} more faults" for file, count in found.unlisted.items()]
        _print("".join(f"{line}\n" for line in lines))
    _say_facts(one_line(masked(data)), facts)
    if not found.names_checked:
        _say("the store does not list its files, so files that the manifest does not promise were not looked for")
    if found.num_faults:
        raise typer.Exit(DataError.exit_code)


@app.command()
def show(
    data: Dataset,
    out: Annotated[Path, typer.Option(parser=_path, metavar="PATH", help="PNG file; histograms go beside it.")] = Path(
        "sheet.png"
    ),
    count: Annotated[int, typer.Option(help="Samples on the sheet.", min=1)] = 12,
    seed: Annotated[int, typer.Option(help="The same seed shows the same samples.", min=0)] = 0,
    key: Annotated[str | None, typer.Option(help="Show this sample alone, large.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a contact sheet of a packed dataset with every plane, and histograms; or one sample."""
    from fastssl.show import show as draw

    with progress_bar("reading", unit="samples") as advance:
        shown = draw(data, out, count=count, seed=seed, key=key, progress=advance)
    if as_json:
        _print_json({"pictures": [str(path) for path in shown.pictures], "samples": [asdict(s) for s in shown.samples]})
    elif key is not None:
        _print("".join(f"{line}\n" for line in [key, *shown.samples[0].lines()]))
    _say(f"drawn: {one_line(', '.join(str(path) for path in shown.pictures))}")


@benchmarks.command("load")
def bench_load(
    synthetic: Annotated[list[str] | None, typer.Option(help="Packed rendered images; PATH or PATH=WEIGHT.")] = None,
    real: Annotated[list[str] | None, typer.Option(help="Packed photos; one of the two has to be given.")] = None,
    preset: Annotated[str, typer.Option(help="paper, released or tiny.")] = "paper",
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; may be repeated.")] = None,
    seconds: Annotated[float, typer.Option(help="For all measurements together, about.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """Loading: its parts one by one, the whole, other threads and prefetch; what limits, how far from the floor."""
    from fastssl.methods import load_config

    settings = load_config(preset, overrides=overrides or ())

    from fastssl.bench.load import measure_loading
    from fastssl.bench.verdict import judge, loading_table
    from fastssl.loader import open_mixture

    rendered, photos = (open_mixture(dataset_weights(paths)) if paths else None for paths in (synthetic, real))
    with progress_bar("measuring") as advance:
        measured = measure_loading(rendered, photos, settings, seconds=seconds, progress=advance)
    verdict = judge(measured)
    if as_json:
        _print_json({**asdict(measured), "verdict": asdict(verdict)})
    else:
        _print(loading_table(measured) + "\n" + "".join(f"{words}\n" for words in verdict.sentences))


@benchmarks.command("pack")
def bench_pack(
    source: Annotated[
        Path, typer.Argument(parser=_path, help="Dataset of which some samples are packed, into a temporary folder.")
    ],
    layout: Annotated[str | None, typer.Option(help="How the dataset is laid out; found out where it can be.")] = None,
    size: Annotated[int, typer.Option(help="Side of the packed images in pixels.", min=16)] = 256,
    workers: Workers = 1,
    limit: Annotated[int, typer.Option(help="So many samples, from the first.", min=1)] = 256,
    as_json: AsJson = False,
) -> None:
    """Packing: the steps of a sample and the rate of all; what limits."""
    from fastssl.bench.pack import measure_packing, packing_table, packing_verdict
    from fastssl.sources import open_source

    opened = open_source(source, layout)
    with progress_bar("packing", unit="samples") as advance:
        measured = measure_packing(opened, size=size, workers=workers, limit=limit, progress=advance)
    verdict = packing_verdict(measured)
    if as_json:
        _print_json({**asdict(measured), "limited_by": measured.limited_by, "verdict": verdict})
    else:
        _print(packing_table(measured) + "\n" + "".join(f"{words}\n" for words in verdict))
