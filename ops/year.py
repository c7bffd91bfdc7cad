"""`python -m ops.year`: a year of renewals in minutes, and what it shows about them.

The server's own functions work on a real database, and a real authority signs, each with the time
of a virtual clock; devices come and go as `simulators.year` says. In the middle of the year the
fleet moves to the next root. What is not there: sockets. The broker's handshake is a rule here; the
real one is in `tests/integration/test_ca_rollover.py` and `test_renewal_live.py`.

Chance alone scatters so few renewals a day by more than the 20 % that are wanted: 2,000 devices
renew 8.5 times a day, give or take 3. So the days of the real rows may differ by 20 % or as far as
chance goes; and the same rule is run over 100,000 devices without rows, where 20 % must do.
"""

import argparse
import asyncio
import math
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import asyncpg
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from ops.services.stack import Stack
from server.db.engine import open_pool
from server.db.migrate import migrate
from server.errors import RefusedError
from server.pki import rollover
from server.pki.authority import Authority, spki_sha256
from server.pki.files import Files
from server.provisioning import renew
from server.provisioning.issuing import issue, proved, renewal_time
from simulators.year import DeskRefusedError, Door, Pair, absences, dice, planned, run, steady

BEGAN = datetime(2027, 1, 1, tzinfo=UTC)
SETTLED = 60  # days after which the rate is looked at
PLANNED = 100_000
BEGIN_DAY, SWITCH_DAY = 150, 180
WITHIN = 0.2
_CHANCE = 1e-8  # a day that so rarely comes about by chance is none
_PASSWORD = b"the roots' password of this year"
_AT_ONCE = 8


@dataclass(slots=True)
class Year:
    """What happened."""

    devices: int
    real: list[int] = field(default_factory=list)  # renewals a day
    plan: list[int] = field(default_factory=list)
    lapses: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    stranded: set[str] = field(default_factory=set)
    untrusting: int = 0  # times that an online device and the fleet did not trust each other
    on_next: int = 0  # devices with a certificate of the next authority
    proved: int = 0  # devices that had proved trust in the next root before the switch
    wrong_rows: list[str] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.problems()

    def problems(self) -> list[str]:
        """Return what is not as it should be."""
        return [
            text
            for text, wrong in {
                f"{len(self.stranded)} devices stranded within the grace": self.stranded,
                f"{self.untrusting} connections lost to the rollover": self.untrusting,
                f"refused: {dict(self.refused)}": self.refused,
                f"rows: {', '.join(self.wrong_rows[:5])}": self.wrong_rows,
                "the real rate is not flat": not flat(self.real),
                "the planned rate is not flat": not flat(self.plan, chance=False),
            }.items()
            if wrong
        ]

    def lines(self) -> Iterator[str]:
        """Return the report."""
        yield f"renewals a day after day {SETTLED}: {rates(self.real)} by {self.devices:,} devices"
        yield f"by the same rule, {PLANNED:,} devices: {rates(self.plan)}"
        yield f"{self.lapses} times one came back with a certificate that had ended, and renewed it"
        yield (
            f"rollover: {self.proved} had proved trust before the switch, {self.on_next} hold a "
            f"certificate of the next authority, {self.untrusting} connections lost"
        )
        verdict = "; ".join(self.problems()) or "nobody stranded"
        yield (
            f"year {'passed' if self.passed else 'FAILED'}: {self.devices:,} devices, "
            f"{sum(self.real):,} renewals, {verdict}, {self.took_s:.0f} s"
        )


def flat(counts: list[int], *, chance: bool = True) -> bool:
    """True if each day is within 20 % of the mean, or differs from it by no more than chance."""
    days = counts[SETTLED:]
    mean = sum(days) / len(days)
    return all(
        abs(day - mean) <= WITHIN * mean or (chance and _likely(day, mean) >= _CHANCE)
        for day in days
    )


def _likely(number: int, mean: float) -> float:
    """Return at most how likely a Poisson number lies so far out (Chernoff's bound)."""
    return math.exp(number - mean + (number * math.log(mean / number) if number else 0.0))


def rates(counts: list[int]) -> str:
    """Return least, mean and most of a day."""
    days = counts[SETTLED:]
    mean = sum(days) / len(days)
    return (
        f"least {min(days)} ({min(days) / mean:.0%}), mean {mean:.1f}, "
        f"most {max(days)} ({max(days) / mean:.0%})"
    )


