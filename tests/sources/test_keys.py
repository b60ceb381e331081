from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.errors import DataError
from fastssl.sources.keys import key_of, reference_parts


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a.jpg", "a"),
        ("a/abbey/00000001.jpg", "a__abbey__00000001"),
        ("living_room/img-1.jpg", "living_room__img-1"),
        ("Bed Room/IMG 1.JPG", r"bed_room__img_1-[0-9a-f]{16}"),
        ("a.png", r"a-[0-9a-f]{16}"),
        ("a__b.jpg", r"a__b-[0-9a-f]{16}"),
        ("x-0123456789abcdef.jpg", r"x-0123456789abcdef-[0-9a-f]{16}"),
        ("d/" + "n" * 200 + ".jpg", r"n{72}-[0-9a-f]{16}"),
        ("größe.jpg", r"gr__e-[0-9a-f]{16}"),
    ],
)
def test_keys_tell_the_path(path: str, key: str) -> None:
    assert re.fullmatch(key, key_of(path))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a_/b.jpg", "a/_b.jpg"),
        ("a__b.jpg", "a/b.jpg"),
        ("a/b__c.jpg", "a__b/c.jpg"),
        ("a.png", "a.jpg"),
        ("A.jpg", "a.jpg"),
        (f"{key_of('A.jpg')}.jpg", "A.jpg"),
        ("x" * 90 + ".jpg", "x" * 91 + ".jpg"),
    ],
)
def test_paths_that_look_alike_have_different_keys(first: str, second: str) -> None:
    assert key_of(first) != key_of(second)


PATHS = st.from_regex(r"[ab_A/.\-]{1,6}\.(jpg|JPG|png)", fullmatch=True)


@settings(max_examples=120, deadline=None)
@given(PATHS, PATHS)
def test_two_paths_never_have_one_key(first: str, second: str) -> None:
    for path in (first, second, first + "x" * 100, "ü" + second):
        assert re.fullmatch(r"[0-9a-z_-]{1,89}", key_of(path))
    assert (key_of(first) == key_of(second)) == (first == second)


def test_the_last_part_of_a_reference_takes_the_rest() -> None:
    assert reference_parts("ai_001_001/cam_00/0007", "SCENE/CAMERA/FRAME") == ["ai_001_001", "cam_00", "0007"]
    assert reference_parts("a.tar/512/x/y", "ARCHIVE/OFFSET/KEY") == ["a.tar", "512", "x/y"]
    with pytest.raises(DataError, match=r"not of this dataset(.|\n)*a/b(.|\n)*SCENE/CAMERA/FRAME"):
        reference_parts("a/b", "SCENE/CAMERA/FRAME")
