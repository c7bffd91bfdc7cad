"""What a device hears that says which code it runs: what to install, what was stored, what to end.

Which execution may be offered, and what a report makes of it, is the engine's (`granting`,
`reports`). Here is decided what a report is worth, and what this device is told now.

A report counts by these rules, in this order; the same numbers stand in the code:

1. The connection's certificate is heard (`server.provisioning.renew.hear`, 1 to 6).
2. That certificate's key signed the report, which names that certificate's device.
3. It is *fresh* if it answers the nonce that this device was given last. The steps of one that is
   not are stored, but confirm nothing, and what it says of versions is left aside: it may be from
   before the confirmation. The device asks again with the nonce that it gets.
4. A confirmation counts for what the same report says of versions: another one than the release's,
   now or later, and the execution has reverted (`reports.runs`).

A trial is acknowledged (`trial_ok`) by these, in addition:

5. The report is fresh, and on trial with the attempt that is under way of this very device, of a
   rollout that is not being taken back.
6. It runs, by version and digest, each release that this execution brings.

Invariants: an assignment bears the nonce of the asking that it answers, so it is of use to nobody
else and at no other time; nothing is assigned while the device installs. Nothing is queued here:
whatever is lost after the commit the device asks for again.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import asyncpg
import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from protocol.update import MAX_CANCELLED, Answer, Attempt, Phase, Report, Signed
from server import metrics
from server.db.engine import ACQUIRE_TIMEOUT_S, measured, transaction
from server.firmware import granting, reports
from server.firmware.assignments import LIFE, AssignmentSigner, Order, assignment_of
from server.firmware.freezes import load
from server.firmware.life import DEFERRED_CODE, REVOCABLE, State
from server.firmware.nights import nights
from server.firmware.office import Office
from server.firmware.rows import named
from server.firmware.wanted import UnderWay, runs, under_way
from server.pki.authority import device_uri
from server.provisioning.refusals import refused
from server.provisioning.renew import GRACE, Holder, hear, names_of

AGAIN_S = 3_600
BUSY_AGAIN_S = 300  # while something is under way
WAITING_AGAIN_S = 900  # for its turn, in which the bell rings: ten thousand may wait
NOW_S = 1  # a nonce came too late for what the device had to say
CANCELLED_FOR = timedelta(days=30)
TRYING = frozenset({State.INSTALLING, State.REBOOTING, State.TRIAL})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What became of a report; `waits`: why its device is offered nothing yet."""

    holder: Holder
    fresh: bool
    heard: dict[Attempt, int]
    unwanted: tuple[str, ...]
    waits: str
    again_s: int


@dataclass(frozen=True, slots=True)
class _Told:
    """What a device is told, beside what was heard."""

    under_way: UnderWay | None
    order: Order | None
    cancel: tuple[str, ...]


async def exchange(office: Office, shown: bytes | None, signed: Signed) -> Answer:
    """Take a report and answer it. Raises RefusedError, AuthorityError."""
    demand_own(shown, signed)  # 2, which needs no database
    nonce, now = office.nonce(), office.now()
    if await _nothing_to_do(office.pool, shown, signed, nonce=nonce, now=now):
        metrics.UPDATE_REPORTS.labels("quiet").inc()
        return Answer(nonce, AGAIN_S)
    async with transaction(office.pool, "exchange update") as connection:
        taken = await _taken(connection, shown, signed, nonce=nonce, now=now)
    # what was decided is committed: nobody waits for the rollout's lock while we read
    async with (
        measured("tell update"),
        office.pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection,
    ):
        told = await _told(connection, taken, now=now)
    report, trial, assigned = signed.report, None, None
    if taken.fresh and told.under_way is not None and _proves(report, told.under_way):
        trial = told.under_way.attempt
    if told.order is not None:
        # read at each answer: a certificate that was replaced needs no restart
        signer = await asyncio.to_thread(AssignmentSigner.load, office.pki)
        assigned = signer.sealed(assignment_of(report, told.order, now=now)).content()
    metrics.UPDATE_REPORTS.labels("heard" if taken.fresh else "stale").inc()
    metrics.ASSIGNMENTS.inc(assigned is not None)
    metrics.TRIALS.inc(trial is not None)
    log.info(
        "update told",
        device=taken.holder.device,
        execution="" if told.under_way is None else told.under_way.ref,
        assigned=assigned is not None,
        trial_ok=trial is not None,
        fresh=taken.fresh,
        waits=taken.waits,
    )
    again_s = taken.again_s if told.under_way is None else min(taken.again_s, BUSY_AGAIN_S)
    return Answer(nonce, again_s, taken.heard, assigned, trial, told.cancel)


