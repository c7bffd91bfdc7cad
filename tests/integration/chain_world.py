"""A chain of sites with a history in weeks: what the tests of trials and comparisons start from.

Days are written as the deriver leaves them; each site always open, one counter, observed throughout
unless said. A week's visits are level x season x effect x noise, all repeatable.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import asyncpg

DAY_S = 86_400


@dataclass
class ChainOf:
    """The sites by ref, with the rows of their spots."""

    owner: asyncpg.Connection
    organisation: int
    spots: dict[str, int] = field(default_factory=dict)
    levels: dict[str, float] = field(default_factory=dict)

    async def open(self, count: int, *, since: date, region: int | None = None) -> None:
        """Add sites whose counters stand there since a day."""
        for number in range(len(self.spots), len(self.spots) + count):
            ref = f"site-{number:02}{self.organisation}"
            site = await self.owner.fetchval(
                "insert into sites (organisation_id, ref, name, time_zone, currency, region_id) "
                "values ($1, $2, $3, 'Europe/Stockholm', 'SEK', $4) returning id",
                *(self.organisation, ref, f"Butik {number:02}", region),
            )
            spot = await self.owner.fetchval(
                "insert into spots (organisation_id, site_id, ref, name, kind) "
                "values ($1, $2, $3, 'Entré', 'counter') returning id",
                *(self.organisation, site, f"spot-{number:02}{self.organisation}"),
            )
            device = await self.owner.fetchval(
                "insert into devices (organisation_id, device, kind, state) "
                "values ($1, $2, 'counter', 'in service') returning id",
                *(self.organisation, f"dc-{self.organisation}{number:08}"),
            )
            await self.owner.execute(
                "insert into assignments (organisation_id, device_id, spot_id, valid) "
                "values ($1, $2, $3, tstzrange($4, null))",
                *(self.organisation, device, spot),
                datetime(since.year, since.month, since.day, tzinfo=UTC) - timedelta(days=1),
            )
            self.spots[ref] = spot
            self.levels[ref] = 300.0 * 1.17 ** (number // 2) * (1.03 if number % 2 else 1)

    async def history(
        self,
        since: date,
        until: date,
        *,
        effects: Mapping[str, float] | None = None,
        coverage: Mapping[tuple[str, date], float] | None = None,
        noise: float = 0.02,
        seed: int = 1,
    ) -> None:
        """Write the days of [since, until); `coverage` by site and day, where it is not 1."""
        rng = random.Random(seed)
        effects, coverage = effects or {}, coverage or {}
        rows: list[tuple[date, int, int, int]] = []
        for ref, spot in self.spots.items():
            day = since
            while day < until:
                season = (
                    1 + 0.25 * math.sin(day.timetuple().tm_yday / 58) + 0.3 * (day.weekday() > 4)
                )
                share = coverage.get((ref, day), 1.0)
                visits = self.levels[ref] * season * effects.get(ref, 1.0) * rng.gauss(1, noise)
                rows.append((day, spot, round(visits * share), round(DAY_S * share)))
                day += timedelta(days=1)
        await self.owner.execute(_DAYS, *(list(column) for column in zip(*rows, strict=True)))


_DAYS = """
    insert into rollup_day (day, spot, in0, out0, open_in0, open_out0, observed_s, open_observed_s,
                            revision, resolution_s)
    select day, spot, visits, visits, visits, visits, observed, observed, 1, 60
    from unnest($1::date[], $2::int[], $3::int[], $4::int[]) as r(day, spot, visits, observed)
    where observed > 0
"""
