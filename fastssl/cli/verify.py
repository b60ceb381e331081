"""`fastssl verify`."""

from __future__ import annotations

import time
from dataclasses import asdict

import typer

from fastssl.cli.options import AsJson, Dataset, Workers
from fastssl.cli.output import print_data, print_json, say, say_facts
from fastssl.errors import DataError, one_line
from fastssl.telemetry import progress_bar


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
        print_json({**facts, "listed": listed, "unlisted": found.unlisted, "names_checked": found.names_checked})
    else:
        lines = [one_line(str(fault)) for fault in found.faults]
        lines += [f"{file}: {count:,} more faults" for file, count in found.unlisted.items()]
        print_data("".join(f"{line}\n" for line in lines))
    say_facts(one_line(masked(data)), facts)
    if not found.names_checked:
        say("the store does not list its files, so files that the manifest does not promise were not looked for")
    if found.num_faults:
        raise typer.Exit(DataError.exit_code)
