"""What a buyer asks a counting supplier, answered for one site from what is really stored."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import asyncpg

from server.insight.accuracy import Accuracy, NoProposal, Proposal, propose
from server.insight.recounts import Compared, accuracy_of, compared
from server.insight.rosters import staffed_hours
from server.insight.skew import Skew
from server.insight.tally import Range, tallies
from server.insight.tillclocks import skew_of
from server.rollup.answer import TooFineError
from server.rollup.buckets import Size, day_start
from server.rollup.opening import Interval
from server.rollup.perimeter import load_perimeters
from server.rollup.places import Site, Spot, load_sites, load_spots
from server.rollup.quality import COMPLETE, Scope

ASKED_DAYS = 90


@dataclass(frozen=True, slots=True)
class Counter:
    """A counter, its error, and what each block of its recounts says."""

    spot: Spot
    counts: bool
    found: Accuracy | None
    proposed: Proposal | NoProposal
    blocks: tuple[Compared, ...]

    @property
    def lines(self) -> tuple[int, ...]:
        """The lines that counted anybody beside a recount."""
        return tuple(sorted({line for block in self.blocks for line in block.lines}))


@dataclass(frozen=True, slots=True)
class Answers:
    """The site's answers. `counts` of a counter: it is one of the perimeter, which makes visits."""

    site: Site
    since: date
    until: date
    counters: tuple[Counter, ...]
    coverage: float | None
    days: int
    days_partly: int
    days_revised: int
    outages: int
    outage_s: int
    filled: int
    rostered: bool
    skew: Skew | None

    @property
    def never(self) -> bool:
        """Whether some counter that makes visits was never audited."""
        return any(
            each.counts and (each.found is None or not each.found.audited) for each in self.counters
        )


async def counters_of(
    connection: asyncpg.Connection, sites: list[Site], *, now: datetime
) -> dict[int, tuple[Counter, ...]]:
    """Return each site's counters with their errors, by site's row."""
    end_s = int(now.timestamp())
    span = end_s - ASKED_DAYS * 86_400, end_s
    perimeters = await load_perimeters(
        connection, sites, spans=dict.fromkeys((site.id for site in sites), span)
    )
    spots = await load_spots(connection, kind="counter", sites=sites)
    blocks: dict[int, list[Compared]] = {}
    day = (now + timedelta(hours=14)).date()
    for each in await compared(connection, [spot.id for spot in spots], day=day):
        blocks.setdefault(each.spot_id, []).append(each)
    found: dict[int, list[Counter]] = {site.id: [] for site in sites}
    for spot in spots:
        its = blocks.get(spot.id, [])
        accuracy = accuracy_of(its, spot.site.time_zone) if its else None
        proposed = NoProposal.TOO_FEW if accuracy is None else propose(accuracy)
        counts = spot.id in perimeters[spot.site.id].spots
        found[spot.site.id].append(Counter(spot, counts, accuracy, proposed, tuple(its)))
    return {site: tuple(its) for site, its in found.items()}


async def answers(connection: asyncpg.Connection, ref: str, *, now: datetime) -> Answers:
    """Answer for the site of a reference. Raises UnknownPlaceError."""
    [site] = await load_sites(connection, [ref])
    today = now.astimezone(ZoneInfo(site.time_zone)).date()
    since = today - timedelta(days=ASKED_DAYS)
    counters = (await counters_of(connection, [site], now=now))[site.id]
    outer = [each.spot for each in counters if each.counts]
    within = Range(Size.DAY, since, today, Scope.OPEN, int(now.timestamp()))
    days = [
        day for day in (await tallies(connection, within, [(site, outer)])).get(site.id, [])
        if day.expected_s > 0
    ]  # fmt: skip
    expected = sum(day.expected_s for day in days)
    zone = site.time_zone
    span: Interval = day_start(zone, since), day_start(zone, today)
    row = await connection.fetchrow(_GAPS, [spot.id for spot in outer], *span)
    rostered = await staffed_hours(connection, [site.id], now - timedelta(days=ASKED_DAYS), now)
    skew: Skew | None
    try:
        skew = await skew_of(connection, site, now=now)
    except TooFineError:
        skew = None
    return Answers(
        site,
        since,
        today,
        counters,
        sum(day.observed_s for day in days) / expected if expected else None,
        len(days),
        sum(day.observed_s < COMPLETE * day.expected_s for day in days),
        sum(day.revision > 0 for day in days),
        row["outages"],
        row["seconds"],
        row["filled"],
        site.id in rostered,
        skew,
    )


_GAPS = """
    select count(*) filter (where filled_at is null)::int as outages,
           coalesce(sum(extract(epoch from least(until_at, to_timestamp($3))
                                           - greatest(from_at, to_timestamp($2))))
                    filter (where filled_at is null), 0)::bigint as seconds,
           count(*) filter (where filled_at is not null)::int as filled
    from gaps
    where spot_id = any($1::int[]) and until_at > to_timestamp($2) and from_at < to_timestamp($3)
      and reason <> 'totals'
"""
