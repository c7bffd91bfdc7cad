"""`vestibule replay FILE`: a file of real counts through real agents, frames, broker and ingest.

The file is CSV (or .gz) with the columns Date,Hour,LocationName,InCount, one row an hour in local
time. Each location becomes a site with one counter and leave to store old counts. Every oddity of
the file is listed with what was done about it. It ends with a proof: for each location and local
day, what the file says less what was excluded is what the API serves, and what the raw rows hold.

Interrupted, the same command goes on where it was. Exit code 0: all of it proved;
1: not, or some days wait for --duplicates.
"""

import argparse
import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from gzip import BadGzipFile
from pathlib import Path

import aiohttp
import asyncpg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agent import identity
from agent.enrol import enrol
from agent.link import Identity
from ops.deployment import Deployment, acting, deployment, home
from ops.places import ACTOR, Places, places
from ops.serving import server_running
from ops.words import parser_of
from server.api.keys import temporary_api_key
from server.errors import RefusedError
from server.fleet import sites
from server.fleet.register import grant_backfill
from server.fleet.sites import Site
from server.provisioning.claims import claim_token
from simulators.counts_file import HOUR_S, CountsFile, CountsFileError, interpret, read_rows
from simulators.replay import Mismatch, Replayer, proof, prove

SHOWN = 20  # quirks and mismatches listed on the terminal; the report has them all
PAGE = 20_000
Fetch = Callable[[str, date, date], Awaitable[Mapping[date, int | None]]]


@dataclass(frozen=True, slots=True)
class Place:
    """A location of the file as the server knows it."""

    location: str
    site_ref: str
    token: str = field(repr=False)


def main(argv: list[str]) -> int:
    """Replay a file and prove it."""
    options = _parser().parse_args(argv)
    console = Console(stderr=True)
    try:
        file = interpret(
            read_rows(options.file),
            zone=options.timezone,
            duplicates=options.duplicates,
            between=(options.since or date.min, options.until or date.max),
        )
    except (CountsFileError, BadGzipFile) as error:
        print(f"vestibule replay: {options.file}: {error}", file=sys.stderr)
        return 1
    _list_quirks(console, file)
    served, stored = asyncio.run(_replay(options, file, console))
    for mismatch in served[:SHOWN]:
        print(f"MISMATCH {mismatch}")
    for mismatch in stored[:SHOWN]:
        print(f"MISMATCH in the raw rows: {mismatch}".replace("served", "stored"))
    mismatches = served + stored
    people = sum(day.expected for day in file.days.values())
    excluded = sum(day.excluded for day in file.days.values())
    print(
        f"{len(file.days):,} location-days, {people:,} people replayed, {excluded:,} excluded, "
        f"{len(file.quirks):,} quirks, {len(mismatches):,} mismatches"
    )
    if file.stopped:
        print(f"{len(file.stopped):,} days wait for --duplicates first, last or sum")
    return 0 if people and not mismatches and not file.stopped else 1


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("replay", __doc__)
    parser.add_argument("file", type=Path, help="the counts, as above")
    parser.add_argument("--timezone", required=True, help="of the file's hours: Europe/London")
    parser.add_argument(
        "--duplicates", choices=("first", "last", "sum"), help="what differing duplicates mean"
    )
    parser.add_argument("--report", type=Path, help="write the proof as CSV")
    parser.add_argument("--from", dest="since", type=date.fromisoformat, help="first local day")
    parser.add_argument("--to", dest="until", type=date.fromisoformat, help="last local day")
    parser.add_argument("--organisation", default="Replay", help="whose sites they become")
    return parser


def _list_quirks(console: Console, file: CountsFile) -> None:
    for quirk in file.quirks[:SHOWN]:
        where = f"{quirk.location} {quirk.date or ''}" + (
            "" if quirk.hour is None else f" at {quirk.hour:02}"
        )
        console.print(f"{quirk.kind.value}: {where}: {quirk.count:,}: {quirk.action}", style="dim")
    if len(file.quirks) > SHOWN:
        console.print(f"... and {len(file.quirks) - SHOWN:,} more; --report lists them all")


async def _replay(
    options: argparse.Namespace, file: CountsFile, console: Console
) -> tuple[list[Mismatch], list[Mismatch]]:
    """Return where the API, and where the raw rows, do not say what the file says."""
    found = deployment()
    async with server_running(found) as base:
        organisation, places = await _provision(found, file, name=options.organisation)
        slug = re.sub(r"[^a-z0-9]+", "-", options.organisation.lower())
        state = home() / "replay" / slug
        identities = await _enrol(places, state)
        replayer = Replayer(file, state)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), console=console, disable=not console.is_terminal,
        ) as bars:  # fmt: skip
            recorded = bars.add_task("hours recorded", total=replayer.hours)
            stored = bars.add_task("hours stored", total=replayer.hours)

            def show(hours_recorded: int, hours_sent: int) -> None:
                bars.update(recorded, completed=hours_recorded)
                bars.update(stored, completed=hours_sent)

            await replayer.run(identities, on_progress=show)
        refs = {place.location: place.site_ref for place in places}
        async with (
            temporary_api_key(found.owner_dsn.reveal(), organisation, note="replay") as key,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        ):
            served = await prove(file, _fetcher(session, base, refs), report=options.report)
        return served, proof(file, await _stored(found, refs, file))


