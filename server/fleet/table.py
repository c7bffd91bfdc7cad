"""The register as a CSV file: its columns, and bytes to rows and back. Pure.

A row is a spot, with its door and its site; a site or a door without spots has a row of its own.
A column that is left out leaves what is there as it is; one that is there and empty empties it.

UTF-8 with or without a mark, comma or semicolon. A text that a spreadsheet would take for a formula
gets an apostrophe in front when it is written, which is taken off again when it is read.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.errors import RefusedError

SITE = ("region", "address", "time_zone", "currency", "hours", "opens_on", "closes_on")
COLUMNS = (
    *("site_ref", "site", *SITE),
    *("door_ref", "door", "behind"),
    *("spot_ref", "spot", "kind", "purpose", "height_cm"),
)
REFS = ("site_ref", "door_ref", "spot_ref")
MOST_BYTES = 5_000_000
MOST_CELL = 40_000
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the file; `cells` are those of the columns that it has."""

    line: int
    cells: Mapping[str, str]

    def get(self, column: str) -> str:
        return self.cells.get(column, "")


def read(data: bytes, *, most_rows: int) -> list[Row]:
    """Return a file's rows. Raises RefusedError (bad_encoding, bad_csv, too_large)."""
    if len(data) > MOST_BYTES:
        raise RefusedError("too_large", f"more than {MOST_BYTES} bytes: split the file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RefusedError(
            "bad_encoding",
            f"line {line} is not UTF-8: save the file as `CSV UTF-8` (it may be Latin-1 now)",
        ) from error
    if "\0" in text:
        raise RefusedError("bad_csv", "there is a character that no text has: U+0000")
    return _rows(text, most_rows=most_rows)


def _rows(text: str, *, most_rows: int) -> list[Row]:
    header = text.split("\n", 1)[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    rows: list[Row] = []
    at = 1
    try:
        for cells in reader:
            line, at = at, reader.line_num + 1
            if not columns:
                columns = _header([cell.strip().lower() for cell in cells])
            elif any(cell.strip() for cell in cells):
                rows.append(_row(line, columns, cells))
            if len(rows) > most_rows:
                raise RefusedError("too_large", f"more than {most_rows} rows: split the file")
    except csv.Error as error:
        raise RefusedError("bad_csv", f"line {at}: {error}") from error
    if not columns:
        raise RefusedError("bad_csv", "the file is empty")
    return rows


def _header(columns: list[str]) -> list[str]:
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise RefusedError("bad_csv", f"no column {unknown[0][:40]!r}; known: {', '.join(COLUMNS)}")
    if len(set(columns)) != len(columns):
        raise RefusedError("bad_csv", "a column is there twice")
    if "site" not in columns and "site_ref" not in columns:
        raise RefusedError("bad_csv", "there is no column `site`")
    return columns


def _row(line: int, columns: list[str], cells: list[str]) -> Row:
    if len(cells) > len(columns) and any(cell.strip() for cell in cells[len(columns) :]):
        raise RefusedError("bad_csv", f"line {line}: more cells than columns")
    if any(len(cell) > MOST_CELL for cell in cells):
        raise RefusedError("bad_csv", f"line {line}: a cell is longer than {MOST_CELL}")
    return Row(line, {c: unguarded(cell.strip()) for c, cell in zip(columns, cells, strict=False)})


def write(rows: Iterable[Mapping[str, str]], *, refs: bool = True) -> bytes:
    """Return a file that `read` reads as `rows`; without `refs` to make the same elsewhere."""
    columns = [column for column in COLUMNS if refs or column not in REFS]
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows([guarded(row.get(column, "")) for column in columns] for row in rows)
    return out.getvalue().encode("utf-8-sig")


def guarded(text: str) -> str:
    """Return `text` so that no spreadsheet runs it."""
    return "'" + text if text.startswith((*_FORMULA, "'")) else text


def unguarded(text: str) -> str:
    """Return what `guarded` was given."""
    return text[1:] if text[:1] == "'" and text[1:2] in (*_FORMULA, "'") else text
