"""The routes of /v1 about what other systems send: sales, rosters, campaigns, rates of exchange.

A batch is taken whole or not at all, and may be sent again at will: a row that is there already is
no change, one that says something else now replaces what is there and is counted as such.
"""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Annotated, TypeVar

import msgspec

from server.api.acts import Act, ActRoute
from server.api.pages import after, page_of
from server.api.parameters import InCurrency, Listing, Sites, read_cursor, span_of, write_cursor
from server.api.problems import BodyError, ParameterError
from server.api.reads import Call, Route
from server.api.types import Page
from server.audit.log import record
from server.insight import pos
from server.insight.exchange import net_sales
from server.insight.pos import CAMPAIGNED, EXCHANGE, ROSTERS, TRANSACTIONS, Source
from server.insight.rows import collect
from server.insight.tillclocks import skew_of
from server.rollup.answer import TooFineError
from server.rollup.places import load_sites

R = TypeVar("R")
MOST_ROWS = 1_000
MOST_TILLS = 20
WRITE = "sources:write"
_LAST_DAY = date(9999, 12, 30)  # the very last is infinity to asyncpg

_At = Annotated[
    str, msgspec.Meta(description="A time with offset, or local to the site: 2026-03-29T10:15:00.")
]


class TransactionBody(msgspec.Struct, forbid_unknown_fields=True):
    """A receipt; `amount` is without VAT, after discounts, in the site's currency."""

    site: str
    transaction: str
    at: _At
    kind: str
    amount: Decimal
    units: int = 1


class NewTransactions(msgspec.Struct, forbid_unknown_fields=True):
    """Receipts, known by their site and reference."""

    transactions: Annotated[list[TransactionBody], msgspec.Meta(min_length=1, max_length=MOST_ROWS)]


class ShiftBody(msgspec.Struct, forbid_unknown_fields=True):
    """A rostered shift. `shift` is the roster's own reference: no name of a person."""

    site: str
    shift: str
    starts: _At
    ends: _At
    role: str = ""


class NewShifts(msgspec.Struct, forbid_unknown_fields=True):
    """Shifts, known by their site and reference."""

    shifts: Annotated[list[ShiftBody], msgspec.Meta(min_length=1, max_length=MOST_ROWS)]


class CampaignBody(msgspec.Struct, forbid_unknown_fields=True):
    """What is advertised; `to` is its last day, no sites: all; `cost` without VAT."""

    campaign: str
    name: str
    since: str = msgspec.field(name="from")
    until: str = msgspec.field(name="to")
    channel: str
    cost: Decimal
    currency: str
    sites: list[str] = []
    impressions: int | None = None


class NewCampaigns(msgspec.Struct, forbid_unknown_fields=True):
    """Campaigns, known by their reference."""

    campaigns: Annotated[list[CampaignBody], msgspec.Meta(min_length=1, max_length=MOST_ROWS)]


class RateBody(msgspec.Struct, forbid_unknown_fields=True):
    """One of `base` was `rate` of `quote` on that day, as `source` says."""

    day: str
    base: str
    quote: str
    rate: Decimal
    source: str


class NewRates(msgspec.Struct, forbid_unknown_fields=True):
    """Rates of exchange, known by day and pair."""

    rates: Annotated[list[RateBody], msgspec.Meta(min_length=1, max_length=MOST_ROWS)]


class Stored(msgspec.Struct, frozen=True):
    """What came of a batch: `replaced` are corrections, `repeated` rows that it had twice."""

    rows: int
    inserted: int
    replaced: int
    unchanged: int
    repeated: int
    notes: list[str]