async def _stored(
    found: Deployment, refs: Mapping[str, str], file: CountsFile
) -> dict[tuple[str, date], int]:
    """Return people in per location and local day of the file, summed from the raw rows."""
    connection = await asyncpg.connect(found.owner_dsn.reveal())
    try:
        rows = await connection.fetch(_STORED, list(refs.values()))
    finally:
        await connection.close()
    location = {ref: name for name, ref in refs.items()}
    summed = {(location[row["site"]], row["day"]): row["people"] for row in rows}
    within = {day for _, day in file.days}
    return {key: people for key, people in summed.items() if key[1] in within}


_STORED = """
select s.ref as site, sum(r.counts[n])::bigint as people,
  ((r.time + make_interval(secs => r.interval_s * (n / 2))) at time zone s.time_zone)::date as day
from readings r join spots p on p.id = r.spot join sites s on s.id = p.site_id,
  generate_series(1, cardinality(r.counts), 2) n
where s.ref = any($1::text[]) group by 1, 3
"""


def _fetcher(session: aiohttp.ClientSession, base: str, refs: Mapping[str, str]) -> Fetch:
    """Return the function that reads a location's days from the API."""

    async def fetch(location: str, first: date, last: date) -> dict[date, int | None]:
        served: dict[date, int | None] = {}
        query = {
            "site": refs[location], "from": str(first), "to": str(last + timedelta(days=1)),
            "bucket": "day", "limit": str(PAGE),
        }  # fmt: skip
        while True:
            async with session.get(f"{base}/v1/counts", params=query) as response:
                answer = await response.json()
                if response.status != 200:
                    raise RefusedError(answer["code"], answer["detail"])
            for row in answer["data"]:
                served[date.fromisoformat(row["local"][:10])] = row["visits"]
            if not answer.get("next"):
                return served
            query["cursor"] = answer["next"]

    return fetch


async def _provision(found: Deployment, file: CountsFile, *, name: str) -> tuple[int, list[Place]]:
    """Make what the file's locations need; return the organisation and each place's claim."""
    async with acting(found.owner_dsn.reveal()) as connection:
        now = datetime.now(UTC)
        claimed = []
        async with places(connection, now=now) as made:
            row = (await made.organisation(name)).id
            for location, readings in file.readings.items():
                if readings:
                    first = datetime.fromtimestamp(readings[0].start_s, UTC)
                    last = datetime.fromtimestamp(readings[-1].start_s + HOUR_S, UTC)
                    ref, device_row = await _place(
                        connection, made, row, location, zone=file.zone, first=first, last=last
                    )
                    claim = await claim_token(connection, found.settings, device_row, now=now)
                    claimed.append(Place(location, ref, claim))
        return row, claimed


async def _place(
    connection: asyncpg.Connection,
    made: Places,
    organisation: int,
    location: str,
    *,
    zone: str,
    first: datetime,
    last: datetime,
) -> tuple[str, int]:
    """Return the location's site ref and its counter's row, made if they are new."""
    row = await connection.fetchrow(
        "select s.ref, p.ref as spot, a.device_id from sites s "
        "join spots p on p.site_id = s.id join assignments a on a.spot_id = p.id "
        "where s.organisation_id = $1 and s.name = $2 and s.time_zone = $3",
        organisation,
        location,
        zone,
    )
    if row is None:
        site = await sites.add(connection, organisation, Site(location, zone), **made.by)
        spot = await made.spot(organisation, site, name=location, kind="counter")
        device_row, device = await made.device(organisation, kind="counter", model="replay")
        await made.stand(device, spot.ref, since=first)
        site_ref, spot_ref = site.ref, spot.ref
    else:
        site_ref, spot_ref, device_row = row["ref"], row["spot"], row["device_id"]
        await connection.execute(
            "update assignments set valid = tstzrange(least(lower(valid), $2), upper(valid)) "
            "where device_id = $1",
            device_row,
            first,
        )
    await grant_backfill(
        connection,
        spot=spot_ref,
        since=first,
        until=last,
        reason="replay of a counts file",
        granted_by=ACTOR,
        now=made.by["now"],
        noted=made.later,
    )
    return site_ref, device_row


async def _enrol(places: list[Place], state: Path) -> dict[str, Identity]:
    """Enrol each place's agent as a device does, or take the identity it has."""
    identities: dict[str, Identity] = {}
    for place in places:
        folder = state / place.site_ref
        folder.mkdir(parents=True, exist_ok=True)
        try:
            identity.read(folder)
        except identity.NotEnrolledError:
            await asyncio.to_thread(enrol, place.token, state=folder)
        identities[place.location] = identity.for_link(folder)
    return identities
