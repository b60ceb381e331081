"""Pictures read pixel by pixel."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from fastssl.pictures import (
    WORST_ANGLE,
    above,
    angle_picture,
    beside,
    bordered,
    depth_key,
    depth_picture,
    enlarged,
    grid,
    hatched,
    normal_key,
    words,
)


def test_angles_have_the_colours_of_depth_from_near_to_far_without_its_logarithm() -> None:
    """So they get darker all the way, up to the worst; gray where nothing is known, whatever stands there."""
    angles = np.array([[0.0, 0.25, 0.5, 1.0, 3.0, np.nan]]) * WORST_ANGLE
    shown = angle_picture(angles, np.array([[True] * 5 + [False]]))
    assert (shown[:, :5] == depth_picture(np.array([[1.0, 10**0.25, 10**0.5, 10, 10]]), 1, 10)).all()
    assert shown[0, 5].tolist() == [128] * 3
    assert (np.diff(shown[0, :4].astype(int).sum(axis=1)) < 0).all()


def test_stripes_cover_the_unknown_pixels_alone() -> None:
    picture = np.full((40, 40, 3), (10, 200, 30), np.uint8)
    unknown = np.zeros((40, 40), bool)
    unknown[:, 25:] = True
    marked = hatched(picture, unknown)
    assert (marked[:, :25] == (10, 200, 30)).all()
    assert sorted({tuple(colour) for colour in marked[:, 25:].reshape(-1, 3).tolist()}) == [(120,) * 3, (215,) * 3]
    assert (marked[:-1, 26:] == marked[1:, 25:-1]).all()  # they run from top right to bottom left


def test_small_pictures_are_repeated_and_large_ones_averaged() -> None:
    small = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    shown = enlarged(small, 12, 100)
    assert shown.shape == (15, 12, 3)
    assert (shown[::3, ::3] == small).all()
    assert (shown[2::3, 1::3] == small).all()
    assert enlarged(small, 3, 5) is small
    large = np.random.default_rng(0).integers(0, 255, (60, 40, 3), dtype=np.uint8)
    means = large.reshape(20, 3, 20, 2, 3)
    shown = enlarged(large, 3, 30)
    assert shown.shape == (30, 20, 3)
    means = large.reshape(30, 2, 20, 2, 3).mean(axis=(1, 3))
    assert np.abs(shown - means).max() <= 1


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    written = list[str]()
    draw = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: Any, text: str, *args: Any, **kwargs: Any) -> None:
        written.append(text)
        draw(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return written


def test_long_lines_go_on_below_and_end_in_dots(texts: list[str]) -> None:
    block = words(["one two three four five", "x"], 70, size=12, most=3)
    assert [text.split(" ") for text in texts[:-1]] == [["one", "two"], ["three", "four"], ["five"]]
    assert texts[-1] == "x"
    assert block.size == (70, 4 * 16)
    texts.clear()
    words(["a_long-key" * 9], 100, size=12, most=2)
    assert len(texts) == 2
    assert texts[0][-1] in "_-"
    assert texts[1].endswith("...")


@given(line=st.text("abcxyz0123_- ", max_size=90), width=st.integers(30, 300))
def test_no_piece_of_a_line_is_wider_than_its_block_and_none_is_lost(line: str, width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written = list[str]()
        patch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, **_: written.append(text))
        words([line], width, most=99)
    font = ImageFont.load_default(size=12)
    assert all(font.getlength(text) <= width for text in written)
    assert "".join(written).replace(" ", "") == line.replace(" ", "")


def test_blocks_are_laid_out_with_their_gaps() -> None:
    red, blue = Image.new("RGB", (4, 6), (255, 0, 0)), Image.new("RGB", (8, 2), (0, 0, 255))
    column = np.asarray(above([red, blue], gap=3))
    assert column.shape == (11, 8, 3)
    assert (column[:6, :4] == (255, 0, 0)).all()
    assert (column[9:] == (0, 0, 255)).all()
    assert (column[6:9] == 255).all()
    row = np.asarray(beside([red, blue], gap=3))
    assert row.shape == (6, 15, 3)
    assert (row[:2, 7:] == (0, 0, 255)).all()
    assert (row[2:, 4:] == 255).all()
    framed = np.asarray(bordered(red, 2))
    assert framed.shape == (10, 8, 3)
    assert (framed[2:8, 2:6] == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("near", "far", "expected"),
    [
        (0.5, 8, ["0.5 m", "8 m", "1 m", "2 m", "5 m"]),
        (1.03, 3.65, ["1.03 m", "3.65 m", "2 m"]),
        (0.001, 65.535, None),
        (2.2, 2.3, ["2.2 m", "2.3 m"]),
    ],
)
def test_the_scale_of_depth_names_its_ends(texts: list[str], near: float, far: float, expected: list[str]) -> None:
    scale = np.asarray(depth_key(near, far, 260))
    assert tuple(scale[5, 0]) == (252, 253, 191)
    assert tuple(scale[5, -1]) == (0, 0, 4)
    assert texts[:2] == [f"{near:.3g} m", f"{far:.3g} m"]
    if expected is not None:
        assert texts == expected


def test_the_ball_shows_which_colour_means_which_way() -> None:
    ball = np.asarray(normal_key(101)).astype(int)
    assert np.abs(ball[50, 50] - (128, 128, 255)).max() <= 1
    right, left, top, bottom = ball[50, 99], ball[50, 1], ball[1, 50], ball[99, 50]
    assert right[0] > 245
    assert left[0] < 10
    assert top[1] > 245
    assert bottom[1] < 10
    assert (ball[0, 0] == 255).all()


@pytest.mark.parametrize("side", [67, 131])
def test_headings_of_a_grid_do_not_run_together(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = list[tuple[float, float]]()

    def text(_: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *, font: Any, **__: Any) -> None:
        ends.append((xy[0], xy[0] + font.getlength(text)))

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    picture = np.zeros((side, side, 3), np.uint8)
    grid([[picture] * 4], ["image", "contours: true", "predicted", "predicted"])
    assert [start for start, _ in ends] == [4 + number * (side + 4) for number in range(4)]
    assert all(end + 4 <= start for (_, end), (start, _) in pairwise(ends))
