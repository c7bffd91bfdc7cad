"""Presence with real agents, broker, server and database: who is called gone, and who is not."""

import os
import signal
import time
from collections.abc import Callable, Iterator

import asyncpg
import pytest

from ops.chaos.device import Device
from ops.chaos.system import System, blocking
from server.health.platform import CANARY
from server.health.presence import DRAIN, GRACE

pytestmark = [pytest.mark.services, pytest.mark.long, pytest.mark.timeout(420)]

KEEPALIVE_S = 45
TURN_S = 3.0  # a turn of the watch, and of the canary's way
LATEST_S = GRACE.total_seconds() + CANARY.total_seconds() + TURN_S


@pytest.fixture
def devices(system: System) -> Iterator[list[Device]]:
    """Three counters whose agents run and are called healthy; ended afterwards."""
    made = system.enrol(3)
    for device in made:
        device.start()
    wait(lambda: set(states(system, made)) == {"healthy"}, "all are healthy")
    yield made
    for device in made:
        device.agent.kill()


def wait(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + timeout_s, f"still not: {what}"
        time.sleep(0.1)
    return time.monotonic() - began


def sql(system: System, statement: str, *values: object) -> list[asyncpg.Record]:
    """Run one statement as the owner."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(system.dsn)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    return blocking(run())


def states(system: System, devices: list[Device]) -> list[str]:
    rows = sql(
        system,
        "select p.state from presences p join devices d on d.id = p.device_id "
        "where d.device = any($1::text[]) order by array_position($1::text[], d.device)",
        [device.device for device in devices],
    )
    return [row["state"] for row in rows]


def told(system: System, device: Device, kind: str = "state") -> list[tuple[str, str]]:
    rows = sql(
        system,
        "select e.state, e.reason from device_events e join devices d on d.id = e.device_id "
        "where d.device = $1 and e.kind = $2 order by e.id",
        *(device.device, kind),
    )
    return [(row["state"], row["reason"]) for row in rows]


def unknowns(system: System) -> list[tuple[str, bool]]:
    rows = sql(system, "select cause, until is null as open from platform_unknown order by id")
    return [(row["cause"], row["open"]) for row in rows]


def test_an_agent_that_is_killed_is_offline_and_back_as_soon_as_it_is(
    system: System, devices: list[Device]
) -> None:
    killed, *others = devices
    killed.agent.kill()
    took_s = wait(lambda: states(system, [killed]) == ["offline"], "it is offline")
    assert took_s < min(LATEST_S, 1.5 * KEEPALIVE_S)
    assert states(system, others) == ["healthy", "healthy"]
    killed.start()
    assert wait(lambda: states(system, [killed]) == ["healthy"], "it is back") < 10
    assert told(system, killed) == [("healthy", ""), ("offline", ""), ("healthy", "")]
    (boots,) = sql(
        system,
        "select count(*) as n from device_events e join devices d on d.id = e.device_id "
        "where d.device = $1 and e.kind = 'boot'",
        killed.device,
    )
    assert boots["n"] == 2


def test_a_machine_that_freezes_is_offline_within_one_and_a_half_keepalives(
    system: System, devices: list[Device]
) -> None:
    frozen, *others = devices
    assert frozen.agent.pid is not None
    os.kill(frozen.agent.pid, signal.SIGSTOP)
    try:
        most_s = 1.5 * KEEPALIVE_S + LATEST_S
        wait(lambda: states(system, [frozen]) == ["offline"], "it is offline", most_s)
        assert states(system, others) == ["healthy", "healthy"]
    finally:
        os.kill(frozen.agent.pid, signal.SIGCONT)
    wait(lambda: states(system, [frozen]) == ["healthy"], "it is back", 90)


def test_an_agent_that_is_stopped_has_said_goodbye(system: System, devices: list[Device]) -> None:
    stopped, updated, other = devices
    (updated.state / "leaving.json").write_text('{"reason": "update", "back_s": 600}')
    for device in (stopped, updated):
        device.agent.end()
    planned = ["offline planned", "offline planned", "healthy"]
    assert wait(lambda: states(system, devices) == planned, "they have left") < 5
    assert told(system, stopped)[-1] == ("offline planned", "stopped")
    assert told(system, updated)[-1] == ("offline planned", "update")
    updated.start()
    wait(lambda: states(system, [updated]) == ["healthy"], "it is back")
    updated.agent.end()
    assert other.agent.running
    wait(
        lambda: [reason for _, reason in told(system, updated)][-1] == "stopped",
        "it left once more",
    )


def test_a_broker_that_is_killed_calls_nobody_gone_and_is_one_unknown(
    system: System, devices: list[Device]
) -> None:
    before = [told(system, device) for device in devices]
    known = unknowns(system)
    system.stack.broker.kill()
    time.sleep(25)  # longer than the watermark may stand still
    assert unknowns(system) == [*known, ("behind", True)]
    system.stack.broker.start()
    most_s = DRAIN.total_seconds() + 30
    wait(lambda: not any(still for _, still in unknowns(system)), "all is known again", most_s)
    assert unknowns(system) == [*known, ("broker", False)]
    assert states(system, devices) == ["healthy"] * 3
    time.sleep(LATEST_S)
    assert [told(system, device) for device in devices] == before


def test_a_broker_that_is_stopped_in_order_calls_nobody_gone_either(
    system: System, devices: list[Device]
) -> None:
    before = [told(system, device) for device in devices]
    system.stack.broker.stop()
    system.stack.broker.start()
    most_s = DRAIN.total_seconds() + 30
    wait(lambda: len(told(system, devices[0], "connected")) > 1, "it has connected again", most_s)
    wait(lambda: not any(still for _, still in unknowns(system)), "all is known again", most_s)
    time.sleep(LATEST_S)
    assert [told(system, device) for device in devices] == before
    assert states(system, devices) == ["healthy"] * 3


def test_who_goes_down_with_the_broker_is_found_missing_once_the_others_are_back(
    system: System, devices: list[Device]
) -> None:
    gone, *others = devices
    system.stack.broker.kill()
    gone.agent.kill()
    system.stack.broker.start()
    most_s = DRAIN.total_seconds() + 30
    wait(lambda: states(system, [gone]) == ["offline"], "it is offline", most_s)
    assert states(system, others) == ["healthy", "healthy"]


def test_a_server_that_is_stopped_and_started_changes_nothing(
    system: System, devices: list[Device]
) -> None:
    before = [told(system, device) for device in devices]
    connected = [told(system, device, "connected") for device in devices]
    system.server.end()
    time.sleep(3)
    system.start()
    time.sleep(LATEST_S)
    assert [told(system, device) for device in devices] == before
    assert [told(system, device, "connected") for device in devices] == connected
    assert states(system, devices) == ["healthy"] * 3


def test_a_server_hears_of_what_happened_while_it_was_away(
    system: System, devices: list[Device]
) -> None:
    killed, stopped, other = devices
    system.server.end()
    killed.agent.kill()
    stopped.agent.end()
    time.sleep(1)
    system.start()
    wanted = ["offline", "offline planned", "healthy"]
    wait(lambda: states(system, [killed, stopped, other]) == wanted, "all is told", 90)