async def _store(act: Act, field: str, source: Source[R], given: Sequence[Sequence[str]]) -> Stored:
    places = await pos.places_of(act.connection, act.organisation)
    read = collect(
        enumerate(given), source.table, lambda ref: places[ref].zone if ref in places else None
    )
    if read.errors:
        first, more = read.errors[0], len(read.errors) - 1
        column = first.message.split(":")[0]
        name = f"{field}[{first.line}]"
        raise BodyError(
            f"{name}.{column}" if column in source.table.columns else name,
            first.message + (f" (and {more} more rows are wrong)" if more else ""),
            code="bad_value",
        )
    rows = [row for _, row in read.rows]
    inserted, replaced = await pos.store(act.connection, source, rows, places, act.organisation)
    await record(
        act.connection,
        act=f"{field} stored",
        detail={"rows": len(rows), "inserted": inserted, "replaced": replaced},
        organisation=act.organisation,
        actor=act.actor,
        now=act.now,
    )
    return Stored(
        len(rows),
        inserted,
        replaced,
        len(rows) - inserted - replaced,
        read.repeated,
        [f"{field}[{note.line}].{note.message}" for note in read.warnings],
    )


async def _transactions(act: Act, body: NewTransactions) -> Stored:
    rows = [
        (each.site, each.transaction, each.at, each.kind, _plain(each.amount), str(each.units))
        for each in body.transactions
    ]
    return await _store(act, "transactions", TRANSACTIONS, rows)


async def _shifts(act: Act, body: NewShifts) -> Stored:
    rows = [(each.site, each.shift, each.starts, each.ends, each.role) for each in body.shifts]
    return await _store(act, "shifts", ROSTERS, rows)


async def _campaigns(act: Act, body: NewCampaigns) -> Stored:
    for number, each in enumerate(body.campaigns):
        for site in each.sites:
            if not site or site.split() != [site]:
                raise BodyError(f"campaigns[{number}].sites", "a site has no blanks")
    rows = [
        (
            *(each.campaign, each.name, " ".join(each.sites), each.since, each.until),
            *(each.channel, _plain(each.cost), each.currency),
            "" if each.impressions is None else str(each.impressions),
        )
        for each in body.campaigns
    ]
    return await _store(act, "campaigns", CAMPAIGNED, rows)


async def _rates(act: Act, body: NewRates) -> Stored:
    rows = [
        (each.day, each.base, each.quote, _plain(each.rate), each.source) for each in body.rates
    ]
    return await _store(act, "rates", EXCHANGE, rows)


def _plain(amount: Decimal) -> str:
    """Return a number without an exponent; what is none stays what it is, and is refused."""
    return f"{amount:f}" if amount.is_finite() and abs(amount.adjusted()) < 30 else str(amount)


# -- reading -------------------------------------------------------------------------------------


class CampaignRow(msgspec.Struct, frozen=True):
    """A campaign; no sites: all."""

    campaign: str
    name: str
    sites: list[str]
    since: date = msgspec.field(name="from")
    until: date = msgspec.field(name="to")
    channel: str
    cost: Decimal
    currency: str
    impressions: int | None


class RateRow(msgspec.Struct, frozen=True):
    """One of `base` was `rate` of `quote` on that day, as `source` says."""

    day: date
    base: str
    quote: str
    rate: Decimal
    source: str


class TillRow(msgspec.Struct, frozen=True):
    """By how many minutes a site's tills are ahead of its doors; null, and `unsaid` says why not.

    `clear`: by how many standard deviations the match of sales and people out stands out.
    """

    site: str
    skew_min: float | None
    low_min: float | None
    high_min: float | None
    off: bool
    sales: int
    days: int
    clear: float | None
    unsaid: str | None


class TillListing(Listing, frozen=True, forbid_unknown_fields=True):
    """Tills of some sites; each takes a while to be told."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MOST_TILLS)] = MOST_TILLS
    site: Sites = ()


class SalesParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Net sales over sites; `currency` is needed where the sites have several."""

    since: Annotated[str, msgspec.Meta(examples=["2026-03-01"])] = msgspec.field(name="from")
    until: Annotated[str, msgspec.Meta(examples=["2026-04-01"])] = msgspec.field(name="to")
    site: Sites = ()
    currency: InCurrency | None = None


class SalesAnswer(msgspec.Struct, frozen=True):
    """What was taken without VAT, in one currency, and every rate that the sum rests on."""

    sites: list[str]
    net_sales: Decimal
    currency: str | None
    transactions: int
    rates: list[RateRow]


