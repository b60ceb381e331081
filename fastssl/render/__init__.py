"""Procedural indoor rooms, rendered with their labels by Mitsuba 3, which the extra `render` installs.

Importing this package without Mitsuba raises a `UsageError`; with it, Mitsuba itself is loaded by the first rendering.
"""

from importlib.util import find_spec

from fastssl.errors import UsageError

if find_spec("mitsuba") is None:
    raise UsageError("rendering needs Mitsuba, which is not installed", hint="pip install 'fastssl[render]'")

from fastssl.render.rooms import render_room, render_rooms
from fastssl.render.tracer import trace

__all__ = ["render_room", "render_rooms", "trace"]
