"""Dry runs on the database, and what the counts guard makes of a rollout's doors."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from server.clock import ManualClock
from server.db.engine import acting
from server.errors import NotFoundError, RefusedError
from server.firmware import counted, freezes, planning
from server.firmware.counts import Judged, Sensitivity, Verdict
from server.firmware.freezes import Wanted
from server.firmware.plan import Why
from server.firmware.planning import Asked, DryRun
from server.firmware.policy import Gate, Guards, Policy, WaveRule, write_policy
from server.firmware.watching import CountsGuard
from server.firmware.windows import Always, Rules
from server.fleet import segments
from server.fleet.segments import Follows
from tests.integration.chain_world import ChainOf
from tests.integration.desired_world import Fleet
from tests.integration.desired_world import fleet as fleet

pytestmark = pytest.mark.services

DAY = date(2026, 9, 28)  # a Monday
NOW = datetime(2026, 9, 28, 12, 0, tzinfo=UTC)
SHOPS = 26
RESTING = Rules(always=Always.CLOCK)
TWO = Policy(
    waves=(WaveRule(count=14), WaveRule()),
    windows=RESTING,
    controls=20,
    gate=Gate(soak_s=8 * 86_400),
)


@dataclass
class Stores:
    """Some shops of one counter, all of which run agent 1.1.0; and a bundle with 1.2.0."""

    fleet: Fleet
    chain: ChainOf
    organisation: int

    @property
    def owner(self) -> asyncpg.Connection:
        return self.fleet.world.owner

    async def release(self, version: str, **other: object) -> int:
        wanted = {"floor": "1.0.0", "requires": None, "hardware": ["DC2"], **other}
        found: int = await self.owner.fetchval(
            "insert into releases (ref, component, version, floor, requires, target, length, "
            "sha256, hardware, published_at) values ('rel-' || $1, 'agent', $1, $2, $3, "
            "'agent/' || $1, 2000, repeat('a', 64), $4, now()) returning id",
            *(version, *wanted.values()),
        )
        return found

    async def bundle(self, ref: str, *releases: int) -> None:
        await self.owner.execute(
            "insert into bundles (ref, name, releases, created_at) values ($1, $1, $2, now())",
            *(ref, list(releases)),
        )

    async def runs(self, device: int, version: str = "1.1.0", floor: str = "1.0.0") -> None:
        await self.owner.execute(
            "insert into device_firmware (device_id, organisation_id, hardware, components, "
            "floors, reported_at) values ($1, $2, 'DC2', $3, $4, now()) "
            "on conflict (device_id) do update set components = $3, floors = $4",
            *(device, self.organisation, json.dumps({"agent": {"version": version, "sha256": "",
              "floor": floor}}), json.dumps({"agent": floor})),
        )  # fmt: skip

    async def dry(self, asked: Asked | None = None, *, now: datetime = NOW) -> DryRun:
        """Plan as the desk does, and see that the API's readers would be told the same."""
        asked = asked or Asked("b-12", policy=TWO)
        asked = replace(asked, seed=asked.seed or "ab" * 32)
        found = []
        for pool in (self.fleet.desk, self.fleet.world.api):
            async with acting(pool, "dry run", organisation=self.organisation) as connection:
                found.append(await planning.dry_run(connection, self.organisation, asked, now=now))
        assert found[0] == found[1]
        return found[0]

    async def devices(self) -> list[int]:
        rows = await self.owner.fetch(
            "select d.id from devices d where d.device like 'dc-' || $1::int || '0%' order by 1",
            self.organisation,
        )
        return [row["id"] for row in rows]


@pytest.fixture
async def stores(fleet: Fleet) -> Stores:
    chain = ChainOf(fleet.world.owner, fleet.organisation)
    await chain.open(SHOPS, since=DAY - timedelta(days=60))
    await chain.history(DAY - timedelta(days=43), DAY)
    made = Stores(fleet, chain, fleet.organisation)
    await made.bundle("b-12", await made.release("1.2.0"))
    for device in await made.devices():
        await made.runs(device)
    return made