async def _list_campaigns(call: Call, asked: Listing) -> Page[CampaignRow]:
    rows = await call.connection.fetch(_CAMPAIGNS, after(asked), asked.limit + 1)
    return page_of(asked, [CampaignRow(*row) for row in rows], lambda row: row.campaign)


async def _list_rates(call: Call, asked: Listing) -> Page[RateRow]:
    day, pair = _LAST_DAY, ""
    if asked.cursor is not None:
        found, ordinal = read_cursor(asked)
        pair, ordinal = str(found), int(ordinal)
        day = date.fromordinal(min(max(ordinal, 1), _LAST_DAY.toordinal()))
    rows = await call.connection.fetch(_LIST_RATES, day, pair, asked.limit + 1)
    page = rows[: asked.limit]
    more = None
    if len(rows) > len(page):
        last = page[-1]
        more = write_cursor(asked, (last["base"] + last["quote"], last["day"].toordinal()))
    return Page([RateRow(*row) for row in page], more)


async def _tills(call: Call, asked: TillListing) -> Page[TillRow]:
    begin = after(asked)
    sites = [site for site in await load_sites(call.connection, asked.site) if site.ref > begin]
    page = sites[: asked.limit]
    rows: list[TillRow] = []
    for site in page:
        try:
            found = await skew_of(call.connection, site, now=call.now)
        except TooFineError:
            row = TillRow(site.ref, None, None, None, False, 0, 0, None, "readings_too_long")
        else:
            row = TillRow(
                *(site.ref, found.minutes, found.low, found.high, found.is_off, found.sales),
                *(found.days, found.clear, None if found.unsaid is None else found.unsaid.value),
            )
        rows.append(row)
    return Page(rows, write_cursor(asked, (page[-1].ref, 0)) if len(sites) > len(page) else None)


async def _sales(call: Call, asked: SalesParameters) -> SalesAnswer:
    since, until = span_of(asked.since, asked.until)
    if type(since) is not date or type(until) is not date:
        raise ParameterError("from", "`from` and `to` are days here, such as 2026-03-29")
    sites = await load_sites(call.connection, asked.site)
    total, sales = await net_sales(
        call.connection, [site.id for site in sites], since, until, to=asked.currency
    )
    return SalesAnswer(
        [site.ref for site in sites],
        total.value,
        total.currency,
        sales,
        [RateRow(r.day, r.base, r.quote, r.rate, r.source) for r in total.rates],
    )


_CAMPAIGNS = """
    select c.campaign_ref, c.name,
           array(select s.ref from campaign_sites x join sites s on s.id = x.site_id
                 where x.campaign_id = c.id order by s.ref) as sites,
           c.from_day, c.until_day, c.channel, c.cost, c.currency, c.impressions
    from campaigns c where c.campaign_ref > $1 order by c.campaign_ref limit $2
"""
_LIST_RATES = """
    select day, base, quote, rate, source from exchange_rates
    where (-(day - date '2000-01-01'), base || quote) > (-($1::date - date '2000-01-01'), $2)
    order by day desc, base || quote limit $3
"""

ROUTES: tuple[Route, ...] = (
    Route("/campaigns", "Campaigns, by reference", Listing, Page[CampaignRow], CampaignRow,
          _list_campaigns),
    Route("/rates", "Rates of exchange, latest first", Listing, Page[RateRow], RateRow,
          _list_rates),
    Route("/tills", "By how much tills' clocks are ahead of the doors'", TillListing,
          Page[TillRow], TillRow, _tills),
    Route("/sales", "Net sales over sites, in one currency", SalesParameters, SalesAnswer, None,
          _sales),
)  # fmt: skip
ACTS: tuple[ActRoute, ...] = (
    ActRoute(
        "POST", "/transactions", "Store sales", Stored, _transactions, NewTransactions, write=WRITE
    ),
    ActRoute("POST", "/shifts", "Store a roster", Stored, _shifts, NewShifts, write=WRITE),
    ActRoute(
        "POST", "/campaigns", "Store campaigns", Stored, _campaigns, NewCampaigns, write=WRITE
    ),
    ActRoute("POST", "/rates", "Store rates of exchange", Stored, _rates, NewRates, write=WRITE),
)
