"""What a number means and how it is shown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Better = Literal["lower", "higher", "near 0.5", ""]
"""Which values are good ones; empty where none is better than another."""

_BETTER = {"lower": "lower is better", "higher": "higher is better", "near 0.5": "nearest to 0.5 is best", "": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that an evaluation takes of each subject, and how it is shown."""

    path: tuple[str, ...]
    """Its place in the evaluation's section of `summary.json`. A `*` stands for every name that is there, such as the
    layers of a backbone, and then also in `name`."""
    name: str
    group: str = ""
    """Heading of the lines that it stands among."""
    key: str = ""
    """Its name among the key results; empty where it is none of them."""
    unit: str = ""
    better: Better = ""
    digits: int = 3
    """Decimals that are shown."""
    factor: float = 1
    """By which the number is multiplied to be shown in `unit`."""

    def of_each(self, names: Iterable[str]) -> list[Metric]:
        """A metric for every name that its `*` stands for; itself where it has none."""
        if "*" not in self.path:
            return [self]
        return [
            replace(
                self, path=tuple(name if part == "*" else part for part in self.path), name=self.name.replace("*", name)
            )
            for name in names
        ]

    @property
    def interval_path(self) -> tuple[str, ...]:
        """The place of its 95 % intervals: beside its own."""
        return (*self.path[:-1], f"{self.path[-1]}_interval")

    @property
    def hint(self) -> str:
        """Unit, and which values are better, in words."""
        return ", ".join(part for part in (self.unit, _BETTER[self.better]) if part)

    def shown(self, value: float) -> str:
        """The number as it is printed, without its unit."""
        return f"{value * self.factor:.{self.digits}f}" if math.isfinite(value) else "not finite"

    def cost(self, value: float) -> float:
        """Smaller is better; what is not a finite number is worst."""
        if not math.isfinite(value):
            return math.inf
        return {"lower": value, "higher": -value, "near 0.5": abs(value - 0.5), "": 0.0}[self.better]
