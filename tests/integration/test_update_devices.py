"""Devices that crash, hang, lie, report late, are full or lose power, before the real server.

Each is the agent's own machine over scripted slots (`simulators.updates`), with a certificate of
its own at the real listener; rollouts are moved by the real conductor. Minutes pass as fast as can
be, so a night is over in seconds.
"""

from __future__ import annotations

import random
from datetime import timedelta
from pathlib import Path

import pytest

from agent import identity
from agent.identity import Enrolled
from agent.update.states import Stage
from protocol.update import Phase
from server.clock import ManualClock
from server.firmware.conductor import Conductor
from server.firmware.policy import Guards, OnDevice, Policy, Ramp, Timers
from simulators.board import Board
from simulators.updates import Conduct, UpdateDevice, carry
from tests.integration.firmware_world import Release, Scripted, Updates
from tests.integration.firmware_world import updates as updates

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]
MANY = 1_000
POLICY = Policy(
    windows=None,
    ramp=Ramp(base=1_000, factor=1),
    guards=Guards(fail_abs=MANY, fail_pct=100, min_sample=MANY, lost_abs=MANY),
    timers=Timers(rebooting_s=1_200, trial_s=3_600),
    device=OnDevice(idle_s=0, trial_s=300),
)
ENDS = {
    Conduct.GOOD: {"confirmed"},
    Conduct.LATE: {"confirmed"},
    Conduct.CRASHES: {"reverted by device"},
    Conduct.HANGS: {"reverted by device"},
    Conduct.FAILS: {"reverted by device"},
    Conduct.FULL: {"failed"},
    Conduct.LIES: {"timed out", "lost", "reverted by device", "failed"},
}
"""What a device is whose power fails, after any number of attempts, is seen by what it runs."""


class Simulated:
    """A device, and the certificate that it speaks with."""

    def __init__(self, scripted: Scripted, conduct: Conduct, cut_at: int = -1) -> None:
        self.scripted, self.conduct = scripted, conduct
        self.board = Board(package="1.0.0", cut_at=cut_at)
        self.device = UpdateDevice(
            scripted.name, rng=random.Random(scripted.row), conduct=conduct, board=self.board
        )
        self.lost_power = cut_at > 0
        self.minutes = 0
        self.state = enrolled(scripted)

    async def minute(self, now_ms: int) -> None:
        """Live for a minute, and speak with the server."""
        self.device.tick(now_ms)
        self.minutes += 1
        update = self.device.update
        quiet = not update.steps and update.stage is not Stage.TRIAL
        if quiet and self.conduct is not Conduct.LATE and self.minutes % 10 != 1:
            return  # one machine may not ask as often as all of them would
        for _ in range(2):  # with a nonce that is fresh, too
            said = await carry(self.device, self.state, ("127.0.0.1", self.scripted.world.port))
            if not said or not self.device.update.steps:
                return


def enrolled(scripted: Scripted) -> Path:
    """Write down who a device is, as its enrolment does."""
    world = scripted.world
    state = world.folder.parent / "states" / scripted.name
    pem = (world.folder.parent / "clients" / f"{scripted.name}.pem").read_text()
    end = pem.index("-----BEGIN CERTIFICATE-----")
    pending = state / "pending"
    identity.put(pending, pem[:end].encode(), mode=0o600)
    bundle = (world.stack.endpoints.pki / "bundle.pem").read_text()
    who = Enrolled(scripted.name, "counter", "127.0.0.1", 1, "claim")
    identity.write(state, who, key=pending, chain=pem[end:], bundle=bundle)
    return state


async def grown(updates: Updates, *, cuts: int) -> list[Simulated]:
    """One device of each conduct, and good ones whose power fails at another instant each."""
    wanted = [(conduct, -1) for conduct in Conduct]
    wanted += [(Conduct.GOOD, 2 + 8 * number) for number in range(cuts)]
    found = []
    for number, (conduct, cut_at) in enumerate(wanted):
        site = await updates.place(f"site-{number}")
        found.append(Simulated(await updates.device(site=site), conduct, cut_at))
    return found


async def lived(updates: Updates, fleet: list[Simulated], *, minutes: int) -> None:
    for minute in range(minutes):
        updates.ahead = timedelta(minutes=minute)
        now_ms = round(updates.now().timestamp() * 1000)
        for each in fleet:
            await each.minute(now_ms)
        if minute % 5 == 4:
            clock = ManualClock(now_ms)
            await updates.owner.execute("update rollouts set due_at = $1", updates.now())
            await Conductor(updates.maint, clock).turn()
            if await over(updates, fleet):
                return


async def over(updates: Updates, fleet: list[Simulated]) -> bool:
    """Return whether nothing more is to come: no execution is open, and no device at work."""
    going_on = "select exists (select from executions where ended_at is null)"
    if await updates.owner.fetchval(going_on):
        return False
    honest = [each for each in fleet if each.conduct is not Conduct.LIES]
    return all(each.device.update.settled for each in honest)


async def state_of(updates: Updates, each: Simulated) -> str:
    found: str = (await updates.execution(each.scripted))["state"]
    return found


@pytest.mark.parametrize(
    ("cuts", "minutes"),
    [
        pytest.param(1, 90, id="few"),
        pytest.param(10, 180, id="many", marks=pytest.mark.long),
    ],
)
async def test_whatever_becomes_of_devices_nothing_is_confirmed_that_did_not_boot(
    updates: Updates, cuts: int, minutes: int
) -> None:
    fleet = await grown(updates, cuts=cuts)
    release: Release = await updates.release("1.1.0", size=1_000)
    await updates.rollout(release, devices=tuple(e.scripted for e in fleet), policy=POLICY)
    await lived(updates, fleet, minutes=minutes)
    for each in fleet:
        state, name = await state_of(updates, each), (each.conduct, each.board.boots)
        runs = each.device.version
        assert (state == "confirmed") is (runs == "1.1.0"), (state, name)
        booted = any(boot.why == "trial" and boot.version == "1.1.0" for boot in each.board.boots)
        assert booted or state != "confirmed", name
        if not each.lost_power:
            assert state in ENDS[each.conduct], name
        if each.conduct is not Conduct.LIES:
            assert each.device.update.settled, name
            assert state not in ("planned", "offered"), name
        else:
            phases = [step.phase for step in each.device._lies]
            assert Phase.CONFIRMED not in phases or state != "confirmed"
