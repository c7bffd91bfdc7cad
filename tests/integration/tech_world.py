"""A site with two spots and a technician at it, whose phone sends acts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from aiohttp import ClientSession

from protocol.label import Label, bind_proof, label
from server.people.roles import Grant, Role
from tests.integration.people_world import People

EMAIL = "tove@example.com"
JSON = {"Accept": "application/json", "Sec-Fetch-Site": "same-origin"}


@dataclass
class Shop:
    """A site with two spots and a technician who is signed in."""

    people: People
    organisation: int
    site: int
    user: int
    phone: ClientSession
    numbers: list[int] = field(default_factory=lambda: [0])

    @property
    def now(self) -> datetime:
        return self.people.now

    async def device(self, serial: str = "DC-0001", *, kind: str = "counter") -> Label:
        """Put a device on the allow-list; its label."""
        digits = "".join("23456789AB"[ord(c) % 10] for c in serial)
        found = label(serial, (digits * 16)[:16])
        await self.people.owner.execute(
            "insert into devices (organisation_id, device, kind, serial, setup_sha256, state) "
            "values ($1, $2, $3, $4, $5, 'manufactured')",
            *(self.organisation, f"dc-{serial.lower():a>9}", kind, serial, found.secret_sha256),
        )
        return found

    async def enrol(self, serial: str) -> None:
        """Give a device the certificate that it would have asked for."""
        await self.people.owner.execute(
            "insert into certificates (serial, organisation_id, device_id, spki_sha256, state, "
            "activated_at) select $1, organisation_id, id, sha256($1::text::bytea), 'active', $2 "
            "from devices where serial = $1",
            *(serial, self.now),
        )

    def act(self, kind: str, **said: Any) -> dict[str, Any]:
        """Return what a phone would send."""
        self.numbers[0] += 1
        at_ms = said.pop("at_ms", round(self.now.timestamp() * 1000))
        return {"act": f"act-{self.numbers[0]:08}", "kind": kind, "at_ms": at_ms, **said}

    async def send(
        self,
        *acts: Any,
        phone: ClientSession | None = None,
        csrf: str | None = None,
        **headers: str,
    ) -> list[dict[str, Any]]:
        """Send a batch as a page would; the answers."""
        phone = phone or self.phone
        if csrf is None:
            async with phone.get("/tech/session", headers=JSON) as response:
                csrf = (await response.json())["csrf"] if response.status == 200 else ""
        async with phone.post(
            "/tech/acts",
            json={"acts": list(acts)},
            headers={**JSON, "X-CSRF-Token": csrf, **headers},
        ) as response:
            assert response.status == 200, await response.text()
            answers: list[dict[str, Any]] = (await response.json())["answers"]
            return answers

    async def claim(self, found: Label, spot: str = "door-1", **said: Any) -> dict[str, Any]:
        [answer] = await self.send(self.act("claim", spot=spot, label=found.text, **said))
        return answer

    async def voucher(self) -> dict[str, Any]:
        """Take the site along."""
        async with self.phone.get("/tech/session", headers=JSON) as response:
            csrf = (await response.json())["csrf"]
        async with self.phone.post(
            "/tech/sites/own-site/voucher", headers={**JSON, "X-CSRF-Token": csrf}
        ) as response:
            found: dict[str, Any] = await response.json()
            return found

    def bound(self, found: Label, voucher: dict[str, Any], spot: str = "door-1") -> dict[str, Any]:
        """Return the act of a phone without signal."""
        at_ms = round(self.now.timestamp() * 1000)
        proof = bind_proof(
            found.secret_sha256,
            voucher=voucher["ref"],
            serial=found.serial,
            spot=spot,
            at_ms=at_ms,
        )
        return self.act(
            "bind", spot=spot, serial=found.serial, proof=proof, voucher=voucher["text"]
        )

    async def state(self, serial: str = "DC-0001") -> str:
        found: str = await self.people.owner.fetchval(
            "select state from devices where serial = $1", serial
        )
        return found

    async def stands(self) -> list[tuple[str, str, datetime | None]]:
        """Return who stood where, and until when."""
        rows = await self.people.owner.fetch(
            "select d.serial, p.ref, upper(a.valid) as until from assignments a "
            "join devices d on d.id = a.device_id join spots p on p.id = a.spot_id order by a.id"
        )
        return [(row["serial"], row["ref"], row["until"]) for row in rows]


@pytest.fixture
async def shop(people: People) -> Shop:
    """Two spots at the own organisation's site, and a technician of that site alone."""
    organisation = people.organisations["own"]
    site = await people.owner.fetchval("select id from sites where ref = 'own-site'")
    for ref in ("door-1", "door-2"):
        await people.owner.execute(
            "insert into spots (organisation_id, site_id, ref, name, kind) "
            "values ($1, $2, $3, $3, 'counter')",
            *(organisation, site, ref),
        )
    user = await people.user(EMAIL, Grant(Role.TECHNICIAN, organisation, site=site))
    return Shop(people, organisation, site, user, await people.signed_in(EMAIL))
