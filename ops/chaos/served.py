"""What the API serves, asked as a retailer would, against the sums of the readings."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import asyncpg

from ops.chaos.differences import Difference, Wrong

_TIMEOUT_S = 30.0

_SPOTS = """
select p.ref, (c.at at time zone s.time_zone)::date as day,
    sum(c.entered) as visits, sum(c.left_) as exits
from verify_cells c join spots p on p.id = c.spot join sites s on s.id = p.site_id
where not exists (select from calibrations k where k.spot_id = p.id)
group by 1, 2
"""


@dataclass(frozen=True, slots=True)
class Api:
    """Where the API is, and a key for each organisation."""

    url: str
    keys: tuple[str, ...] = field(repr=False)


async def served(connection: asyncpg.Connection, api: Api) -> list[Difference]:
    """Each spot's visits and exits of each local day are the sums of its readings."""
    stored = {
        (row["ref"], f"{row['day']}"): (int(row["visits"]), int(row["exits"]))
        for row in await connection.fetch(_SPOTS)
    }
    if not stored:
        return []
    days = [day for _, day in stored]
    first, last = min(days), max(days)
    until = await connection.fetchval("select ($1::text::date + $2::interval)::date::text",
                                      last, timedelta(days=1))  # fmt: skip
    told: dict[tuple[str, str], tuple[int, int]] = {}
    for key in api.keys:
        told |= await asyncio.to_thread(_days, api.url, key, since=first, until=until)
    return [
        Difference(
            Wrong.ALTERED,
            max(1, sum(abs(a - b) for a, b in zip(expected, found, strict=True))),
            f"the API's day {place[1]} of {place[0]}",
            "visits {} exits {}".format(*expected),
            "visits {} exits {}".format(*found) if place in told else "no row",
        )
        for place in sorted(stored.keys() | {place for place, sums in told.items() if any(sums)})
        if (expected := stored.get(place, (0, 0))) != (found := told.get(place, (0, 0)))
    ]


def _days(
    url: str, key: str, *, since: str, until: str
) -> Mapping[tuple[str, str], tuple[int, int]]:
    """Return all pages of an organisation's counts by spot and local day."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    asked = {"from": since, "to": until, "bucket": "day", "by": "spot"}
    cursor: str | None = None
    while True:
        query = urlencode(asked if cursor is None else asked | {"cursor": cursor})
        answer = _get(f"{url}/v1/counts?{query}", key)
        for row in answer["data"]:
            if row["visits"] is not None:
                found[row["spot"], row["local"][:10]] = row["visits"], row["exits"]
        cursor = answer["next"]
        if cursor is None:
            return found


def _get(url: str, key: str) -> dict[str, Any]:
    request = Request(url, headers={"Authorization": f"Bearer {key}"})
    with urlopen(request, timeout=_TIMEOUT_S) as response:
        answer: dict[str, Any] = json.loads(response.read())
    return answer