# -- dry runs ------------------------------------------------------------------------------------


async def test_a_dry_run_says_who_in_which_wave_and_what_comes_first_and_who_not_and_why(
    stores: Stores,
) -> None:
    devices = await stores.devices()
    await stores.runs(devices[0], "1.2.0")
    await stores.runs(devices[1], "1.1.0", floor="1.2.1")
    await stores.owner.execute("update devices set state = 'suspended' where id = $1", devices[2])
    await stores.owner.execute("update devices set model = 'DC9' where id = $1", devices[3])
    told = await stores.dry()
    assert told.plan.reasons == {
        Why.NEVER_REPORTED: 5,  # the fleet's own, of which nothing is known
        Why.ALREADY: 1, Why.BELOW_FLOOR: 1, Why.NOT_WORKING: 1, Why.WRONG_HARDWARE: 1,
    }  # fmt: skip
    assert [len(wave.devices) for wave in told.plan.waves] == [14, 8]
    assert len(told.plan.controls) == 7
    assert (told.plan.bytes_each, told.plan.bytes) == (2_000, 44_000)
    assert isinstance(told.detects, Sensitivity)
    assert (told.detects.updated, told.detects.control, told.detects.looks) == (14, 7, 7)
    assert told.detects.loss_80 < told.detects.loss_90 < 0.2
    assert told.forecast.waves[0].done_s is not None
    assert told.second_person == ("22 devices, more than 20",)
    kept = json.loads(json.dumps(told.kept()))
    assert kept["controls"] == [each.id for each in told.plan.controls]
    assert (kept["seed"], kept["excluded"]["already there"]) == ("ab" * 32, 1)
    assert await stores.dry() == told
    hasty = Policy(waves=TWO.waves, windows=RESTING, gate=Gate(soak_s=86_400))
    assert "before a whole day" in str((await stores.dry(Asked("b-12", policy=hasty))).detects)
    other = await stores.dry(Asked("b-12", policy=TWO, seed="cd" * 32))
    assert other.plan.controls != told.plan.controls
    everybody = [d.id for w in told.plan.waves for d in w.devices]
    assert Counter(everybody) == Counter(d.id for w in other.plan.waves for d in w.devices)

    # another rollout waits to start with some of these devices, and one that is over had some
    wanted = [each.id for each in told.plan.waves[0].devices[:3]]
    for ref, state in (("rollout-y", "scheduled"), ("rollout-z", "cancelled")):
        await stores.owner.execute(
            "insert into rollouts (organisation_id, ref, name, payload, bundle_id, policy, plan, "
            "state, since, author) select $1, $2, $2, 'bundle', id, '{}', $3, $4, now(), 'user b' "
            "from bundles",
            *(stores.organisation, ref, json.dumps({"waves": [wanted[:1], wanted[1:]]}), state),
        )
    assert (await stores.dry()).pending == {"rollout-y": 3}
    assert told.pending == {}
    # too old for what is far ahead, whose floor leaves no way back
    for device in devices[4:8]:
        await stores.runs(device, "0.9.0", floor="0.1.0")
    far = await stores.release("2.0.0", floor="2.0.0", requires="1.1.0")
    await stores.bundle("b-20", far)
    told = await stores.dry(Asked("b-20", policy=TWO))
    assert [(leg.release.version, len(leg.devices)) for leg in told.plan.legs] == [("1.2.0", 4)]
    (one,) = told.plan.one_way
    assert (one.release.floor, one.devices, one.versions) == ("2.0.0", 20, ("1.1.0", "1.2.0"))
    await stores.owner.execute("update releases set withdrawn_at = now() where version = '1.2.0'")
    told = await stores.dry(Asked("b-20", policy=TWO))
    assert told.plan.legs == ()
    assert told.plan.reasons[Why.STEP] == 4
    with pytest.raises(RefusedError, match="withdrawn"):
        await stores.dry()
    with pytest.raises(NotFoundError):
        await stores.dry(Asked("b-nothing"))


