"""How long the conductor's tick takes over 1,000,000 executions, and how fast it offers.

    python -m tests.bench.rollout [--executions N]

Ten rollouts of one organisation, their first wave open. Of all executions 1 % are under way and
due: the devices are there and have been silent for too long in their phase, so each is judged and
put off or tried again, a thousand a turn. A *tick* is one rollout's turn with its lease: lock, what
is due, decide, offer, write; the bare peer reads and writes as many rows in two statements that
decide nothing. *Offers* are the real conductor's with the ramp and caps out of its way but for one
device a site at a time; a bare update of as many rows stands beside it.
"""

import argparse
import asyncio
import sys
import time
from datetime import UTC, datetime

import asyncpg
import uvloop

from ops.bench import Row
from ops.services.endpoints import ROLES
from server.clock import ManualClock, at
from server.firmware.conductor import Conductor
from server.firmware.policy import Caps, Gate, Policy, Ramp, Timers, write_policy
from tests.bench.presence import database

EXECUTIONS = 1_000_000
ROLLOUTS = 10
TICK_S = 1.0
OFFERS_A_MINUTE = 10_000
TICKS = 60
NOW = datetime(2026, 3, 2, 22, 0, tzinfo=UTC)
POLICY = Policy(
    gate=Gate(min_sample=1_000_000),
    ramp=Ramp(base=1_000_000, top=1_000_000),
    caps=Caps(in_flight=1_000_000),
    timers=Timers(attempt_s=90 * 86_400, straggler_s=90 * 86_400),
    windows=None,
    controls=0,
)


def run(executions: int = EXECUTIONS) -> list[Row]:
    """Measure; AssertionError if a turn does not do what it is there for."""
    return uvloop.run(_run(executions))


