"""Put the world into the database, and enrol its devices as a technician would: by claims.

Everything goes through the product's own ways: `server.fleet.register`, one-time claims, and the
HTTPS listener, which sees a key's request and answers a certificate. Nothing is done twice.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
import asyncpg
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.link import Identity
from ops.demo.state import Folder, State
from ops.demo.world import QUESTIONNAIRE, QUESTIONS, Place, PlannedOrganisation, PlannedSite
from ops.services.errors import ServiceFailedError
from protocol.identity import DeviceId, device_id
from server.api.keys import create_api_key
from server.config import Settings
from server.fleet import register
from server.provisioning.claims import make_claim

_AT_ONCE = 8


class EnrolAnswer(msgspec.Struct):
    """What the server answers to a claim."""

    chain: str
    bundle: str
    broker_host: str
    broker_port: int


async def build_world(connection: asyncpg.Connection, state: State) -> dict[str, object]:
    """Create organisations, sites, spots, devices and keys; return what the state keeps of it."""
    since = datetime.fromtimestamp(state.since_ms / 1000, UTC)
    made = Made({}, {}, {}, {})
    rows: dict[PlannedSite, int] = {}
    for device, place in state.places().items():
        owner = await _organisation(connection, place.organisation, made)
        site = rows.get(place.site)
        if site is None:
            site = rows[place.site] = await _site(connection, owner, place.site)
        await _device(connection, owner, site, place, device, since=since, made=made)
    return {
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
    keys: dict[str, str]
    spots: dict[str, str]
    sites: dict[str, str]


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
            since=since,
            reason="mounted backwards",
        )


async def enrol(
    folder: Folder, state: State, pool: asyncpg.Pool, settings: Settings
) -> dict[DeviceId, Identity]:
    """Return every device's identity, enrolling those that have none yet."""
    context = ssl.create_default_context(cafile=str(settings.pki / "root.pem"))
    context.check_hostname = False  # the listener is named by an address of this machine
    gate = asyncio.Semaphore(_AT_ONCE)
    async with aiohttp.ClientSession(
        f"https://{settings.https_host}:{settings.https_port}",
        connector=aiohttp.TCPConnector(ssl=context),
        timeout=aiohttp.ClientTimeout(total=60),
    ) as session:

        async def one(device: DeviceId) -> Identity:
            async with gate:
                return await _enrol_one(folder, device, pool, session, settings)

        async with asyncio.TaskGroup() as group:
            tasks = {device: group.create_task(one(device)) for device in state.places()}
    return {device: task.result() for device, task in tasks.items()}


async def _enrol_one(
    folder: Folder,
    device: DeviceId,
    pool: asyncpg.Pool,
    session: aiohttp.ClientSession,
    settings: Settings,
) -> Identity:
    disk = folder.device(device)
    identity = Identity(
        device=device_id(device),
        broker_host=settings.device_broker_host,
        broker_port=settings.device_broker_port,
        chain=disk / "chain.pem",
        key=disk / "key.pem",
        bundle=disk / "bundle.pem",
    )
    if identity.chain.exists():
        return identity
    async with pool.acquire() as connection:
        row = await connection.fetchval("select id from devices where device = $1", device)
        secret = await make_claim(connection, row, now=datetime.now(UTC))
    key = ec.generate_private_key(ec.SECP256R1())
    identity.key.touch(mode=0o600)
    identity.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    body = {"claim": secret, "csr": _request(key, device)}
    async with session.post("/v1/enrol", json=body) as response:
        text = await response.read()
        if response.status != 200:
            raise ServiceFailedError(f"{device} could not enrol: {text.decode(errors='replace')}")
    answer = msgspec.json.decode(text, type=EnrolAnswer)
    identity.bundle.write_text(answer.bundle)
    identity.chain.write_text(answer.chain)
    return identity


def _request(key: ec.EllipticCurvePrivateKey, device: str) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def owners(state: State) -> Mapping[DeviceId, str]:
    """Return each device's organisation."""
    return {device: place.organisation.name for device, place in state.places().items()}
