"""Sales against visits by site and local day: conversion and its relatives, in one row.

They are those of `definitions`: what they are, and which sales count, is not decided here.
"""

import asyncio
from collections.abc import Sequence
from datetime import date, datetime

import asyncpg
import msgspec

from server.insight.cells import Cell, Read
from server.insight.definitions import find
from server.insight.metrics import read_by_site
from server.insight.question import Bucketing, MetricQuery
from server.rollup.answer import Position
from server.rollup.buckets import Bucket
from server.rollup.quality import State
from server.rollup.rows import people
from server.rollup.sums import UNIT

_KPIS = tuple(map(find, ("conversion", "atv", "upt", "spv")))


class ConversionRow(msgspec.Struct, frozen=True):
    """A site's day: visits, sales and their ratios, the conversion with its 95 % interval.

    They are the KPIs of the same names, `conversion` with the interval and the flags that
    `POST /v1/metrics:query` answers. `state` and `revision` are of what devices counted: tills may
    be corrected at any time.
    """

    site: str
    local: str
    start: str = msgspec.field(name="from")
    until: str
    visits: int | float | None
    transactions: int
    net_sales: float
    units: int
    pickups: int
    returns: int
    currency: str
    conversion: float | None
    conversion_low: float | None
    conversion_high: float | None
    atv: float | None
    upt: float | None
    spv: float | None
    coverage: float | None
    state: State
    revision: int
    flags: tuple[str, ...]


async def conversion(
    connection: asyncpg.Connection,
    sites: Sequence[str],
    *,
    since: date | datetime,
    until: date | datetime,
    limit: int,
    after: Position | None,
    now_s: int,
) -> tuple[list[ConversionRow], Position | None]:
    """Return a page of sites' local days (no site named: of all), and where the next begins.

    Raises UnknownPlaceError, TooLongError.
    """
    query = MetricQuery(
        *(_KPIS, since, until, Bucketing.DAY),
        sites=tuple(sites),
        limit=limit * len(_KPIS),
        after=after,
    )
    found, following = await read_by_site(connection, query, now_s=now_s)
    return await asyncio.to_thread(_rows, list(found.values())), following


def _rows(found: Sequence[Read]) -> list[ConversionRow]:
    return [
        _row(each, bucket, cell)
        for each in sorted(found, key=lambda each: each.site.ref)
        for bucket, cell in zip(each.grid, each.cells, strict=True)
    ]


def _row(each: Read, bucket: Bucket, cell: Cell) -> ConversionRow:
    inputs = each.with_error(cell.inputs)
    sales = inputs.sales
    rate, atv, upt, spv = (kpi.compute(inputs) for kpi in _KPIS)
    return ConversionRow(
        each.site.ref,
        bucket.label,
        bucket.start_utc,
        bucket.end_utc,
        None if inputs.visits is None else people(round(inputs.visits * UNIT)),
        sales.transactions,
        float(sales.net_sales),
        sales.units,
        sales.pickups,
        sales.returns,
        each.site.currency,
        rate.value,
        rate.low,
        rate.high,
        atv.value,
        upt.value,
        spv.value,
        inputs.coverage,
        cell.state,
        cell.revision,
        rate.flags,
    )
