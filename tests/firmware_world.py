"""Rollouts on the real database in virtual time, with devices that follow a script.

A device asks as the exchange does (`reports.hear`, `reports.runs`, `granting.grant`, in one
transaction as ingest) and does one step of its update each time it is stepped.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from ops.services.stack import Stack
from protocol.update import Attempt, Class, Phase, Step
from server.clock import ManualClock, at
from server.db.engine import acting, open_pool, transaction
from server.firmware import acts, granting, reports
from server.firmware.conductor import Conductor
from server.firmware.life import Counters, tally
from server.firmware.policy import Caps, Gate, Guards, OnHalt, Policy, Ramp, write_policy
from server.firmware.rollout import Json, Kind, Transition, replayed
from server.firmware.rows import COLUMNS, Held, execution_of, hold
from server.firmware.waves import Rollout
from tests.ingest_world import owning

START = datetime(2026, 3, 2, 22, 0, tzinfo=UTC)
AUTHOR, APPROVER = "user-plans", "user-approves"
QUICK = Policy(
    gate=Gate(success_pct=90, min_sample=2, soak_s=60),
    guards=Guards(fail_abs=3, fail_pct=50, min_sample=5),
    ramp=Ramp(base=600, step=50, top=600),
    caps=Caps(in_flight=20),
    windows=None,
    on_halt=OnHalt.REVERT_ALL,
    controls=0,
)
GOOD = (Phase.ACCEPTED, Phase.INSTALLING, Phase.TRIAL, Phase.CONFIRMED)
BAD = (*GOOD[:-1], Phase.REVERTED)
BROKEN = (Phase.ACCEPTED, Phase.FAILED)
SILENT = GOOD[:2]


@dataclass
class Device:
    """A device that follows its script for the new version, and takes any other as it should."""

    row: int
    version: str
    script: Sequence[Phase] = GOOD
    steps: list[Step] = field(default_factory=list)
    execution: tuple[str, int] = ("", 0)
    wanted: str = ""
    here: bool = True
    installs: int = 0


@dataclass
class World:
    """A fleet of one organisation, and its rollouts."""

    owner: asyncpg.Connection
    ingest: asyncpg.Pool
    desk: asyncpg.Pool
    maint: asyncpg.Pool
    clock: ManualClock
    dsn: str
    organisation: int = 0
    devices: dict[int, Device] = field(default_factory=dict)
    releases: dict[str, int] = field(default_factory=dict)

    @property
    def now(self) -> datetime:
        """The time."""
        return at(self.clock.now_ms())

    @property
    def conductor(self) -> Conductor:
        """A conductor."""
        return Conductor(self.maint, self.clock)

    # -- what there is

    async def fleet(self, sites: int, *, each: int = 1, doors: int = 1) -> list[int]:
        """Add sites with `each` devices, spread over so many doors; return the devices' rows."""
        await self.owner.execute(_FLEET, self.organisation, sites, each, doors)
        rows = await self.owner.fetch(
            "select id from devices where organisation_id = $1 order by id", self.organisation
        )
        found = [row["id"] for row in rows if row["id"] not in self.devices]
        await self.owner.executemany(
            "insert into device_firmware (device_id, organisation_id, hardware, components) "
            "values ($1, $2, 'DC2', $3)",
            [(row, self.organisation, _components("1.0.0")) for row in found],
        )
        await self.owner.execute(
            "update presences set session = 'open', session_at = $1, heartbeat_at = $1 "
            "where device_id = any($2)",
            *(START, found),
        )
        self.devices |= {row: Device(row, "1.0.0") for row in found}
        return found

    async def run_everywhere(self, version: str) -> None:
        """Let all devices run a version, however they came to it."""
        for device in self.devices.values():
            device.version = version
        await self.owner.execute("update device_firmware set components = $1", _components(version))

    async def release(self, version: str, *, floor: str = "1.0.0") -> str:
        """Publish a release of the agent; return the bundle that holds it alone."""
        self.releases[version] = await self.owner.fetchval(
            "insert into releases (ref, component, version, floor, target, length, sha256, "
            "hardware, published_at) values ($1, 'agent', $2, $3, $1, 1000, repeat('a', 64), "
            "'{DC2}', $4) returning id",
            *(f"release-{version}", version, floor, START),
        )
        ref: str = await self.owner.fetchval(
            "insert into bundles (ref, name, releases, created_at) values ($1, $1, $2, $3) "
            "returning ref",
            *(f"bundle-{version}", [self.releases[version]], START),
        )
        return ref

    async def rollout(
        self,
        waves: Sequence[Sequence[int]],
        *,
        policy: Policy = QUICK,
        bundle: str = "bundle-2.0.0",
        excluded: Sequence[tuple[int, str]] = (),
        started: bool = True,
    ) -> str:
        """Draft, plan, submit and approve a rollout; `started`: it is conducted once, too."""
        new = acts.New("Agent", write_policy(policy), bundle=bundle)
        plan = {"waves": [list(wave) for wave in waves], "excluded": list(excluded)}
        async with self.act() as connection:
            given = connection, self.organisation
            ref = await acts.draft(*given, new, actor=AUTHOR, now=self.now)
            await acts.plan(*given, ref, plan, actor=AUTHOR, now=self.now)
            await acts.submit(*given, ref, actor=AUTHOR, now=self.now)
            await acts.approve(*given, ref, actor=APPROVER, now=self.now)
        if started:
            await self.conductor.turn()
        return ref

    @asynccontextmanager
    async def act(self) -> AsyncIterator[asyncpg.Connection]:
        """A transaction of the desk."""
        async with acting(self.desk, "act", organisation=self.organisation) as connection:
            yield connection

    # -- time and devices

    async def pass_time(
        self, seconds: float, *, step_s: float = 5.0, watch: Callable[[], None] | None = None
    ) -> None:
        """Let time pass: the conductor takes its turns, devices that have something to do do it."""
        end = self.clock.now_ms() + round(seconds * 1000)
        while self.clock.now_ms() < end:
            await self.conductor.turn()
            for device in await self.busy():
                await self.step(device)
            if watch is not None:
                watch()
            self.clock.advance(step_s)

    async def busy(self) -> list[Device]:
        """Return the devices that are there and have an execution under way."""
        rows = await self.owner.fetch(
            "select device_id from executions where ended_at is null and state <> 'planned' "
            "order by id"
        )
        return [d for row in rows if (d := self.devices[row["device_id"]]).here]

    async def step(self, device: Device) -> None:
        """Let a device ask, and do the next step of what it is told."""
        row = await self.owner.fetchrow(
            "select e.ref, e.attempt, r.version from executions e "
            "join rollouts o on o.id = e.rollout_id left join bundles b on b.id = o.bundle_id "
            "join releases r on r.id = (coalesce(e.releases, b.releases))[1] "
            "where e.device_id = $1 and e.ended_at is null and e.state <> 'planned'",
            device.row,
        )
        if row is None:
            return
        if (row["ref"], row["attempt"]) != device.execution:
            device.execution, device.steps = (row["ref"], row["attempt"]), []
            device.wanted = row["version"]
        script = GOOD if device.wanted == "1.0.0" else device.script
        done = len(device.steps)
        if done < len(script):
            phase = script[done]
            if phase is Phase.INSTALLING:
                device.installs += 1
            if phase is Phase.CONFIRMED:
                device.version = device.wanted
            device.steps.append(step_of(row["ref"], row["attempt"], done + 1, phase))
            await self.ask(device, device.steps[-1:])

    async def ask(
        self, device: Device, steps: Iterable[Step], *, fresh: bool = True
    ) -> reports.Heard:
        """Let a device say steps, as the exchange takes them in."""
        async with transaction(self.ingest, "exchange") as connection:
            heard = await reports.hear(
                connection, device.row, list(steps), fresh=fresh, now=self.now
            )
            await connection.execute(
                "update device_firmware set components = $2, reported_at = $3 where device_id = $1",
                *(device.row, _components(device.version), self.now),
            )
            runs = {"agent": device.version}
            await reports.runs(connection, device.row, runs, now=self.now)
            await granting.grant(connection, device.row, now=self.now)
        return heard

    async def leave(self, device: Device) -> None:
        """Let a device go offline now."""
        device.here = False
        await self.owner.execute(
            "update presences set session = 'lost', session_at = $2, heartbeat_at = $2 "
            "where device_id = $1",
            *(device.row, self.now),
        )

    async def arrive(self, device: Device) -> None:
        """Let a device come back now."""
        device.here = True
        await self.owner.execute(
            "update presences set session = 'open', session_at = $2, heartbeat_at = $2 "
            "where device_id = $1",
            *(device.row, self.now),
        )

    # -- what has become of it

    async def state(self, ref: str) -> str:
        """Return a rollout's state."""
        found: str = await self.owner.fetchval("select state from rollouts where ref = $1", ref)
        return found

    async def states(self, ref: str) -> dict[str, int]:
        """Return how many executions of a rollout stand how."""
        rows = await self.owner.fetch(
            "select e.state, count(*)::int from executions e join rollouts o on o.id = rollout_id "
            "where o.ref = $1 group by 1",
            ref,
        )
        return dict(rows)

    async def kinds(self, ref: str) -> list[str]:
        """Return the kinds of a rollout's transitions."""
        rows = await self.owner.fetch(
            "select event from rollout_events v join rollouts o on o.id = rollout_id "
            "where o.ref = $1 order by v.id",
            ref,
        )
        return [row["event"] for row in rows]

    async def held(self, ref: str) -> Held:
        """Return a rollout as it is stored."""
        number = await self.owner.fetchval("select id from rollouts where ref = $1", ref)
        found = await hold(self.owner, number, now=self.now)
        assert found is not None
        return found

    async def digest(self) -> str:
        """Return a digest of all that rollouts have written, leases apart."""
        found: str = await self.owner.fetchval(
            "select md5(concat((select string_agg(e::text, ',' order by id) from executions e), "
            "(select string_agg(w::text, ',' order by rollout_id, number) from waves w), "
            "(select string_agg(v::text, ',' order by id) from rollout_events v), "
            "(select string_agg(concat(id, state, epoch, tokens, due_at), ',' order by id) "
            "from rollouts)))"
        )
        return found

    async def agrees(self, ref: str) -> None:
        """Hold a rollout to the fold of its rows, and its counters to its executions."""
        held = await self.held(ref)
        assert without_counters(await self.folded(ref)) == without_counters(held.rollout)
        rows = await self.owner.fetch(
            f"select e.pool, {COLUMNS} from executions e "
            "where e.rollout_id = $1 and e.excluded = ''",
            held.facts.id,
        )
        for wave in held.rollout.waves:
            own = [execution_of(row) for row in rows if row["pool"] == wave.number]
            assert len(own) == wave.size
            assert sum(map(tally, own), Counters()) == wave.total

    async def folded(self, ref: str) -> Rollout:
        """Return what the rows of rollout_events make of a draft."""
        held = await self.held(ref)
        rollout = held.rollout
        draft = Rollout(rollout.policy, rollout.author, reverse=rollout.reverse)
        rows = await self.owner.fetch(
            "select * from rollout_events where rollout_id = $1 order by id", held.facts.id
        )
        return replayed(draft, [_transition(row) for row in rows])


