"""The index of a shard. Oracle: words split by Python, one line after the other."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.shards.index import INDEX, Location, file_of_lines, index_line, read_index

EXTENSIONS = ("jpg", "labels.lz4", "cls")
NUMBERS = st.integers(0, 10**18 - 1) | st.integers(0, 300)
MEMBERS = st.dictionaries(st.sampled_from(EXTENSIONS), st.tuples(NUMBERS, NUMBERS), min_size=1)


@settings(max_examples=100, deadline=None)
@given(st.lists(MEMBERS, min_size=1, max_size=12))
def test_numbers_are_those_of_the_lines(samples: list[dict[str, tuple[int, int]]]) -> None:
    lines = [
        index_line(Location(name, offset, size, f"room_{row}.{name}") for name, (offset, size) in members.items())
        for row, members in enumerate(samples)
    ]
    content = file_of_lines(INDEX, lines)
    offsets, sizes = read_index(content, len(samples), EXTENSIONS)
    assert offsets.shape == sizes.shape == (len(samples), 3)
    for row, line in enumerate(content.decode().splitlines()[1:]):
        words = line.split(" ")
        numbers = {words[i]: (int(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 4)}
        for column, name in enumerate(EXTENSIONS):
            assert (offsets[row, column], sizes[row, column]) == numbers.get(name, (-1, 0))


GOOD = b"v1.2 2\njpg 512 9 a.jpg cls 1536 1 a.cls\njpg 2560 10 b.jpg\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb"jpg 512", rb"jpg  512"),
        (rb" 512", rb" -512"),
        (rb" 512", rb" +512"),
        (rb" 512", rb" 5_12"),
        (rb" 512", rb" \xb2"),  # a digit to Python's str
        (rb" 512", b" " + b"5" * 19),
        (rb"cls 1536", rb"clt 1536"),
        (rb"cls 1536", rb" 1536"),
        (rb" a.cls\n", rb" a.cls \n"),
        (rb" a.jpg cls", rb" a.jpg\ncls"),
        (rb"a.cls\n", rb"a.cls "),
        (rb"\n$", rb"\n\n"),
        (rb"v1.2 2\n", rb""),
    ],
)
def test_a_damaged_index_is_refused(old: bytes, new: bytes) -> None:
    assert read_index(GOOD, 2, EXTENSIONS)[0].tolist() == [[512, -1, 1536], [2560, -1, -1]]
    damaged = re.sub(old, lambda _: new.replace(rb"\n", b"\n").replace(rb"\xb2", b"\xb2"), GOOD, count=1)
    assert damaged != GOOD
    with pytest.raises(ValueError, match=r"line|digit|member"):
        read_index(damaged, 2, EXTENSIONS)


def test_the_end_of_the_last_line_may_be_missing() -> None:
    np.testing.assert_equal(read_index(GOOD[:-1], 2, EXTENSIONS), read_index(GOOD, 2, EXTENSIONS))
