"""The time that a device believes: without a clock, that of the newest releases it has seen."""

from datetime import timedelta
from typing import Any

from agent.update.agreement import Fault
from tests.releases_world import (
    DAY,
    World,
    begun,
    fleet,
    ms,
    world,
)

__all__ = ["begun", "fleet", "world"]


def test_a_device_without_a_clock_goes_by_the_time_that_the_releases_were_signed(
    world: World,
) -> None:
    target = world.target
    world.now += timedelta(days=40)
    world.repository.resign(now=world.now)
    found = world.ask(world.assignment(target), now_ms=None)
    assert found.now_ms == ms(world.now)
    ended = world.assignment(target, not_after_ms=ms(world.now) - 1)
    assert world.fault(ended, now_ms=None) is Fault.EXPIRED


def test_its_time_never_runs_back(world: World) -> None:
    target = world.target
    names = world.names().values()
    held = {name: world.repository.metadata.joinpath(name).read_bytes() for name in names}
    world.now += 20 * DAY
    world.repository.resign(now=world.now)
    world.ask(world.assignment(target), now_ms=None)
    (world.state / "update/trust/metadata/timestamp.json").unlink()  # even if it forgot the rest
    world.served = dict(held)
    assert world.fault(world.assignment(target), now_ms=None) is Fault.STALE
    assert world.fault(world.assignment(target), now_ms=ms(world.now - 20 * DAY)) is Fault.STALE


def test_a_time_too_far_ahead_is_refused_and_leaves_nothing(world: World) -> None:
    target = world.target

    def ahead(days: float) -> None:
        def change(signed: Any) -> None:
            signed.version += round(10 * days)
            signed.expires = world.now + timedelta(days=days + 1)
            signed.unrecognized_fields["issued"] = ms(world.now + timedelta(days=days))

        world.served.clear()
        world.forge("timestamp", change, world.online("timestamp"))

    ahead(560)  # its certificate was made a few minutes before now: that long ago at least
    assert world.fault(world.assignment(target), now_ms=None) is Fault.TIME_JUMP
    ahead(1.1)
    assert world.fault(world.assignment(target)) is Fault.TIME_JUMP  # who has a clock: a day
    world.served.clear()
    assert world.ask(world.assignment(target), now_ms=None).now_ms == ms(world.now)
    ahead(300)
    assert world.fault(world.assignment(target), now_ms=None) is Fault.STALE  # snapshot and all
    ahead(600)  # another 300 days from there: nobody walks
    assert world.fault(world.assignment(target), now_ms=None) is Fault.TIME_JUMP


def test_who_ran_ahead_with_the_time_is_undone_by_new_online_keys(world: World) -> None:
    target = world.target

    def ahead(signed: Any) -> None:
        signed.version += 1
        signed.expires = world.now + 600 * DAY
        signed.unrecognized_fields["issued"] = ms(world.now + 540 * DAY)

    world.forge("timestamp", ahead, world.online("timestamp"))
    for _ in range(2):  # the targets have ended by that time, and it stays so
        assert world.fault(world.assignment(target), now_ms=None) is Fault.STALE
    world.served.clear()
    world.now += timedelta(hours=1)
    world.repository.resign(now=world.now)
    assert world.fault(world.assignment(target), now_ms=None) is not None
    world.rotate_online()
    assert world.ask(world.assignment(target), now_ms=None).now_ms == ms(world.now)


def test_a_timestamp_that_does_not_say_when_is_refused(world: World) -> None:
    target = world.target
    for issued in (None, "now", -1, True, 1 << 60):

        def change(signed: Any, issued: object = issued) -> None:
            signed.version += 1
            signed.unrecognized_fields["issued"] = issued

        world.forge("timestamp", change, world.online("timestamp"))
        assert world.fault(world.assignment(target)) is Fault.BAD_METADATA