async def test_filters_segments_freezes_and_waves_by_filter_choose_whom_they_find(
    stores: Stores,
) -> None:
    one = f'site = "site-00{stores.organisation}"'
    waves = (WaveRule(filter=one), WaveRule())
    policy = Policy(waves=waves, windows=RESTING, controls=0)
    told = await stores.dry(Asked("b-12", policy=policy))
    assert [len(wave.devices) for wave in told.plan.waves] == [1, 25]
    async with acting(stores.fleet.desk, "segment", organisation=stores.organisation) as desk:
        made = await segments.add(
            desk, stores.organisation, name="Pilot", text='site.name ~ "Butik 0"',
            follows=Follows.LIVE, actor="user ada", now=NOW,
        )  # fmt: skip
    told = await stores.dry(Asked("b-12", filter=f"not ({one})", segment=made.ref, policy=TWO))
    assert told.plan.devices == 9
    assert told.filter == f"not {one.replace(chr(34), '')}"
    assert "it takes 5 of each" in str(told.detects)
    nobody = await stores.dry(Asked("b-12", filter='site.name = "Nowhere"', policy=TWO))
    assert (nobody.plan.devices, nobody.detects) == (0, "nobody would get it")

    # a freeze leaves its sites out, unless it is overridden
    site = f"site-00{stores.organisation}"
    async with acting(stores.fleet.desk, "freeze", organisation=stores.organisation) as desk:
        await freezes.add(
            desk, stores.organisation, actor="user ada", now=NOW,
            wanted=Wanted("Rea", "sales", NOW + timedelta(days=60), sites=f"site = {site}"),
        )  # fmt: skip
    assert (await stores.dry()).plan.reasons[Why.FROZEN] == 1
    freely = Policy(waves=TWO.waves, windows=RESTING, controls=20, override_freezes=True)
    told = await stores.dry(Asked("b-12", policy=freely))
    assert Why.FROZEN not in told.plan.reasons
    assert "it overrides freezes" in told.second_person
    awake = await stores.dry(Asked("b-12", policy=Policy(waves=TWO.waves)))
    assert awake.plan.reasons[Why.NO_WINDOW] == 26  # they never close, and nobody said when


# -- the guard -----------------------------------------------------------------------------------


async def started(stores: Stores, told: DryRun, *, at: datetime, policy: Policy = TWO) -> int:
    """Write a rollout whose first wave has confirmed at `at`, and whose last one waits."""
    plan = {"seed": told.seed, "controls": [each.id for each in told.plan.controls]}
    rollout: int = await stores.owner.fetchval(
        "insert into rollouts (organisation_id, ref, name, payload, bundle_id, policy, plan, "
        "state, since, author) select $1, 'rollout-x', 'x', 'bundle', id, $2, $3, 'running', $4, "
        "'user ada' from bundles where ref = 'b-12' returning id",
        *(stores.organisation, write_policy(policy), json.dumps(plan), at),
    )
    for wave in told.plan.waves:
        await stores.owner.execute(
            "insert into waves (rollout_id, number, organisation_id) values ($1, $2, $3)",
            *(rollout, wave.number, stores.organisation),
        )
        for device in wave.devices:
            ended = at if wave.number == 1 else None
            await stores.owner.execute(
                "insert into executions (organisation_id, ref, rollout_id, wave, pool, device_id, "
                "site_id, spot_id, state, attempted, ended_at) values ($1, $2, $3, $4, $4, $5, $6, "
                "$7, $8, $9::timestamptz is not null, $9)",
                *(stores.organisation, f"exe-{device.id}", rollout, wave.number, device.id),
                *(device.site, device.spot, "confirmed" if ended else "planned", ended),
            )
    return rollout


async def looked(stores: Stores, rollout: int, *, now: datetime) -> Judged | None:
    """Look as the conductor does, and see that the desk would be told the same."""
    found = []
    for pool in (stores.fleet.world.maint, stores.fleet.desk):
        async with acting(pool, "look", organisation=stores.organisation) as connection:
            found.append(await counted.look(connection, rollout, now=now))
    assert found[0] == found[1]
    return found[0].get(1)