async def _taken(
    connection: asyncpg.Connection,
    shown: bytes | None,
    signed: Signed,
    *,
    nonce: str,
    now: datetime,
) -> _Taken:
    """Take a report in, and offer its device what may begin. Raises RefusedError."""
    report = signed.report
    holder = await hear(connection, shown, now=now)  # 1
    device = holder.row
    known = await connection.fetchrow(_KNOWN, device)
    fresh = _is_fresh(known, report)  # 3
    heard = await reports.hear(connection, device, report.steps, fresh=fresh, now=now)
    first = known is None or not known["nonce_given"]
    if first or fresh:
        await _keep(connection, holder, signed, nonce=nonce, now=now)
    else:
        await connection.execute(_ASKED, device, holder.organisation, nonce, report.nonce, now)
    versions = {name: each.version for name, each in report.components.items()}
    confirms = any(step.phase is Phase.CONFIRMED for step in report.steps)
    if fresh and await reports.runs(connection, device, versions, now=now, whole=confirms):  # 4
        metrics.MISMATCHES.inc()
        log.warning("another version than confirmed", device=holder.device)
    granted = await granting.grant(connection, device, now=now)
    waits, again_s = "", AGAIN_S
    if isinstance(granted, granting.Granted):  # noted before it is signed
        await connection.execute(_ASSIGNED, granted.execution, now + LIFE)
    if fresh and known["reported_at"] is not None:
        await connection.execute(_PASSED_OVER, device, known["reported_at"])
    if isinstance(granted, granting.Waits):
        least_s = 0 if granted.why is granting.Why.LATER else WAITING_AGAIN_S
        waits, again_s = granted.why.value, min(again_s, max(least_s, granted.again_s))
    stored = {Attempt(ref, attempt): seq for ref, attempt, seq in heard.heard}
    if not fresh and (_held_back(report, stored) or not (first or _says_the_known(known, report))):
        again_s = NOW_S
    return _Taken(holder, fresh, stored, heard.cancel, waits, again_s)


async def _told(connection: asyncpg.Connection, taken: _Taken, *, now: datetime) -> _Told:
    """Decide what a device is told, by what stands in the database now."""
    holder = taken.holder
    open_now = await under_way(connection, holder.row, now=now)
    order = None if open_now is None else await _order(connection, holder, open_now, now=now)
    cancel = await _cancelled(connection, holder.row, taken.unwanted, open_now, now=now)
    return _Told(open_now, order, cancel)


