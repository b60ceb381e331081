"""Output of the commands: data to stdout, words to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress

from fastssl.errors import printable
from fastssl.faults import machine_faults_named


def say(words: str) -> None:
    # Nothing may be loaded for this: it also tells of files that cannot be opened.
    with suppress(OSError):
        sys.stderr.write(f"{printable(words)}\n")


def say_facts(title: str, facts: Mapping[str, object]) -> None:
    """A heading and a line per fact; long lists show their beginning."""
    say(title)
    for name, value in facts.items():
        if isinstance(value, list):
            shown = "; ".join(": ".join(item) if isinstance(item, tuple) else str(item) for item in value[:3]) or "none"
            text = f"{shown} ... ({len(value)})" if len(value) > 3 else shown
        else:
            text = f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
        say(f"  {name.replace('_', ' '):18} {text}")


def print_data(data: str) -> None:
    with machine_faults_named("stdout"):
        sys.stdout.write(data)


def print_json(values: object) -> None:
    print_data(json.dumps(values, indent=2, allow_nan=False) + "\n")
