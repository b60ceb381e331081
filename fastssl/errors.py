"""What can go wrong, one class per kind, each with the exit code that the command line returns.

    FastsslError                 1   our own fault, unless a subclass says otherwise
    ├── UsageError               2   an argument or a combination of arguments that cannot work
    │   ├── ConfigError          2   an unknown setting, or a value outside its range
    │   ├── CheckpointError      2   a checkpoint that does not fit the run it is asked to continue
    │   └── NonFiniteLossError   2   a loss became infinite or not a number
    ├── DataError                3   a folder, an image or a dataset that cannot be used
    │   └── ShardError           3   a shard that is missing, cut short or damaged
    └── DeviceError              4   a missing or failing accelerator, or a process group that broke
        └── MachineError         4   a disk, a file system or a limit of the machine that failed us (`fastssl.faults`)

Every message says what happened, where, the value seen, what was expected, and what to do.
"""

from __future__ import annotations

import os
from os import PathLike
from typing import ClassVar

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_LONGEST = 1000
"""Characters of a value that a message shows."""


def escaped(text: str) -> str:
    """A file's name as text that any file takes: a byte that is not UTF-8 becomes ``\\xe9``."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    """Words as a terminal can show them: neither bytes that are not UTF-8 nor characters that would steer it."""
    try:
        text = escaped(text)
    except UnicodeEncodeError:  # a lone surrogate that stands for no byte
        text = text.encode("utf-8", "backslashreplace").decode()
    return text.translate(_CONTROL)


def one_line(text: str) -> str:
    """`printable` words without line breaks, so that a name cannot begin a line."""
    return printable(text).replace("\n", "\\n")


class FastsslError(Exception):
    """Base of everything that `fastssl` raises on purpose.

    Args:
        what: what happened, as a sentence without a full stop.
        where: the file, shard and key, setting or step concerned.
        seen: the value met.
        expected: the value or range that would have been right.
        hint: what the user can do now.
    """

    exit_code: ClassVar[int] = 1
    is_told = False
    """Another process tells of it, so this one says nothing."""

    def __init__(
        self,
        what: str,
        *,
        where: str | PathLike[str] | None = None,
        seen: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where, self.seen, self.expected, self.hint = what, where, seen, expected, hint
        facts = {"where": where, "seen": seen, "expected": expected, "hint": hint}
        lines = [f"  {name}: {_shown(value)}" for name, value in facts.items() if value is not None]
        if where is not None:  # a name may hold a line break, which would begin a line of ours
            lines[0] = lines[0].replace("\n", "\\n")
        super().__init__("\n".join([_shown(what), *lines]))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (packing workers, rendering workers); the default reduction
        # would drop the keyword arguments.
        return (_rebuild, (type(self), self.what, self.where, self.seen, self.expected, self.hint))


def _shown(value: object) -> str:
    text = str(value)
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ... ({len(text):,} characters)"
    return printable(text)


def _rebuild(
    kind: type[FastsslError],
    what: str,
    where: str | PathLike[str] | None,
    seen: object,
    expected: object,
    hint: str | None,
) -> FastsslError:
    return kind(what, where=where, seen=seen, expected=expected, hint=hint)


class UsageError(FastsslError):
    """An argument, or a combination of arguments, that cannot work."""

    exit_code = 2


class ConfigError(UsageError):
    """A setting that does not exist, or a value outside its range."""


class CheckpointError(UsageError):
    """A checkpoint that does not fit the run it is asked to continue."""


class NonFiniteLossError(UsageError):
    """A loss became infinite or not a number; the message names task and step."""

    step = 0
    """The first step with such a loss."""


class DataError(FastsslError):
    """A folder, an image or a dataset that cannot be used."""

    exit_code = 3


class ShardError(DataError):
    """A shard that is missing, cut short or damaged."""


class DeviceError(FastsslError):
    """A missing or failing accelerator, or a process group that broke."""

    exit_code = 4


class PeerLostError(DeviceError):
    """Another rank has ended, which tells why by itself."""

    is_told = True


class MachineError(DeviceError):
    """A disk, a file system, a limit or a lack of memory: no fault of any file, and none of the user's words."""
