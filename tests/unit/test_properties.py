"""QEMU's lists of properties: what is written is read back, whatever a value holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmesh import properties

TEXTS = st.text(alphabet=st.sampled_from(",=:a é\0\n"), max_size=8)


@given(TEXTS, st.lists(TEXTS.filter(lambda part: part and part[0] != ","), max_size=5))
def test_parts_are_read_back_as_they_were_written(first: str, others: list[str]) -> None:
    assert properties.split(properties.join([first, *others])) == [first, *others]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("a", ["a"]),
        ("a,b", ["a", "b"]),
        ("a,,b", ["a,b"]),
        ("a,,,b", ["a,", "b"]),
        (",a", ["", "a"]),
        ("a,", ["a", ""]),
        (",,,,", [",,"]),
    ],
)
def test_two_commas_are_one_of_the_value(text: str, parts: list[str]) -> None:
    assert properties.split(text) == parts


def test_first_part_without_a_key_is_the_implied_one_and_others_are_on() -> None:
    assert properties.pairs("a,,b,server,path=c=d,path=e", "name") == [
        ("name", "a,b"),
        ("server", "on"),
        ("path", "c=d"),
        ("path", "e"),
    ]
    assert properties.parse("id=x,path=c,path=e", "name") == {"id": "x", "path": "e"}
