"""Technicians' claims against a small reference: whatever is done in whatever order."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from ops.services.stack import Stack
from protocol.label import Label
from server.db.engine import acting
from server.errors import RefusedError
from server.provisioning.enrol import Pending
from server.provisioning.sweep import sweep
from server.provisioning.technician import CLAIM_LIFE, end_claim
from tests.emptying import empty
from tests.integration.provisioning_world import Key, Provisioning, provisioning

pytestmark = [pytest.mark.services, pytest.mark.timeout(600)]

T = TypeVar("T")
DEVICES = ("DC-0001", "DC-0002", "DC-0003")
SPOTS = ("door-1", "door-2")
devices, spots = st.sampled_from(DEVICES), st.sampled_from(SPOTS)
users = st.sampled_from(("tove", "ture"))


@dataclass
class Claim:
    """An open claim, as the reference has it."""

    user: str
    spot: str
    replaces: str | None
    expires: datetime


@dataclass
class Model:
    """What should be so."""

    stands: dict[str, str] = field(default_factory=dict)
    enrolled: set[str] = field(default_factory=set)
    returned: set[str] = field(default_factory=set)
    claims: dict[str, Claim] = field(default_factory=dict)

    def open(self, device: str, claim: Claim, *, now: datetime, reason: bool) -> str:
        """Return the refusal, or nothing."""
        if device in self.returned:
            return "device_not_admitted"
        for other, held in list(self.claims.items()):
            if other == device or held.spot == claim.spot:
                if held.user != claim.user and held.expires > now and not reason:
                    return "claimed_by_another"
                del self.claims[other]
        if self.stands.get(device) == claim.spot:
            if claim.replaces is not None:
                return "not_replaceable"
        else:
            holders = {d for d, spot in self.stands.items() if spot == claim.spot}
            if claim.replaces is None and holders:
                return "spot_taken"
            if claim.replaces is not None and holders != {claim.replaces}:
                return "not_replaceable"
            if device in self.stands and not reason:
                return "stands_elsewhere"
        self.claims[device] = claim
        if device in self.enrolled:
            self.complete(device)
        return ""

    def complete(self, device: str) -> None:
        claim = self.claims.pop(device)
        self.stands[device] = claim.spot
        replaced = claim.replaces
        if replaced is None:
            return
        if self.stands.get(replaced) == claim.spot:
            del self.stands[replaced]
        if replaced not in self.stands:
            self.returned.add(replaced)
            self.enrolled.discard(replaced)

    def ask(self, device: str, *, now: datetime) -> str:
        if device in self.returned:
            return "device_not_admitted"
        claim = self.claims.get(device)
        waits = claim is not None and claim.expires > now
        if device not in self.enrolled and not waits:
            return "pending"
        self.enrolled.add(device)
        if waits:
            self.complete(device)
        return ""


class Technicians(RuleBasedStateMachine):
    """Drives both; a class attribute brings the world, since hypothesis makes the instances."""

    run: Any
    world: Any

    @initialize()
    def begin(self) -> None:
        self.exits = AsyncExitStack()
        self.place, self.labels = self.run(self._begin())
        self.keys = {serial: Key() for serial in DEVICES}
        self.model = Model()
        self.refs: dict[str, str] = {}

    async def _begin(self) -> tuple[Provisioning, dict[str, Label]]:
        place: Provisioning = await self.exits.enter_async_context(await self.world())
        await place.policy("technician")
        return place, {serial: await place.device(serial) for serial in DEVICES}

    def teardown(self) -> None:
        if hasattr(self, "exits"):
            self.run(self.exits.aclose())

    def code(self, doing: Coroutine[Any, Any, T]) -> tuple[str, T | None]:
        try:
            return "", self.run(doing)
        except RefusedError as error:
            return error.code, None

    @rule(
        device=devices, spot=spots, user=users, replaces=st.none() | devices, reason=st.booleans()
    )
    def claim(self, device: str, spot: str, user: str, replaces: str | None, reason: bool) -> None:
        now = self.place.later(seconds=1)
        tried = deepcopy(self.model)
        wanted = tried.open(
            device, Claim(user, spot, replaces, now + CLAIM_LIFE), now=now, reason=reason
        )
        again = {"user": user, "replaces": replaces, "reason": "because" if reason else ""}
        got, claim = self.code(self.place.claim(device, spot, **again))
        assert got == wanted
        if claim is not None:
            self.model = tried
            self.refs[device] = claim.ref
            repeated = self.run(self.place.claim(device, spot, **again))
            assert repeated.ref == claim.ref

    @rule(device=devices)
    def ask(self, device: str) -> None:
        self.place.later(seconds=1)
        tried = deepcopy(self.model)
        wanted = tried.ask(device, now=self.place.now)
        got, answer = self.code(self.place.ask(self.labels[device], self.keys[device]))
        assert ("pending" if isinstance(answer, Pending) else got) == wanted
        if wanted == "":
            self.model = tried

    @rule(device=devices)
    def end(self, device: str) -> None:
        if device not in self.refs:
            return
        self.run(self._end(self.refs[device]))
        claim = self.run(self.place.found(self.refs[device]))
        if claim.state == "ended":
            self.model.claims.pop(device, None)

    async def _end(self, ref: str) -> None:
        place = self.place
        async with acting(place.desk, "end", organisation=place.organisation) as connection:
            await end_claim(connection, ref, user_id=place.users["tove"], now=place.now)

    @rule(minutes=st.integers(1, 20))
    def pass_time(self, minutes: int) -> None:
        self.place.later(minutes=minutes)

    @rule()
    def clean(self) -> None:
        assert self.run(sweep(self.place.ingest, now=self.place.now)) == 0

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        rows = self.run(self._seen())
        seen = {row["serial"]: row for row in rows}
        for serial in DEVICES:
            row = seen[serial]
            assert row["spots"] == [s for d, s in self.model.stands.items() if d == serial]
            assert row["active"] == (serial in self.model.enrolled)
            assert (row["state"] == "returned") == (serial in self.model.returned)
            assert row["open"] == (serial in self.model.claims)

    async def _seen(self) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.place.owner.fetch(
            "select d.serial, d.state, array(select p.ref from assignments a join spots p "
            "on p.id = a.spot_id where a.device_id = d.id and upper_inf(a.valid)) as spots, "
            "exists (select from certificates c where c.device_id = d.id and c.state = 'active') "
            "as active, exists (select from technician_claims t where t.device_id = d.id "
            "and t.used_at is null and t.ended_at is null) as open "
            "from devices d where d.organisation_id = $1",
            self.place.organisation,
        )
        return rows


@contextmanager
def _world(stack: Stack, database: str) -> Iterator[None]:
    """Give the machine a loop that outlives its steps, and an emptied database for each run."""
    with asyncio.Runner() as runner:
        owner = runner.run(asyncpg.connect(stack.endpoints.dsn("owner", database)))

        async def fresh() -> Any:
            await empty(owner)
            return provisioning(stack, database, owner)

        Technicians.run = staticmethod(runner.run)
        Technicians.world = staticmethod(fresh)
        try:
            yield
        finally:
            runner.run(owner.close())


def test_claims_do_what_the_reference_does(stack: Stack, world_database: str) -> None:
    with _world(stack, world_database):
        run_state_machine_as_test(
            Technicians,
            settings=settings(
                max_examples=25,
                stateful_step_count=30,
                deadline=timedelta(seconds=30),
                suppress_health_check=list(HealthCheck),
            ),
        )
