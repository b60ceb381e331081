"""The colours and surfaces of one room: related woods, fabrics, metals and paints, different from room to room."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastssl.render import textures
from fastssl.render.scene import Material
from fastssl.render.textures import Pattern, Rng

Colour: TypeAlias = NDArray[np.float32]
Range: TypeAlias = tuple[float, float]

_WOODS = ("e8cfa5", "d8b07a", "c48f58", "a9713c", "8a5a33", "6b4226", "4b2e1e", "33221a", "c9b8a0", "8d8478", "efe9de")
_METALS = ("e6e6e8", "c9cbd0", "8e9095", "55575c", "d9b36a", "c98a5e", "2c2d30")


class Style:
    """Draws materials for one room. Two calls give two materials of the same taste."""

    def __init__(self, rng: Rng) -> None:
        self.rng = rng
        hue = rng.normal(0.08, 0.06) if rng.random() < 0.4 else rng.random()
        self._hues = (hue, hue + rng.uniform(-0.08, 0.08), hue + rng.uniform(0.3, 0.7), rng.random(), rng.random())
        self._vividness = rng.uniform(0.2, 1.0)
        self._woods = rng.choice(len(_WOODS), 2)
        self._metal = _srgb(_METALS[rng.integers(len(_METALS))])

    def colour(self, saturation: Range = (0.1, 0.9), value: Range = (0.25, 0.95)) -> Colour:
        """A linear colour of one of the room's hues, or now and then a grey."""
        rng = self.rng
        strength = rng.uniform(*saturation) * self._vividness * (rng.random() > 0.25)
        hue = self._hues[rng.integers(5)] + rng.normal(0, 0.02)
        return _linear(colorsys.hsv_to_rgb(hue % 1, strength, rng.uniform(*value)))

    def surface(
        self,
        patterns: Sequence[Pattern],
        size: tuple[float, float],
        *,
        colours: tuple[Colour, Colour] | None = None,
        roughness: Range = (0.5, 1.0),
        texels: int = 224,
    ) -> Material:
        """One of `patterns` over `size` metres, its longer side `texels` long, but no texel below 2 mm."""
        pattern = patterns[int(self.rng.integers(len(patterns)))]
        one, other = colours or (self.colour(), self.colour())
        density = min(texels / max(size), 500.0)
        texture = textures.paint(self.rng, pattern, size, density, one, other)
        return Material(texture=texture, density=density, roughness=self.rng.uniform(*roughness))

    def floor_colours(self) -> tuple[Colour, Colour]:
        """Mostly wood, else anything."""
        if self.rng.random() < 0.6:
            base = _srgb(_WOODS[self.rng.integers(len(_WOODS))])
            return base, base * self.rng.uniform(0.3, 0.8)
        return self.colour((0.0, 0.7), (0.2, 0.9)), self.colour((0.0, 0.7), (0.1, 0.95))

    def wood(self, size: tuple[float, float]) -> Material:
        """Furniture wood, mostly one of the room's two, sometimes painted or of stone."""
        rng = self.rng
        base = _srgb(_WOODS[self._woods[rng.integers(2)]])
        if rng.random() < 0.2:
            base = self.colour()
        return self.surface(textures.WOODS, size, colours=(base, base * rng.uniform(0.25, 0.7)), roughness=(0.25, 0.9))

    def fabric(self, size: tuple[float, float]) -> Material:
        """Upholstery, bedding, curtains."""
        return self.surface(textures.FABRICS, size, roughness=(0.8, 1.0))

    def plain(self, saturation: Range = (0.1, 1.0), value: Range = (0.1, 0.95)) -> Material:
        """Plastic, lacquer or ceramic of one colour, from glossy to matt."""
        return _even(self.colour(saturation, value), self.rng.uniform(0.1, 1.0))

    def metal(self) -> Material:
        """The room's metal, brushed."""
        return _even(self._metal, self.rng.uniform(0.2, 0.5), metallic=1.0)

    def trim(self) -> Material:
        """Frames and skirting: white, wood or a dark lacquer."""
        tones = (_srgb("f2f0ea"), _srgb("f2f0ea"), _srgb(_WOODS[self._woods[0]]), _srgb("26262a"))
        return _even(tones[self.rng.integers(4)], self.rng.uniform(0.3, 0.8))

    def plainly(self, small: tuple[float, float]) -> Material:
        """Whatever a small object may be made of."""
        draw = self.rng.random()
        if draw < 0.5:
            return self.plain()
        if draw < 0.65:
            return self.metal()
        return self.wood(small) if draw < 0.8 else self.fabric(small)


def _even(colour: Colour, roughness: float, *, metallic: float = 0.0) -> Material:
    texture = np.broadcast_to(np.clip(colour, 0.005, 0.92), (2, 2, 3)).astype(np.float32)
    return Material(texture=texture, density=2.0, roughness=roughness, metallic=metallic)


def _srgb(code: str) -> Colour:
    return _linear([int(code[k : k + 2], 16) / 255 for k in (0, 2, 4)])


def _linear(rgb: Sequence[float]) -> Colour:
    return np.array(rgb, dtype=np.float32) ** 2.2
