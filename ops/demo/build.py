"""Put the world into the database, and enrol its devices as a technician would: by claims.

Everything goes through the product's own ways: the register's checked edits, a factory's manifest,
one-time claims, and the agent's own enrolment. Nothing is done twice.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec

from agent import identity
from agent.enrol import EnrolError, enrol
from agent.link import Identity
from ops.demo.newcomer import new_label
from ops.demo.state import Folder, State
from ops.demo.survey import ask_visitors
from ops.demo.world import (
    PUBLISHED,
    Place,
    PlannedOrganisation,
    PlannedSite,
)
from ops.places import ACTOR, Places, places
from ops.services.errors import ServiceFailedError
from protocol.identity import DeviceId
from protocol.label import Label
from server.api.keys import create_api_key
from server.config import Settings
from server.feedback import questionnaires
from server.fleet import organisations, spots
from server.fleet.checks import Known
from server.fleet.hours import ALWAYS, Opening
from server.fleet.sites import Site
from server.fleet.spots import Calibration
from server.provisioning import manifest
from server.provisioning.claims import claim_token

_AT_ONCE = 8
EMPTY_SITE, EMPTY_SPOT = "Lund", "Staff entrance"


async def build_world(connection: asyncpg.Connection, state: State) -> dict[str, object]:
    """Create organisations, sites, spots, devices and keys; return what the state keeps of it."""
    since = datetime.fromtimestamp(state.since_ms / 1000, UTC)
    made = Made({}, {}, {}, {})
    newcomer = new_label()
    async with places(connection, now=datetime.now(UTC)) as by_name:
        for device, place in state.places().items():
            owner = await _organisation(connection, by_name, place.organisation, made)
            site = await by_name.site(owner, _site(place.site))
            await _device(connection, by_name, owner, site, place, device, since=since, made=made)
        owner = next(iter(made.organisations.values()))
        planned = next(p.site for p in state.places().values() if p.site.name == EMPTY_SITE)
        empty = await by_name.site(owner, _site(planned))
        await by_name.spot(owner, empty, name=EMPTY_SPOT, kind="counter")
    return {
        "newcomer": await _announce(connection, owner, newcomer),
        "label": newcomer.text,
        "organisations": made.organisations,
        "keys": made.keys,
        "spots": made.spots,
        "sites": made.sites,
        "survey": await ask_visitors(connection, owner, actor=ACTOR),
        "built": True,
    }


@dataclass(frozen=True, slots=True)
class Made:
    """What was made, by name or device."""

    organisations: dict[str, int]
    keys: dict[str, str] = field(repr=False)
    spots: dict[str, str]
    sites: dict[str, str]
    asking: set[str] = field(default_factory=set)  # sites where something is published


async def _announce(connection: asyncpg.Connection, owner: int, shown: Label) -> str:
    """Announce a device by its label, as its factory would; return its id.

    Its organisation wants a technician's word for whoever comes by a label.
    """
    now = datetime.now(UTC)
    ref = await connection.fetchval("select ref from organisations where id = $1", owner)
    before = await organisations.find(connection, ref)
    wanted = replace(before.facts, enrolment="technician")
    await organisations.edit(connection, ref, wanted, seen=None, actor=ACTOR, now=now)
    row = manifest.Row(1, shown, "Tröskel 2", "counter", "", "", None)
    planned, bad = await manifest.plan(connection, owner, [row])
    assert not bad
    await manifest.carry_out(connection, owner, planned, actor=ACTOR, now=now)
    device: str = await connection.fetchval(
        "select device from devices where serial = $1", shown.serial
    )
    return device


async def _organisation(
    connection: asyncpg.Connection, by_name: Places, planned: PlannedOrganisation, made: Made
) -> int:
    found = made.organisations.get(planned.name)
    if found is not None:
        return found
    row = (await by_name.organisation(planned.name)).id
    made.organisations[planned.name] = row
    made.keys[planned.name] = await create_api_key(connection, row, note="demo")
    return row


def _site(planned: PlannedSite) -> Site:
    opening = ALWAYS
    if planned.hours is not None:
        opening = Opening(tuple(() if day is None else (day,) for day in planned.hours))
    return Site(planned.name, planned.zone, planned.currency, opening=opening)


async def _device(
    connection: asyncpg.Connection,
    by_name: Places,
    owner: int,
    site: Known[Site],
    place: Place,
    device: DeviceId,
    *,
    since: datetime,
    made: Made,
) -> None:
    planned = place.device
    spot = await by_name.spot(owner, site, name=planned.spot, kind=planned.kind)
    made.spots[device], made.sites[device] = spot.ref, site.ref
    model = "Tröskel 2" if planned.kind == "counter" else "Min 4"
    await by_name.device(owner, kind=planned.kind, device=device, model=model)
    await by_name.stand(device, spot.ref, since=since)
    if planned.kind == "kiosk" and site.ref not in made.asking:
        made.asking.add(site.ref)
        await _publish(connection, owner, site.ref)
    if planned.corrected:
        quarter = since.replace(minute=since.minute // 15 * 15)  # a quarter is read one way
        wanted = Calibration(0, True, 1.0, "mounted backwards", quarter)
        await spots.calibrate(connection, owner, spot.ref, wanted, **by_name.by)


async def _publish(connection: asyncpg.Connection, owner: int, site: str) -> None:
    """Publish the demo's questionnaire at a site's kiosks, which fetch it once they are live."""
    now = datetime.now(UTC)
    value = msgspec.json.decode(PUBLISHED.content)
    made = await questionnaires.make(
        connection, owner, name="Your visit", value=value, actor=ACTOR, now=now
    )
    await questionnaires.publish(
        connection,
        owner,
        questionnaire=made.ref,
        site=site,
        spot=None,
        schedule=questionnaires.Schedule(),
        actor=ACTOR,
        now=now,
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
