"""The register's file: bytes to rows and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import RefusedError
from server.fleet import table


@given(st.text(max_size=20))
def test_what_is_guarded_is_unguarded_to_the_same_and_never_a_formula(text: str) -> None:
    guarded = table.guarded(text)
    assert table.unguarded(guarded) == text
    assert not guarded.startswith(("=", "+", "-", "@", "\t", "\r"))


@given(
    st.lists(
        st.fixed_dictionaries(
            {"site": st.just("S")},
            optional={
                name: st.text("ab'=+-@;,\"\nåß ", max_size=8).map(str.strip)
                for name in table.COLUMNS
                if name != "site"
            },
        )
    )
)
def test_what_is_written_is_read_as_the_same(rows: list[dict[str, str]]) -> None:
    full = [{name: row.get(name, "") for name in table.COLUMNS} for row in rows]
    found = table.read(table.write(full), most_rows=100)
    assert [dict(row.cells) for row in found] == full


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_delimiters_and_line_ends_of_any_spreadsheet_are_read(
    mark: str, delimiter: str, end: str
) -> None:
    lines = ["Site,hours", '"A, B; C",Mo 10:00-19:00', ",", "D,"]
    lines = [
        line.replace("Site,", f"Site{delimiter}").replace(",Mo", f"{delimiter}Mo") for line in lines
    ]
    lines[2], lines[3] = delimiter, f"D{delimiter}"
    found = table.read((mark + end.join(lines) + end).encode(), most_rows=10)
    assert [(row.line, row.get("site"), row.get("hours")) for row in found] == [
        (2, "A, B; C", "Mo 10:00-19:00"),
        (4, "D", ""),
    ]


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        ("site\nCafé".encode("latin-1"), "bad_encoding", "line 2 is not UTF-8"),
        ("site\nA".encode("utf-16"), "bad_encoding", "not UTF-8"),
        (b"", "bad_csv", "empty"),
        (b"site,colour\nA,red", "bad_csv", "no column 'colour'"),
        (b"site,site\nA,B", "bad_csv", "twice"),
        (b"door\nA", "bad_csv", "no column `site`"),
        (b"site\nA,B", "bad_csv", "line 2: more cells"),
        (b'site\n"A', "bad_csv", "line 2"),
        (b"site\nA\0", "bad_csv", "U+0000"),
        (b"site\n" + b"A\n" * 11, "too_large", "10 rows"),
        (b"site\n" + b"A" * table.MOST_BYTES, "too_large", "bytes"),
        (b"site\n" + b"A" * (table.MOST_CELL + 1), "bad_csv", "longer"),
    ],
)
def test_what_cannot_be_read_is_refused_with_where_and_why(
    data: bytes, code: str, says: str
) -> None:
    with pytest.raises(RefusedError, match=says.replace("+", r"\+")) as caught:
        table.read(data, most_rows=10)
    assert caught.value.code == code
