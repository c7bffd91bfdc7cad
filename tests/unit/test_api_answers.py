"""Tables of answers, written column by column, beside the same rows written cell by cell."""

import csv
import io
from enum import StrEnum

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from server.api.answers import to_csv


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Line(msgspec.Struct):
    ref: str
    note: str | None
    n: int | float | None
    colour: Colour
    flags: tuple[str, ...]
    yes: bool


class Lines(msgspec.Struct):
    data: list[Line]


TEXTS = st.text(st.sampled_from("=+-@\t\rab,\"'\n;å"), max_size=5)
LINES = st.builds(
    Line,
    TEXTS,
    st.none() | TEXTS,
    st.none() | st.integers(-9, 9) | st.floats(-9, 9),
    st.sampled_from(Colour),
    st.lists(st.sampled_from(["a", "=b"]), max_size=3).map(tuple),
    st.booleans(),
)


def harmless(text: str | None) -> str:
    """Return what a spreadsheet shows and does not work out."""
    if not text:
        return ""
    return "'" + text if text[0] in "=+-@\t\r" else text


@given(st.lists(LINES, max_size=12))
def test_every_cell_of_a_table_says_what_its_row_says(lines: list[Line]) -> None:
    table = to_csv(Lines(lines), Line).decode()
    head, *rows = csv.reader(io.StringIO(table, newline=""))
    assert head == ["ref", "note", "n", "colour", "flags", "yes"]
    assert rows == [
        [
            harmless(line.ref),
            harmless(line.note),
            "" if line.n is None else str(line.n),
            line.colour.value,
            harmless(";".join(line.flags)),
            str(line.yes),
        ]
        for line in lines
    ]


def test_more_rows_than_are_looked_at_at_once_are_all_written_in_order() -> None:
    lines = [Line(f"r{n}", None, n, Colour.RED, (), True) for n in range(4_321)]
    lines[4_000].ref = "=1+1"
    rows = list(csv.reader(io.StringIO(to_csv(Lines(lines), Line).decode())))[1:]
    assert [row[2] for row in rows] == [str(n) for n in range(4_321)]
    assert [row[0] for row in rows if row[0].startswith("'")] == ["'=1+1"]
