"""Bodies of requests: JSON of one struct, and no text that the database takes nowhere."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.bodies import parsed
from server.api.problems import BodyError


class Body(msgspec.Struct):
    name: str = ""
    lines: list[dict[str, str]] = []


@given(st.text(), st.lists(st.dictionaries(st.text(), st.text())))
def test_text_is_taken_unless_it_has_a_character_that_no_value_has(
    name: str, lines: list[dict[str, str]]
) -> None:
    raw = json.dumps({"name": name, "lines": lines}).encode(errors="surrogatepass")
    everything = "".join(
        [name, *(text for line in lines for pair in line.items() for text in pair)]
    )
    if "\0" in everything:
        with pytest.raises(BodyError):
            parsed(raw, Body)
    else:
        assert parsed(raw, Body) == Body(name, lines)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "a\0"}, "name"),
        ({"lines": [{"site": "\0"}]}, "lines"),
        ({"lines": [{"\0": "site"}]}, "lines"),
    ],
)
def test_the_field_with_such_a_character_is_named(body: dict[str, object], field: str) -> None:
    with pytest.raises(BodyError, match="U\\+0000") as caught:
        parsed(json.dumps(body).encode(), Body)
    assert caught.value.parameter == field


def test_a_backslash_and_what_looks_like_its_number_are_text() -> None:
    assert parsed(rb'{"name": "\\u0000"}', Body).name == r"\u0000"
