from __future__ import annotations

import numpy as np
import pytest

from fastssl.render import textures
from fastssl.render.textures import Array, Pattern, Rng, noise, paint

PATTERNS = {
    pattern.__name__: pattern
    for group in (textures.FLOORS, textures.WALLS, textures.CEILINGS, textures.FABRICS, textures.WOODS)
    for pattern in (*group, *textures.PICTURES, *textures.RUGS)
}
A, B = np.array([0.7, 0.5, 0.3], dtype=np.float32), np.array([0.1, 0.2, 0.4], dtype=np.float32)


def painted(pattern: Pattern, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return paint(np.random.default_rng(seed), pattern, (1.5, 0.9), 80.0, A, B)


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_is_a_reflectance_of_the_size_asked_for_and_the_same_every_time(name: str) -> None:
    for seed in range(4):
        one = painted(PATTERNS[name], seed)
        assert one.shape == (72, 120, 3)
        assert one.dtype == np.float32
        assert one.min() > 0
        assert one.max() < 1
        assert one.std() > 0
        assert np.array_equal(one, painted(PATTERNS[name], seed))
    assert not np.array_equal(one, painted(PATTERNS[name], 9))


def plain_noise(rng: Rng, u: Array, v: Array, a: Array, b: Array) -> Array:
    return a * noise(rng, u, v, 0.5, 1)[..., None]


@pytest.mark.parametrize("pattern", [textures.planks, textures.tiles, textures.noise], ids=lambda p: p.__name__)
def test_patterns_are_as_coarse_at_any_resolution(pattern: Pattern) -> None:
    """Twice the texels show the same floor, not another one."""
    if pattern is textures.noise:
        pattern = plain_noise
    coarse, fine = (paint(np.random.default_rng(3), pattern, (2.0, 2.0), density, A, B) for density in (50.0, 100.0))
    halved = fine.reshape(100, 2, 100, 2, 3).mean(axis=(1, 3))
    assert np.corrcoef(coarse.ravel(), halved.ravel())[0, 1] > 0.4  # about 0 for another floor


def test_checkers_have_two_colours_in_squares() -> None:
    board = painted(textures.checker, 1)
    # The cloud over the squares is gray, so ratios of channels have two values.
    hue = np.round(board[..., 0] / board[..., 2], 2)
    assert set(np.unique(hue)) == {np.round(A[0] / A[2], 2), np.round(B[0] / B[2], 2)}
    edges = np.flatnonzero((hue[:, 1:] != hue[:, :-1]).all(axis=0))
    assert len(edges) > 1
    assert np.ptp(np.diff(edges)) <= 1