def demand_own(shown: bytes | None, signed: Signed) -> None:
    """Rule 2. Raises RefusedError."""
    if shown is None:
        raise refused("no_certificate")
    certificate = x509.load_der_x509_certificate(shown)
    key = certificate.public_key()
    try:
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise refused("report_not_own")
        key.verify(signed.signature, signed.message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise refused("report_not_own") from error
    if names_of(certificate) != [device_uri(signed.report.device)]:
        raise refused("report_not_own")


_QUIET = """
    with asker as (
        select d.id, d.organisation_id from certificates c join devices d on d.id = c.device_id
        where c.serial = $1 and starts_with(c.chain, $2) and d.device = $3 and d.admitted
          and c.revoked_at is null and c.state in ('staged', 'active', 'retiring')
          and c.not_after >= $4)
    update device_firmware f
    set nonce_given = $5, nonce_asked = $6, report = $7, reported_at = $8
    from asker a where f.device_id = a.id and f.organisation_id = a.organisation_id
      and f.nonce_given = $9 and f.hardware = $10 and f.components = $11::jsonb and f.slot = $12
      and not exists (select from executions e where e.device_id = a.id
        and (e.ended_at is null or e.ended_at >= f.reported_at
             or (e.assigned_until is not null and not e.attempted)))
    returning f.device_id
"""
"""Rules 1 and 3 for whom nothing is to be done, in one statement: what `hear` says, and no lock."""


async def _nothing_to_do(
    pool: asyncpg.Pool, shown: bytes | None, signed: Signed, *, nonce: str, now: datetime
) -> bool:
    """Keep a report that says nothing new, of a device that nothing is wanted of."""
    report = signed.report
    if shown is None or report.steps or report.trial is not None or not report.answers:
        return False
    certificate = x509.load_der_x509_certificate(shown)
    async with (
        measured("keep quiet report"),
        pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as connection,
    ):
        kept = await connection.fetchval(
            _QUIET,
            f"{certificate.serial_number:x}",
            certificate.public_bytes(Encoding.PEM).decode(),
            report.device,
            now - GRACE,
            *(nonce, report.nonce, _kept(signed), now),
            *(report.answers, report.hardware, _components(report), report.slot),
        )
    return kept is not None


_KNOWN = """
    select nonce_given, hardware, components, slot, reported_at from device_firmware
    where device_id = $1
"""
_ASKED = """
    update device_firmware
    set organisation_id = $2, nonce_given = $3, nonce_asked = $4, reported_at = $5
    where device_id = $1
"""


_ASSIGNED = f"""
    update executions set assigned_until = $2 where id = $1 and state in ({named(REVOCABLE)})
"""  # noqa: S608
_PASSED_OVER = """
    update executions set assigned_until = null
    where device_id = $1 and assigned_until is not null and not attempted and ended_at < $2
"""
"""It has had our answer since, which took back what it had not begun."""


def _is_fresh(known: asyncpg.Record | None, report: Report) -> bool:
    given = "" if known is None else known["nonce_given"]
    return bool(given) and secrets.compare_digest(str(given), report.answers)


def _says_the_known(known: asyncpg.Record, report: Report) -> bool:
    said = report.hardware, report.slot, json.loads(_components(report))
    return said == (known["hardware"], known["slot"], json.loads(known["components"]))


async def _keep(
    connection: asyncpg.Connection, holder: Holder, signed: Signed, *, nonce: str, now: datetime
) -> None:
    """Keep what a device (its row, locked) says that it runs, and what both will know it by."""
    report = signed.report
    await connection.execute(
        "insert into device_firmware as f (device_id, organisation_id, hardware, components, "
        "floors, slot, nonce_given, nonce_asked, report, reported_at) "
        "values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) on conflict (device_id) do update set "
        "organisation_id = $2, hardware = $3, components = $4, floors = f.floors || $5::jsonb, "
        "slot = $6, nonce_given = $7, nonce_asked = $8, report = $9, reported_at = $10",
        *(holder.row, holder.organisation, report.hardware, _components(report)),
        json.dumps({name: each.floor for name, each in report.components.items() if each.floor}),
        *(report.slot, nonce, report.nonce, _kept(signed), now),
    )


def _components(report: Report) -> str:
    return json.dumps({name: asdict(each) for name, each in report.components.items()})


def _kept(signed: Signed) -> bytes:
    """Return a report behind its signature, for whoever is to be shown what the device said."""
    return signed.signature.hex().encode() + b"\n" + signed.content


def _held_back(report: Report, heard: Mapping[Attempt, int]) -> bool:
    """Whether a device has to say again what only a fresh report may."""
    if report.trial is not None:
        return True
    return any(
        step.phase is Phase.CONFIRMED and heard.get(step.attempt, 0) < step.seq
        for step in report.steps
    )


def _proves(report: Report, open_now: UnderWay) -> bool:
    """Rules 5 and 6, of a report that is fresh."""
    return (
        report.trial == open_now.attempt
        and not open_now.withdrawn
        and open_now.state in TRYING
        and runs(report.components, open_now.releases)
    )


# -- what it is to do ----------------------------------------------------------------------------


async def _order(
    connection: asyncpg.Connection, holder: Holder, open_now: UnderWay, *, now: datetime
) -> Order | None:
    """Return what is to be assigned; None while nothing may begin, or it has."""
    begins = open_now.state is State.OFFERED
    # who installs already knows what, and is not to begin anew
    if open_now.state not in REVOCABLE or open_now.withdrawn or (begins and not open_now.running):
        return None
    if any(each.withdrawn for each in open_now.releases):
        return None
    spans = await _windows(connection, holder, open_now, now=now)
    if spans is None and begins:
        return None
    if spans is None:  # an empty list would be any time: this is none, and the device asks on
        now_ms = round(now.timestamp() * 1000)
        spans = ((now_ms - 2, now_ms - 1),)
    return Order(
        open_now.rollout,
        open_now.attempt,
        open_now.model,
        open_now.releases,
        spans,
        open_now.policy.device,
        urgent=open_now.policy.urgent,
    )


async def _windows(
    connection: asyncpg.Connection, holder: Holder, open_now: UnderWay, *, now: datetime
) -> tuple[tuple[int, int], ...] | None:
    """Return when a device may install, in UTC ms; empty: at any time; None: at none."""
    policy, site = open_now.policy, open_now.site
    if policy.urgent or policy.windows is None:
        here = [] if site is None else [site]
        frozen = await load(connection, holder.organisation, now=now, sites=here)
        on = frozen.at(site, int(now.timestamp()))
        return None if on is not None and not policy.override_freezes else ()
    if site is None:
        return None
    found = await nights(
        connection,
        holder.organisation,
        [site],
        policy.windows,
        now=now,
        overriding=policy.override_freezes,
    )
    spans = tuple((low * 1000, high * 1000) for low, high in found[site].windows)
    return spans or None


async def _cancelled(
    connection: asyncpg.Connection,
    device: int,
    unwanted: tuple[str, ...],
    open_now: UnderWay | None,
    *,
    now: datetime,
) -> tuple[str, ...]:
    """Return what is wanted no more: `unwanted`, taken back, or ended by us lately.

    Whether the device knows of it or not; what it never began it passes over.
    """
    rows = await connection.fetch(
        "select ref from executions where device_id = $1 and offered_at is not null "
        "and ended_at > $2 and (state in ('cancelled', 'superseded', 'timed out', 'lost', "
        "'unreachable') or state = 'rejected' and code = $4) order by id desc limit $3",
        *(device, now - CANCELLED_FOR, MAX_CANCELLED, DEFERRED_CODE),
    )
    back = [open_now.ref] if open_now is not None and open_now.withdrawn else []
    refs = dict.fromkeys([*back, *unwanted, *(row["ref"] for row in rows)])
    return tuple(refs)[:MAX_CANCELLED]
