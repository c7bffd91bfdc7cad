"""Put the world into the database, and enrol its devices as a technician would: by claims.

Everything goes through the product's own ways: `server.fleet.register`, one-time claims, and the
agent's own enrolment. Nothing is done twice.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec

from agent import identity
from agent.enrol import EnrolError, enrol
from agent.link import Identity
from ops.demo.newcomer import new_label
from ops.demo.state import Folder, State
from ops.demo.world import QUESTIONNAIRE, QUESTIONS, Place, PlannedOrganisation, PlannedSite
from ops.services.errors import ServiceFailedError
from protocol.identity import DeviceId
from protocol.label import Label
from server.api.keys import create_api_key
from server.config import Settings
from server.fleet import register
from server.provisioning.claims import claim_token

_AT_ONCE = 8
EMPTY_SITE, EMPTY_SPOT = "Lund", "Staff entrance"


async def build_world(connection: asyncpg.Connection, state: State) -> dict[str, object]:
    """Create organisations, sites, spots, devices and keys; return what the state keeps of it."""
    since = datetime.fromtimestamp(state.since_ms / 1000, UTC)
    made = Made({}, {}, {}, {})
    newcomer = new_label()
    rows: dict[PlannedSite, int] = {}
    for device, place in state.places().items():
        owner = await _organisation(connection, place.organisation, made)
        site = rows.get(place.site)
        if site is None:
            site = rows[place.site] = await _site(connection, owner, place.site)
        await _device(connection, owner, site, place, device, since=since, made=made)
    owner = next(iter(made.organisations.values()))
    site = next(row for planned, row in rows.items() if planned.name == EMPTY_SITE)
    return {
        "newcomer": await _await_newcomer(connection, owner, site, newcomer),
        "label": newcomer.text,
        "organisations": made.organisations,
        "keys": made.keys,
        "spots": made.spots,
        "sites": made.sites,
        "built": True,
    }


@dataclass(frozen=True, slots=True)
class Made:
    """What was made, by name or device."""

    organisations: dict[str, int]
    keys: dict[str, str] = field(repr=False)
    spots: dict[str, str]
    sites: dict[str, str]


async def _await_newcomer(
    connection: asyncpg.Connection, owner: int, site: int, shown: Label
) -> str:
    """Announce a device by its label, and leave it a spot; return its id.

    Its organisation wants a technician's word for whoever comes by a label.
    """
    await connection.execute(
        "update organisations set enrolment = 'technician' where id = $1", owner
    )
    await register.add_spot(
        connection, owner, site=site, name=EMPTY_SPOT, kind="counter", door=EMPTY_SPOT
    )
    row, device = await register.add_device(
        connection, owner, kind="counter", serial=shown.serial, model="Tröskel 2"
    )
    await connection.execute(
        "update devices set setup_sha256 = $2, state = 'manufactured' where id = $1",
        row,
        shown.secret_sha256,
    )
    return device


async def _organisation(
    connection: asyncpg.Connection, planned: PlannedOrganisation, made: Made
) -> int:
    found = made.organisations.get(planned.name)
    if found is not None:
        return found
    row = await register.add_organisation(connection, planned.name)
    made.organisations[planned.name] = row
    made.keys[planned.name] = await create_api_key(connection, row, note="demo")
    await connection.execute(
        "insert into questionnaires (organisation_id, hash, name, definition) "
        "values ($1, $2, $3, $4)",
        row,
        int.from_bytes(QUESTIONNAIRE, "big", signed=True),
        "How was your visit?",
        msgspec.json.encode(QUESTIONS).decode(),
    )
    return row


async def _site(connection: asyncpg.Connection, owner: int, planned: PlannedSite) -> int:
    hours = [
        register.Hours(weekday, *opening)
        for weekday, opening in enumerate(planned.hours or ())
        if opening is not None
    ]
    return await register.add_site(
        connection,
        owner,
        name=planned.name,
        time_zone=planned.zone,
        currency=planned.currency,
        hours=hours,
    )


async def _device(
    connection: asyncpg.Connection,
    owner: int,
    site: int,
    place: Place,
    device: DeviceId,
    *,
    since: datetime,
    made: Made,
) -> None:
    planned = place.device
    spot_row = await register.add_spot(
        connection,
        owner,
        site=site,
        name=planned.spot,
        kind=planned.kind,
        door=planned.spot if planned.kind == "counter" else "",
    )
    row = await connection.fetchrow(
        "select spots.ref, sites.ref as site from spots join sites on sites.id = site_id "
        "where spots.id = $1",
        spot_row,
    )
    made.spots[device], made.sites[device] = row["ref"], row["site"]
    model = "Tröskel 2" if planned.kind == "counter" else "Min 4"
    await register.add_device(connection, owner, kind=planned.kind, device=device, model=model)
    await register.assign(connection, device=device, spot=row["ref"], since=since)
    if planned.sensor.backwards:
        await register.calibrate(
            connection,
            spot=row["ref"],
            line=0,
            reversed_=True,
            factor=1.0,
            since=since.replace(minute=since.minute // 15 * 15),  # a quarter is read one way
            reason="mounted backwards",
        )


async def enrol_devices(
    folder: Folder, state: State, connection: asyncpg.Connection, settings: Settings
) -> dict[DeviceId, Identity]:
    """Return every device's identity, enrolling those that have none yet.

    Raises ServiceFailedError with the device and the agent's reason.
    """
    claims = await _claims(folder, state, connection, settings)
    await asyncio.to_thread(_enrol, claims)
    return {device: identity.for_link(folder.device(device)) for device in state.places()}


async def _claims(
    folder: Folder, state: State, connection: asyncpg.Connection, settings: Settings
) -> dict[Path, str]:
    """Return a claim token by the disk of each device that has no identity."""
    now = datetime.now(UTC)
    found: dict[Path, str] = {}
    for device in state.places():
        disk = folder.device(device)
        if not identity.files(disk).identity.exists():
            row = await connection.fetchval("select id from devices where device = $1", device)
            found[disk] = await claim_token(connection, settings, row, now=now)
    return found


def _enrol(claims: Mapping[Path, str]) -> None:
    """Let the agents enrol, a few at a time."""

    def one(claim: tuple[Path, str]) -> None:
        disk, text = claim
        try:
            enrol(text, state=disk)
        except EnrolError as error:
            raise ServiceFailedError(f"{disk.name} could not enrol: {error}") from error

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(one, claims.items()))  # at the first failure the rest are not begun
