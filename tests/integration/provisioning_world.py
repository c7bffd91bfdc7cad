"""An organisation with a site, spots and a technician, and devices that want to be enrolled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ops.services.stack import Stack
from protocol.label import Label, label
from server.clock import ManualClock
from server.db.engine import acting, open_pool, transaction
from server.pki.authority import Authority
from server.provisioning import placing, technician
from server.provisioning.enrol import Enrolment, Guesses, Pending, Shown, enrol_by_label
from server.provisioning.progress import Mark, Step, status
from server.provisioning.technician import TechnicianClaim
from server.provisioning.vouchers import Voucher, VoucherSigner, make_voucher

NOON = datetime(2026, 4, 2, 12, 0, tzinfo=UTC)


class KilledError(Exception):
    """Somebody's process or power ends here."""


@dataclass
class Key:
    """A device's key."""

    private: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    @property
    def csr(self) -> str:
        """The request that a device sends."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.sign(self.private, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@dataclass
class Provisioning:
    """Everything that takes part; time stands still until `later`."""

    owner: asyncpg.Connection
    ingest: asyncpg.Pool
    desk: asyncpg.Pool
    authority: Authority
    signer: VoucherSigner
    clock: ManualClock
    guesses: Guesses
    organisation: int = 0
    site: int = 0
    users: dict[str, int] = field(default_factory=dict)

    @property
    def now(self) -> datetime:
        """What everybody takes the time to be."""
        return datetime.fromtimestamp(self.clock.now_ms() / 1000, UTC)

    def later(self, **span: float) -> datetime:
        """Let time pass."""
        self.clock.advance(timedelta(**span).total_seconds())
        return self.now

    async def policy(self, enrolment: str) -> None:
        """Let the organisation want a technician's word, or not."""
        await self.owner.execute("update organisations set enrolment = $1", enrolment)

    async def spot(self, ref: str, *, kind: str = "counter") -> int:
        """Add a spot at the site."""
        found: int = await self.owner.fetchval(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, $3, $3, $4) returning id",
            *(self.organisation, self.site, ref, kind),
        )
        return found

    async def device(
        self, serial: str = "DC-0001", *, kind: str = "counter", state: str = "manufactured"
    ) -> Label:
        """Put a device on the allow-list; its label."""
        # a secret of its own, told by the serial
        digits = "".join("23456789AB"[ord(c) % 10] for c in serial)
        found = label(serial, (digits * 16)[:16])
        await self.owner.execute(
            "insert into devices (organisation_id, device, kind, serial, setup_sha256, state) "
            "values ($1, $2, $3, $4, $5, $6)",
            *(self.organisation, f"dc-{serial.lower():a>9}", kind, serial, found.secret_sha256),
            state,
        )
        return found

    async def ask(
        self,
        shown: Label,
        key: Key,
        *,
        secret: str = "",
        voucher: str = "",
        spot: str = "",
        address: str = "192.0.2.1",
    ) -> Enrolment | Pending:
        """Ask to be enrolled, as a device does with what stands on its label."""
        return await enrol_by_label(
            self.ingest,
            self.authority,
            self.signer,
            shown=Shown(shown.serial, secret or shown.secret, voucher, spot),
            csr_pem=key.csr,
            now=self.now,
            guesses=self.guesses,
            address=address,
        )

    async def claim(
        self, device: str, spot: str, *, user: str = "tove", **named: Any
    ) -> TechnicianClaim:
        """Say where a device is to stand, and place it if it is enrolled, as the phone's page."""
        async with acting(self.desk, "open claim", organisation=self.organisation) as connection:
            claim = await technician.open_claim(
                connection,
                user_id=self.users[user],
                device=device,
                spot_ref=spot,
                **({"since": self.now} | named),
                now=self.now,
            )
        if claim.ready:
            await self.complete(claim.ref)
        return await self.found(claim.ref)

    async def complete(self, ref: str) -> bool:
        """Place an enrolled device."""
        async with transaction(self.ingest, "complete claim") as connection:
            return await placing.complete(connection, ref, actor="user tove", now=self.now)

    async def found(self, ref: str) -> TechnicianClaim:
        """Return the claim as it stands."""
        async with acting(self.desk, "find claim", organisation=self.organisation) as connection:
            return await technician.find_claim(connection, ref, now=self.now)

    async def steps(self, ref: str) -> dict[Step, tuple[Mark, str]]:
        """Return what the technician's screen shows."""
        async with self.ingest.acquire() as connection:
            found = await status(connection, ref, organisation=self.organisation, now=self.now)
        return {one.step: (one.mark, one.hint) for one in found}

    async def voucher(self, *, user: str = "tove", **named: Any) -> tuple[Voucher, str]:
        """Make a voucher for the site."""
        async with acting(self.desk, "make voucher", organisation=self.organisation) as connection:
            return await make_voucher(
                connection,
                self.signer,
                user_id=self.users[user],
                site_ref="site-1",
                now=self.now,
                **named,
            )

    async def state(self, serial: str) -> str:
        """Return where a device is in its life."""
        found: str = await self.owner.fetchval(
            "select state from devices where serial = $1", serial
        )
        return found

    async def stands(self, serial: str) -> list[tuple[str, datetime | None, datetime | None]]:
        """Return where a device stood, from when to when."""
        rows = await self.owner.fetch(
            "select p.ref, lower(a.valid) as low, upper(a.valid) as high from assignments a "
            "join spots p on p.id = a.spot_id join devices d on d.id = a.device_id "
            "where d.serial = $1 order by 2",
            serial,
        )
        return [(row["ref"], row["low"], row["high"]) for row in rows]

    async def certificates(self, serial: str) -> list[str]:
        """Return the states of a device's certificates, the oldest first."""
        rows = await self.owner.fetch(
            "select c.state from certificates c join devices d on d.id = c.device_id "
            "where d.serial = $1 order by c.recorded_at, c.serial",
            serial,
        )
        return [row["state"] for row in rows]

    async def acts(self) -> list[str]:
        """Return what the audit holds, in order."""
        return [r["act"] for r in await self.owner.fetch("select act from audit order by id")]


@asynccontextmanager
async def provisioning(
    stack: Stack, database: str, owner: asyncpg.Connection
) -> AsyncIterator[Provisioning]:
    """The world at noon: an organisation, its site, spots door-1 to door-3, two technicians."""
    clock = ManualClock(int(NOON.timestamp() * 1000))
    async with AsyncExitStack() as exits:
        pools = [
            await exits.enter_async_context(
                open_pool(stack.endpoints.dsn(role, database), size=4, name=role)
            )
            for role in ("ingest", "desk")
        ]
        world = Provisioning(
            owner,
            pools[0],
            pools[1],
            Authority.load(stack.endpoints.pki),
            VoucherSigner.load(stack.endpoints.pki),
            clock,
            Guesses(clock.monotonic),
        )
        world.organisation = await owner.fetchval(
            "insert into organisations (ref, name) values ('own', 'own') returning id"
        )
        world.site = await owner.fetchval(
            "insert into sites (organisation_id, ref, name, time_zone) "
            "values ($1, 'site-1', 'Lund', 'Europe/Stockholm') returning id",
            world.organisation,
        )
        for name in ("tove", "ture"):
            world.users[name] = await owner.fetchval(
                "insert into users (ref, email) values ($1, $1) returning id", name
            )
        for ref in ("door-1", "door-2", "door-3"):
            await world.spot(ref)
        yield world