async def test_a_loss_at_updated_doors_halts_once_and_the_same_weeks_without_it_do_not(
    stores: Stores,
) -> None:
    told = await stores.dry()
    rollout = await started(stores, told, at=NOW - timedelta(hours=9))
    assert (await looked(stores, rollout, now=NOW)) == Judged(
        Verdict.WATCHING, why="no whole day has been counted since the update"
    )
    updated = {each.spot for each in told.plan.waves[0].devices}
    lossy = {ref: 0.9 for ref, spot in stores.chain.spots.items() if spot in updated}
    week = DAY + timedelta(days=8)
    await stores.chain.history(DAY, week, seed=2)
    found = await looked(stores, rollout, now=NOW + timedelta(days=8))
    assert found is not None
    assert found.verdict is Verdict.CLEAR
    assert abs(found.looks[-1].effect) < 0.02
    assert (found.looks[-1].updated, found.looks[-1].control) == (14, 8)

    await stores.owner.execute("delete from rollup_day where day >= $1", DAY)
    await stores.chain.history(DAY, week, seed=2, effects=lossy)
    found = await looked(stores, rollout, now=NOW + timedelta(days=8))
    assert found is not None
    assert found.halts
    assert found.looks[-1].effect == pytest.approx(-0.1, abs=0.02)

    clock = ManualClock(int((NOW + timedelta(days=8)).timestamp() * 1000))
    guard = CountsGuard(stores.fleet.world.maint, clock)
    assert [await guard.turn(), await guard.turn()] == [1, 0]
    row = await stores.owner.fetchrow("select state, reason, counted, counted_at from rollouts")
    assert row["state"] == "halted"
    assert "% fewer people than doors that wait" in row["reason"]
    kept = json.loads(row["counted"])["1"]
    assert (kept["verdict"], kept["halted"]) == ("regressed", True)
    await stores.owner.execute("update rollouts set state = 'running', counted_at = null")
    assert await guard.turn() == 1  # somebody has acknowledged it
    assert await stores.owner.fetchval("select state from rollouts") == "running"
    await stores.owner.execute("update rollouts set counted_at = counted_at + interval '9 days'")
    assert await guard.turn() == 1  # the clock ran ahead


async def test_a_day_is_not_looked_at_before_it_is_over_and_what_arrives_late_is_waited_for(
    stores: Stores,
) -> None:
    told = await stores.dry()
    rollout = await started(stores, told, at=NOW - timedelta(hours=9))
    await stores.chain.history(DAY, DAY + timedelta(days=3), seed=2)
    midnight = datetime(2026, 9, 29, 22, 0, tzinfo=UTC)  # of the 30th, in Stockholm
    for hours, looks in ((2, 0), (4, 1), (26, 1), (28, 2)):
        found = await looked(stores, rollout, now=midnight + timedelta(hours=hours))
        assert found is not None
        assert len(found.looks) == looks


async def test_who_was_not_observed_is_left_out_and_a_policy_may_want_no_guard(
    stores: Stores,
) -> None:
    told = await stores.dry()
    week = DAY + timedelta(days=8)
    first = told.plan.waves[0].devices[0]
    ref = next(ref for ref, spot in stores.chain.spots.items() if spot == first.spot)
    dim = {(ref, DAY + timedelta(days=n)): 0.97 for n in range(2, 8)}
    await stores.chain.history(DAY, week, seed=2, coverage=dim)
    rollout = await started(stores, told, at=NOW - timedelta(hours=9))
    found = await looked(stores, rollout, now=NOW + timedelta(days=8))
    assert found is not None
    assert found.left_out == {str(first.spot): "6 of 7 days are not comparable"}
    await stores.owner.execute("update executions set state = 'offered' where ended_at is null")
    assert await looked(stores, rollout, now=NOW + timedelta(days=8)) is None  # nobody waits
    await stores.owner.execute("update executions set state = 'planned' where ended_at is null")
    without = Policy(waves=TWO.waves, guards=Guards(counts=False))
    await stores.owner.execute("update rollouts set policy = $1", write_policy(without))
    assert await looked(stores, rollout, now=NOW + timedelta(days=8)) is None