class RealDesk:
    """The server's functions, its database and its authority; what is no news costs no query."""

    def __init__(self, pool: asyncpg.Pool, pki: Path) -> None:
        self.pool = pool
        self.pki = pki
        self.authority = Authority.load(pki)
        self._due: dict[str, datetime] = {}
        self._told: dict[str, str] = {}  # by serial: the bundle that its device has said it holds
        self.look_at_files()

    def look_at_files(self) -> None:
        """See what a restarted broker would: who may connect, and by whom it is vouched for."""
        self.bundle = self.authority.current().bundle()
        anchors = x509.load_pem_x509_certificates((self.pki / "device-anchor.pem").read_bytes())
        self._anchored = {spki(anchor) for anchor in anchors}
        above = x509.load_pem_x509_certificates((self.pki / "broker.pem").read_bytes())[1:]
        roots = x509.load_pem_x509_certificates(self.bundle.encode())
        self._vouching = {
            spki(root) for root in roots if any(_signed(one, by=root) for one in above)
        }

    async def look_at_rows(self) -> None:
        """Read when all certificates are due."""
        rows = await self.pool.fetch(
            "select serial, renew_after from certificates where state in ('active', 'retiring')"
        )
        self._due = {row["serial"]: row["renew_after"] for row in rows}

    async def renew(self, pair: Pair, csr: str, now: datetime) -> tuple[str, str]:
        try:
            issued = await renew.renew(
                self.pool, self.authority, shown=pair.shown, csr_pem=csr, now=now
            )
        except RefusedError as error:
            raise DeskRefusedError(error.code) from error
        return issued.chain_pem, self.bundle

    async def confirm(self, pair: Pair, *, promoted: bool, now: datetime) -> tuple[datetime, str]:
        serial = serial_of(pair.chain)
        if promoted and self._told.get(serial) == pair.bundle and serial in self._due:
            return self._due[serial], self.bundle
        try:
            confirmed = await renew.confirm(
                self.pool,
                self.authority,
                shown=pair.shown,
                roots=list(trusted(pair.bundle)),
                promoted=promoted,
                now=now,
            )
        except RefusedError as error:
            raise DeskRefusedError(error.code) from error
        self._due[serial] = confirmed.renew_after
        if promoted:
            self._told[serial] = pair.bundle
        return confirmed.renew_after, self.bundle

    def connects(self, pair: Pair, now: datetime) -> bool:
        return self.trusts(pair) and _ends(pair.chain) > now

    def trusts(self, pair: Pair) -> bool:
        """Return whether device and broker trust each other's authorities, whatever the dates."""
        return _authority(pair.chain) in self._anchored and bool(
            self._vouching & trusted(pair.bundle)
        )


async def year(
    dsn: str, owner_dsn: str, pki: Path, *, devices: int, seed: int, days: int = 365
) -> Year:
    """Let a fleet live through a year; `pki` is a folder that is not there yet."""
    began = time.monotonic()
    plan = planned(
        PLANNED, days, seed=seed, rule=lambda name, serial, at: renewal_time(name, serial, since=at)
    )
    found = Year(devices, plan=plan)
    authority = Authority.create(pki, now=BEGAN - timedelta(days=400), password=_PASSWORD)
    authority.ensure_services(now=BEGAN)
    await migrate(owner_dsn)
    async with AsyncExitStack() as exits:
        owner = await asyncpg.connect(owner_dsn)
        exits.push_async_callback(owner.close)
        pool = await exits.enter_async_context(open_pool(dsn, size=_AT_ONCE, name="year"))
        desk = RealDesk(pool, pki)
        doors = await enrolled(owner, desk, devices, seed=seed, days=days)

        async def each_day(day: int) -> None:
            now = BEGAN + timedelta(days=day)
            if day == BEGIN_DAY:
                keys = pki / "offline"
                rollover.begin_rollover(Files.read(pki), keys=keys, password=_PASSWORD, now=now)
            if day == SWITCH_DAY:
                found.proved = await proofs(owner, desk)
                rollover.switch(Files.read(pki), now=now)
            if day in (BEGIN_DAY, SWITCH_DAY):
                desk.look_at_files()
            await desk.look_at_rows()
            await renew.retire(pool, now=now)
            _look_round(found, desk, doors, day)

        await run(doors, desk, days=days, each_day=each_day)
        _look_round(found, desk, doors, days)
        await _sum_up(found, owner, desk, doors, days)
    found.took_s = time.monotonic() - began
    return found


