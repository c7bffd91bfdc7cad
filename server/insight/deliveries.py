"""Rows of rosters, campaigns and rates of exchange, purely; read as `server.insight.rows` says.

- A shift: `site,shift,starts,ends,role`. `shift` is the roster's own reference; names of people do
  not belong into it. It lasts at most a day.
- A campaign: `campaign,name,sites,from,to,channel,cost,currency,impressions`. `sites` are apart by
  blanks, none: all; `to` is its last day; cost without VAT; `impressions` may be empty.
- A rate: `day,base,quote,rate,source`: one of `base` was `rate` of `quote` that day.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal

from server.insight import rows
from server.insight.money import Rate
from server.insight.rows import RowError, Table, ZoneOf

LONGEST_SHIFT = timedelta(hours=24)
_RATE = re.compile(r"\d{1,9}([.,]\d{1,10})?")
_MOST_IMPRESSIONS = 10**12 - 1
_MOST_SITES = 5_000


@dataclass(frozen=True, slots=True)
class Shift:
    """Somebody is rostered."""

    site: str
    ref: str
    starts_at: datetime
    ends_at: datetime
    role: str


@dataclass(frozen=True, slots=True)
class Campaign:
    """What was advertised where, and what it cost; `sites` empty: all."""

    ref: str
    name: str
    sites: tuple[str, ...]
    from_day: date
    until_day: date
    channel: str
    cost: Decimal
    currency: str
    impressions: int | None


def _shift(row: Sequence[str], zone_of: ZoneOf) -> tuple[Shift, str]:
    site, ref, starts, ends, role = row
    zone = rows.zone(site, zone_of)
    ref = rows.ref(ref, "shift")
    starts_at, note = rows.instant(starts, zone, "starts")
    ends_at, other = rows.instant(ends, zone, "ends")
    if not timedelta(0) < ends_at - starts_at <= LONGEST_SHIFT:
        raise RowError("expected a time after the start, and within 24 hours of it", column="ends")
    role = rows.ref(role, "role", most=rows.MOST_TEXT) if role else ""
    return Shift(site, ref, starts_at, ends_at, role), "; ".join(filter(None, (note, other)))


def _campaign(row: Sequence[str], zone_of: ZoneOf) -> tuple[Campaign, str]:
    ref, name, sites, since, until, channel, cost, currency, impressions = row
    named = tuple(sorted(set(sites.split())))
    if len(named) > _MOST_SITES:
        raise RowError(f"expected at most {_MOST_SITES}, got {len(named)}", column="sites")
    for site in named:
        rows.zone(site, zone_of, "sites")
    from_day, until_day = rows.day(since, "from"), rows.day(until, "to")
    if until_day < from_day:
        raise RowError("expected the last day, not before the first", column="to")
    paid = rows.amount(cost, "cost")
    if paid < 0:
        raise RowError("expected 0 or more", column="cost")
    return (
        Campaign(
            rows.ref(ref, "campaign"),
            rows.ref(name, "name", most=rows.MOST_TEXT),
            named,
            from_day,
            until_day,
            rows.ref(channel, "channel", most=rows.MOST_TEXT),
            paid,
            rows.currency(currency),
            rows.whole(impressions, "impressions", low=0, high=_MOST_IMPRESSIONS)
            if impressions
            else None,
        ),
        "",
    )


def _rate(row: Sequence[str], _: ZoneOf) -> tuple[Rate, str]:
    day, base, quote, rate, source = row
    rows.currency(base, "base")
    rows.currency(quote, "quote")
    if base == quote:
        raise RowError("expected another currency than the base", column="quote")
    if not _RATE.fullmatch(rate) or not (value := Decimal(rate.replace(",", "."))):
        raise RowError(f"expected a number above 0 such as 11.2345, got {rate!r}", column="rate")
    named = rows.ref(source, "source", most=rows.MOST_TEXT)
    return Rate(rows.day(day), base, quote, value, named), ""


SHIFTS = Table(
    "shift",
    ("site", "shift", "starts", "ends", "role"),
    _shift,
    lambda row: (row.site, row.ref),
    lambda row: row.ref,
)
CAMPAIGNS = Table(
    "campaign",
    ("campaign", "name", "sites", "from", "to", "channel", "cost", "currency", "impressions"),
    _campaign,
    lambda row: (row.ref,),
    lambda row: row.ref,
)
RATES = Table(
    "rate",
    ("day", "base", "quote", "rate", "source"),
    _rate,
    lambda row: (row.day.isoformat(), row.base, row.quote),
    lambda row: f"{row.base}/{row.quote} of {row.day}",
)
