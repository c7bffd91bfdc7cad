"""A whole data set as one file, made of the API's own answers: its handlers, its rows, its writers.

Decided here: a file is made of all pages of an answer, on one snapshot, before the first byte of it
is sent. So what is refused is said on the page, and no file ends in the middle. JSON is the API's
answer with the rows of all pages, CSV has one header, Parquet a row group a page. A file has
`MOST_ROWS` at most; who wants more asks the API, page by page.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import IO, Any

import msgspec

from server.api import parquet
from server.api.answers import to_csv
from server.api.metrics import MetricQuestion
from server.api.parameters import (
    ConversionParameters,
    CountParameters,
    FeedbackParameters,
    Format,
    GapParameters,
)
from server.api.problems import NotInstalledError
from server.api.reads import Call, Route
from server.api.routes import READS
from server.errors import RefusedError
from server.feedback.query import Basis
from server.insight.question import Bucketing
from server.rollup.buckets import Size
from server.rollup.quality import Scope

MOST_ROWS = 1_000_000
PAGE_ROWS = 20_000
BUCKETS = tuple(size.value for size in Size if size is not Size.MINUTE)


class Dataset(StrEnum):
    """What may be downloaded; each is what one route of the API answers."""

    VISITS = "visits"
    FEEDBACK = "feedback"
    SALES = "sales"
    KPIS = "kpis"
    GAPS = "gaps"

    @property
    def path(self) -> str:
        return _PATHS[self]

    @property
    def bucketed(self) -> bool:
        """Whether it has buckets of a length to be chosen."""
        return self not in (Dataset.SALES, Dataset.GAPS)


_PATHS = {
    Dataset.VISITS: "/counts",
    Dataset.FEEDBACK: "/feedback",
    Dataset.SALES: "/conversion",
    Dataset.KPIS: "/metrics:query",
    Dataset.GAPS: "/gaps",
}


@dataclass(frozen=True, slots=True)
class Wish:
    """Which rows are wanted, of [since, until); no sites: all that the connection sees."""

    dataset: Dataset
    since: date
    until: date
    sites: tuple[str, ...] = ()
    bucket: str = "day"
    scope: Scope = Scope.OPEN
    kpis: tuple[str, ...] = ()
    format: Format = Format.CSV

    @property
    def route(self) -> Route:
        [found] = [route for route in READS if route.path == self.dataset.path]
        return found

    @property
    def question(self) -> msgspec.Struct:
        """The route's parameters, or its body."""
        span: dict[str, Any] = {"since": str(self.since), "until": str(self.until)}
        match self.dataset:
            case Dataset.VISITS:
                size = Size(self.bucket)
                return CountParameters(
                    **span, site=self.sites, limit=PAGE_ROWS, bucket=size, scope=self.scope
                )
            case Dataset.FEEDBACK:
                return FeedbackParameters(
                    **span,
                    site=self.sites,
                    limit=PAGE_ROWS,
                    bucket=Size(self.bucket),
                    scope=self.scope,
                    basis=Basis.FILTERED,
                )
            case Dataset.SALES:
                return ConversionParameters(**span, site=self.sites)
            case Dataset.GAPS:
                return GapParameters(**span, site=self.sites, limit=PAGE_ROWS)
            case Dataset.KPIS:
                return MetricQuestion(
                    metrics=self.kpis,
                    **span,
                    bucket=Bucketing(self.bucket),
                    scope=self.scope,
                    sites=self.sites,
                    limit=PAGE_ROWS,
                )

    @property
    def name(self) -> str:
        """The file's name; its last day is the last that is in it."""
        last = date.fromordinal(self.until.toordinal() - 1)
        return f"vestibule-{self.dataset}-{self.since}-{last}.{self.format}"


class TooMuchError(RefusedError):
    """A file would have more rows than one has."""

    def __init__(self) -> None:
        super().__init__("too_much", f"a file has {MOST_ROWS} rows at most: ask for less")


async def write(call: Call, wish: Wish, file: IO[bytes]) -> int:
    """Write the file; return its rows. Raises whatever the API refuses, and TooMuchError."""
    if wish.format is Format.PARQUET and not parquet.available():
        raise NotInstalledError("this server writes no Parquet: install the extra `parquet`")
    row = wish.route.row
    assert row is not None  # of all these routes answers have rows
    writer = _WRITERS[wish.format](file, row)
    rows = 0
    async for answer in _pages(call, wish):
        rows += len(getattr(answer, "data", ()))
        if rows > MOST_ROWS:
            raise TooMuchError
        await asyncio.to_thread(writer.add, answer)
    await asyncio.to_thread(writer.close)
    return rows


async def _pages(call: Call, wish: Wish) -> AsyncIterator[msgspec.Struct]:
    route, question = wish.route, wish.question
    while True:
        answer = await route.handler(call, question)
        yield answer
        following = getattr(answer, "next", None)
        if following is None:
            return
        question = msgspec.structs.replace(question, cursor=following)


class _Csv:
    """One header, then all rows."""

    def __init__(self, file: IO[bytes], row: type[msgspec.Struct]) -> None:
        self._file, self._row, self._begun = file, row, False

    def add(self, answer: msgspec.Struct) -> None:
        text = to_csv(answer, self._row)
        self._file.write(text.split(b"\r\n", 1)[1] if self._begun else text)
        self._begun = True

    def close(self) -> None:
        pass


class _Json:
    """The answer as it would be, were it one page: what stands beside the rows comes once."""

    def __init__(self, file: IO[bytes], row: type[msgspec.Struct]) -> None:
        self._file, self._rows = file, 0
        self._file.write(b'{"data":[')
        self._beside: dict[str, dict[object, None]] = {}

    def add(self, answer: msgspec.Struct) -> None:
        for each in msgspec.structs.fields(answer):
            value = getattr(answer, each.name)
            if each.name == "data":
                rows = msgspec.json.encode(value)[1:-1]
                self._file.write(b"," + rows if self._rows and rows else rows)
                self._rows += len(value)
            elif each.name != "next":
                self._beside.setdefault(each.encode_name, {}).update(dict.fromkeys(value))

    def close(self) -> None:
        self._file.write(b"]")
        for name, values in self._beside.items():
            self._file.write(b"," + msgspec.json.encode(name) + b":")
            self._file.write(msgspec.json.encode(list(values)))
        self._file.write(b',"next":null}')


class _Parquet:
    """The route's schema, a row group for each page that has rows."""

    def __init__(self, file: IO[bytes], row: type[msgspec.Struct]) -> None:
        self._row, self._writer = row, parquet.writer(file, row)

    def add(self, answer: msgspec.Struct) -> None:
        table = parquet.table_of(answer, self._row)
        if table.num_rows:
            self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


_WRITERS: dict[Format, type[_Csv | _Json | _Parquet]] = {
    Format.CSV: _Csv,
    Format.JSON: _Json,
    Format.PARQUET: _Parquet,
}