async def enrolled(
    owner: asyncpg.Connection, desk: RealDesk, devices: int, *, seed: int, days: int
) -> list[Door]:
    """Enrol a fleet that is in its steady state on day 0."""
    organisation = await owner.fetchval(
        "insert into organisations (ref, name) values ('year', 'Year') returning id"
    )
    names = [f"door-year{number:05}" for number in range(devices)]
    rows = await owner.fetch(
        "insert into devices (organisation_id, device, kind, state) "
        "select $1, n, 'counter', 'in service' from unnest($2::text[]) n returning id, device",
        organisation,
        names,
    )
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(row: int, device: str) -> Door:
        rng = dice(seed, device)
        age, due = steady(rng)
        pair = Pair(ec.generate_private_key(ec.SECP256R1()), bundle=desk.bundle)
        async with slots:
            issued = await issue(
                desk.pool,
                desk.authority,
                device_row=row,
                device=device,
                organisation=organisation,
                key=proved(pair.csr),
                reason="enrolment",
                now=BEGAN - timedelta(days=age),
                stage=False,
            )
            await desk.pool.execute(
                "update certificates set renew_after = $2 where serial = $1",
                issued.serial,
                BEGAN + timedelta(days=due),
            )
        pair = Pair(pair.key, issued.chain_pem, pair.bundle)
        away = absences(rng, days)
        return Door(device, pair, BEGAN + timedelta(days=due), away, rng, BEGAN)

    return await asyncio.gather(*(one(row["id"], row["device"]) for row in rows))


async def proofs(owner: asyncpg.Connection, desk: RealDesk) -> int:
    """Return how many devices have proved to trust the root that comes next."""
    (coming,) = [
        root.spki_sha256
        for root in desk.authority.current().described()
        if root.name.startswith("root-2 ")
    ]
    count: int = await owner.fetchval(
        "select count(*) from trust_proofs where root_spki_sha256 = $1", coming
    )
    return count


def _look_round(found: Year, desk: RealDesk, doors: list[Door], day: int) -> None:
    """Note who is online since yesterday and cannot connect."""
    now = BEGAN + timedelta(days=day)
    for door in doors:
        if any(begins <= day and ends > day - 1 for begins, ends in door.away):
            continue
        found.untrusting += not desk.trusts(door.pair)
        if not desk.connects(door.pair, now):
            found.stranded.add(door.device)


async def _sum_up(
    found: Year, owner: asyncpg.Connection, desk: RealDesk, doors: list[Door], days: int
) -> None:
    counts = Counter(ms // 86_400_000 for door in doors for ms in door.renewed_ms)
    found.real = [counts[day] for day in range(days)]
    found.lapses = sum(door.lapses for door in doors)
    for door in doors:
        found.refused.update(door.refused)
    signing = spki(desk.authority.current().files.certificate("device-2"))
    found.on_next = sum(_authority(door.pair.chain) == signing for door in doors)
    rows = await owner.fetch(
        "select d.device, array_agg(c.serial) filter (where c.state = 'active') as active, "
        "count(*) filter (where c.state in ('staged', 'recorded', 'failed')) as loose "
        "from devices d join certificates c on c.device_id = d.id group by 1"
    )
    state = {row["device"]: (row["active"], row["loose"]) for row in rows}
    for door in doors:
        active, loose = state[door.device]
        if active != [serial_of(door.pair.chain)] or loose > (door.next is not None):
            found.wrong_rows.append(door.device)


def spki(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of a certificate's key."""
    return spki_sha256(certificate.public_key())


@cache
def trusted(bundle: str) -> frozenset[bytes]:
    """Return the SHA-256 of the keys of a bundle's roots."""
    return frozenset(map(spki, x509.load_pem_x509_certificates(bundle.encode())))


@cache
def serial_of(chain: str) -> str:
    """Return the serial of a chain's first certificate, as the database writes it."""
    return f"{x509.load_pem_x509_certificate(chain.encode()).serial_number:x}"


@cache
def _ends(chain: str) -> datetime:
    return x509.load_pem_x509_certificate(chain.encode()).not_valid_after_utc


@cache
def _authority(chain: str) -> bytes:
    return spki(x509.load_pem_x509_certificates(chain.encode())[1])


def _signed(certificate: x509.Certificate, *, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


@contextmanager
def _services(work: Path) -> Iterator[Stack]:
    stack = Stack(work / "stack", role="year")
    try:
        stack.up()
        yield stack
    finally:
        stack.remove()


def main(argv: list[str]) -> int:
    """Run it on services of its own and print the report; 0 if all is as it should be."""
    parser = argparse.ArgumentParser(prog="ops.year", description=__doc__)
    parser.add_argument("--devices", type=int, default=2000)
    parser.add_argument("--seed", type=int, help="repeat the absences of an earlier run")
    options = parser.parse_args(argv)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vestibule-year-") as folder:
        work = Path(folder)
        work.chmod(0o755)  # the services may run as another account
        with _services(work) as stack:
            dsn, owner_dsn = stack.endpoints.dsn("ingest"), stack.endpoints.dsn("owner")
            found = asyncio.run(
                year(dsn, owner_dsn, work / "pki", devices=options.devices, seed=seed)
            )
    print("\n".join(found.lines()))
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