def without_counters(rollout: Rollout) -> Rollout:
    """Return what of a rollout its transitions say."""
    waves = tuple(replace(wave, total=type(wave.total)(), size=0) for wave in rollout.waves)
    return replace(rollout, waves=waves)


def _transition(row: asyncpg.Record) -> Transition:
    detail: dict[str, Json] = json.loads(row["detail"])
    return Transition(
        Kind(row["event"]),
        row["at"],
        row["actor"],
        row["reason"],
        detail,
        json.loads(row["counters"]),
    )


def step_of(ref: str, attempt: int, seq: int, phase: Phase, *, code: str = "") -> Step:
    """Return a step as a device says it."""
    failed = phase in (Phase.FAILED, Phase.REJECTED)
    kind = Class.SELF_TEST if failed else None
    return Step(Attempt(ref, attempt), seq, phase, code or ("broken" if failed else ""), kind)


def _components(version: str) -> str:
    return json.dumps({"agent": {"version": version, "sha256": "", "floor": ""}})


_FLEET = """
with s as (insert into sites (organisation_id, ref, name, time_zone, currency)
    select $1, 'site-' || gen_random_uuid(), 'Shop', 'UTC', 'SEK' from generate_series(1, $2)
    returning id),
d as (insert into doors (organisation_id, site_id, ref, name)
    select $1, s.id, 'door-' || gen_random_uuid(), 'Door' from s, generate_series(1, $4)
    returning id, site_id),
n as (select id, site_id, row_number() over (partition by site_id order by id) as nth from d),
p as (insert into spots (organisation_id, site_id, door_id, ref, name, kind)
    select $1, s.id, n.id, 'spot-' || gen_random_uuid(), 'Spot', 'counter'
    from s, generate_series(1, $3) g join n on true
    where n.site_id = s.id and n.nth = 1 + g % $4 returning id),
v as (insert into devices (organisation_id, device, kind, model, state)
    select $1, 'dc-' || replace(gen_random_uuid()::text, '-', ''), 'counter', 'DC2', 'in service'
    from p returning id),
numbered as (select p.id as spot, v.id as device from
    (select id, row_number() over (order by id) as nth from p) p
    join (select id, row_number() over (order by id) as nth from v) v using (nth))
insert into assignments (organisation_id, device_id, spot_id, valid)
select $1, device, spot, tstzrange(null, null) from numbered
"""


@asynccontextmanager
async def firmware_world(stack: Stack, database: str) -> AsyncIterator[World]:
    """A world with one organisation and releases 1.0.0 and 2.0.0 of the agent."""
    async with AsyncExitStack() as exits:
        owner = await exits.enter_async_context(owning(stack, database))
        pools = [
            await exits.enter_async_context(
                open_pool(stack.endpoints.dsn(role, database), size=4, name="test")
            )
            for role in ("ingest", "desk", "maint")
        ]
        clock = ManualClock(round(START.timestamp() * 1000))
        ingest, desk, maint = pools
        world = World(owner, ingest, desk, maint, clock, stack.endpoints.dsn("maint", database))
        world.organisation = await owner.fetchval(
            "insert into organisations (ref, name) values ('shops', 'Shops') returning id"
        )
        for version in ("1.0.0", "2.0.0"):
            await world.release(version)
        yield world


@pytest.fixture
async def world(stack: Stack, database: str) -> AsyncIterator[World]:
    """A world of firmware."""
    async with firmware_world(stack, database) as found:
        yield found


def later(now: datetime, seconds: float) -> datetime:
    """Return so much later."""
    return now + timedelta(seconds=seconds)
