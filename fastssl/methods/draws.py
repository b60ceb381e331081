"""Random numbers that a sample's position decides, made on the device.

What a method draws for a sample, such as the order of its tiles, depends on the seed of the run and the sample's
position in the endless sequence alone. So nothing has to be kept for a run that is continued, and any number of ranks,
or another batch size, draws the very same numbers.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


class Draws:
    """The numbers of a run, each purpose with a stream of its own.

    Two rounds of SplitMix64 (Steele, Lea & Flood, *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014): the
    first of the stream and the position, the second of its result and the number of the draw. Whole numbers alone, so
    that every device gives the same bits.

    Args:
        seed: of the run.
        position: (N,) int64, places of the samples.
    """

    def __init__(self, seed: int, position: Tensor) -> None:
        self._seed, self._position = seed, position

    def uniform(self, purpose: str, *shape: int) -> Tensor:
        """(N, *shape) float32 in [0, 1), multiples of 2^-24; different purposes have nothing in common."""
        return (self._bits(purpose, shape) >> 40 & 0xFFFFFF).to(torch.float32) * 2.0**-24

    def integers(self, purpose: str, below: int, *shape: int) -> Tensor:
        """(N, *shape) int64 in [0, below), each as likely as the others to within 2^-32 of `below`."""
        return (self._bits(purpose, shape) >> 32 & 0xFFFFFFFF) * below >> 32

    def _bits(self, purpose: str, shape: tuple[int, ...]) -> Tensor:
        count = 1
        for length in shape:
            count *= length
        key = _signed(self._seed << 32 | zlib.crc32(purpose.encode()))
        first = _mixed(self._position * _signed(_STEP) + key)
        number = torch.arange(1, count + 1, device=self._position.device)
        bits = _mixed(first[:, None] + number * _signed(_STEP))
        return bits.view(len(self._position), *shape)


def _mixed(z: Tensor) -> Tensor:
    for shift, factor in _FACTORS:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return z ^ _shifted(z, _LAST_SHIFT)


def _shifted(z: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left: torch's own shift repeats the sign."""
    return z >> by & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """The int64 of the same bits."""
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number