async def _run(executions: int) -> list[Row]:
    clock = ManualClock(round(NOW.timestamp() * 1000))
    async with database() as (owner, stack):
        # to fill without triggers and references, as only a superuser may
        setting = "grant set on parameter session_replication_role to"
        await asyncio.to_thread(stack.postgres.execute, f"{setting} {ROLES['owner']}")
        await _fill(owner, executions)
        dsn = stack.endpoints.dsn("maint", "presence")
        async with asyncpg.create_pool(dsn, min_size=2, max_size=2) as pool:
            ticks, looked = await _ticks(owner, Conductor(pool, clock), clock, executions // 100)
            bare_tick_s = await _bare_tick(owner)
            offered, offers_s = await _offers(owner, Conductor(pool, clock), clock)
            bare_offer_s = await _bare_offers(owner, offered)
    p99_s = sorted(ticks)[min(len(ticks) - 1, len(ticks) * 99 // 100)]
    rate, bare = 60 * offered / offers_s, 60 * offered / bare_offer_s
    return [
        _row("rollout.tick.p50.ours", sorted(ticks)[len(ticks) // 2], "s", None, ""),
        _row("rollout.tick.p99.ours", p99_s, "s", TICK_S, "promised"),
        _row("rollout.tick.bare_sql", bare_tick_s, "s", None, ""),
        _row("rollout.looked_at.ours", looked / sum(ticks), "1/s", None, ""),
        _row("rollout.offers.ours", rate, "1/min", OFFERS_A_MINUTE, "promised"),
        _row("rollout.offers.bare_sql", bare, "1/min", None, ""),
    ]


async def _ticks(
    owner: asyncpg.Connection, conductor: Conductor, clock: ManualClock, due: int
) -> tuple[list[float], int]:
    """Take turns until nothing is due any more; return how long each rollout's took."""
    await owner.execute("update rollouts set policy = jsonb_set(policy, '{caps,in_flight}', '1')")
    taken: list[float] = []
    before = await owner.fetchval(_DUE, at(clock.now_ms()))
    assert before == due, (before, due)
    while await owner.fetchval(_DUE, at(clock.now_ms())) or len(taken) < TICKS:
        # one rollout a turn, so that a turn is one tick
        await owner.execute("update rollouts set due_at = null")
        await owner.execute(
            "update rollouts set due_at = $1, lease_until = null where id = $2",
            *(at(clock.now_ms()), 1 + len(taken) % ROLLOUTS),
        )
        started = time.perf_counter()
        assert await conductor.turn() == 1
        taken.append(time.perf_counter() - started)
        assert len(taken) < 10_000
    states = dict(await owner.fetch("select state, count(*) from executions group by 1"))
    assert "timed out" not in states, states
    return taken, due


async def _bare_tick(owner: asyncpg.Connection) -> float:
    """Read and write a thousand rows, deciding nothing."""
    started = time.perf_counter()
    async with owner.transaction():
        rows = await owner.fetch(
            "select * from executions where rollout_id = 1 and state = 'planned' "
            "order by due_at limit 1000 for no key update skip locked"
        )
        await owner.execute(
            "update executions set due_at = due_at + interval '1 second' where id = any($1)",
            [row["id"] for row in rows],
        )
    return time.perf_counter() - started


async def _offers(
    owner: asyncpg.Connection, conductor: Conductor, clock: ManualClock
) -> tuple[int, float]:
    """Let the conductor offer for twenty turns of all rollouts; return how many, and how long."""
    await owner.execute(
        "update rollouts set policy = jsonb_set(policy, '{caps,in_flight}', '1000000'), "
        "tokens = 1000000, tokens_at = $1",
        NOW,
    )
    flying = "select count(*) from executions where state = 'offered'"
    before, passed = await owner.fetchval(flying), 0.0
    for _ in range(20):
        clock.advance(5)
        await owner.execute(
            "update rollouts set due_at = $1, lease_until = null", at(clock.now_ms())
        )
        started = time.perf_counter()
        await conductor.turn()
        passed += time.perf_counter() - started
    offered = await owner.fetchval(flying) - before
    assert offered > 1_000, offered
    twice = await owner.fetchval(
        "select max(n) from (select count(*) as n from executions where ended_at is null "
        "and state <> 'planned' group by site_id) s"
    )
    assert twice == 1, twice
    return offered, passed


async def _bare_offers(owner: asyncpg.Connection, offered: int) -> float:
    """Mark as many rows as offered, in batches of a thousand, asking nothing."""
    started = time.perf_counter()
    for _ in range(0, offered, 1_000):
        await owner.execute(
            "update executions set offered_at = now() where id in (select id from executions "
            "where rollout_id = 1 and state = 'planned' order by due_at limit $1)",
            min(1_000, offered),
        )
    return time.perf_counter() - started


async def _fill(owner: asyncpg.Connection, executions: int) -> None:
    """Fill the register and ten running rollouts; of the executions 1 % are due."""
    await owner.execute(_REGISTER.format(n=executions, now=NOW.isoformat()))
    await owner.execute(_FILL.format(
        n=executions, rollouts=ROLLOUTS, now=NOW.isoformat(), policy=write_policy(POLICY)
    ))  # fmt: skip
    await owner.execute("vacuum analyze")


def _row(name: str, value: float, unit: str, limit: float | None, limit_name: str) -> Row:
    return Row(
        name=name,
        value=round(value, 4),
        unit=unit,
        limit=limit,
        limit_name=limit_name,
        ratio=None if limit is None else value / limit,
    )


_DUE = """
    select count(*) from executions where state in ('accepted', 'downloading') and due_at <= $1
"""
_REGISTER = """
    insert into organisations (ref, name) values ('bench', 'Bench');
    set session_replication_role = replica;
    insert into sites (organisation_id, ref, name, time_zone, currency)
    select 1, 'site-' || n, 'Shop', 'UTC', 'SEK' from generate_series(1, {n} / 2) n;
    insert into spots (organisation_id, site_id, ref, name, kind)
    select 1, 1 + (n - 1) / 2, 'spot-' || n, 'Spot', 'counter' from generate_series(1, {n}) n;
    insert into devices (organisation_id, device, kind, model, state)
    select 1, 'dc-' || to_char(n, 'FM0000000'), 'counter', 'DC2', 'in service'
    from generate_series(1, {n}) n;
    insert into assignments (organisation_id, device_id, spot_id, valid)
    select 1, n, n, tstzrange(null, null) from generate_series(1, {n}) n;
    insert into presences (device_id, organisation_id, session, session_at, heartbeat_at)
    select n, 1, 'open', '{now}'::timestamptz - interval '9 days', '{now}'
    from generate_series(1, {n}) n;
    insert into device_firmware (device_id, organisation_id, hardware, components, reported_at)
    select n, 1, 'DC2', '{{"agent": {{"version": "1.0.0"}}}}', '{now}'
    from generate_series(1, {n}) n;
    insert into platform (watermark) values ('{now}');
"""
_FILL = """
    insert into releases (ref, component, version, floor, target, length, sha256, hardware,
        published_at) values ('release-2', 'agent', '2.0.0', '1.0.0', 'agent/2', 1000,
        repeat('a', 64), '{{DC2}}', '{now}');
    insert into bundles (ref, name, releases, created_at)
    values ('bundle-2', 'Two', '{{1}}', '{now}');
    insert into rollouts (organisation_id, ref, name, payload, bundle_id, bytes, policy, state,
        since, author, devices)
    select 1, 'rollout-' || n, 'Two', 'bundle', 1, 1000, '{policy}', 'running', '{now}', 'user',
           {n} / {rollouts}
    from generate_series(1, {rollouts}) n;
    insert into waves (rollout_id, number, organisation_id, kind, state, opened_at, size, total)
    select r, w, 1, case w when 0 then 'stragglers' when 1 then 'wave' else 'tail' end,
           case w when 2 then 'pending' else 'open' end, '{now}',
           case w when 1 then {n} / {rollouts} else 0 end,
           case w when 1 then jsonb_build_object('attempted', {n} / {rollouts} / 100,
               'flying', {n} / {rollouts} / 100) else '{{}}' end
    from generate_series(1, {rollouts}) r, generate_series(0, 2) w;
    insert into executions (organisation_id, ref, rollout_id, wave, pool, device_id, site_id,
        spot_id, state, attempted, due_at, offered_at, accepted_at, phase_at)
    select 1, 'exe-' || n, 1 + n % {rollouts}, 1, 1, n, 1 + (n - 1) / 2, n,
           case when due then case n / 100 % 2 when 0 then 'accepted' else 'downloading' end
               else 'planned' end, due,
           '{now}'::timestamptz - case when due then interval '1 second' else interval '0' end,
           case when due then '{now}'::timestamptz - interval '1 day' end,
           case when due then '{now}'::timestamptz - interval '1 day' end,
           case when due then '{now}'::timestamptz
               - case n % 3 when 0 then interval '10 minutes' else interval '6 hours' end end
    from generate_series(1, {n}) n, lateral (select n / {rollouts} % 100 = 0) x (due);
"""


def main() -> int:
    """Print the rows; 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=EXECUTIONS)
    rows = run(parser.parse_args().executions)
    for row in rows:
        sys.stdout.write(f"{row['name']:28} {row['value']:12.3f} {row['unit']}\n")
    kept = {row["name"]: row["ratio"] for row in rows if row["ratio"] is not None}
    return int(kept["rollout.tick.p99.ours"] > 1 or kept["rollout.offers.ours"] < 1)


if __name__ == "__main__":
    sys.exit(main())
