"""The real agent replaces itself, on the word of people's keys, and counts while it does.

Real: server, database, broker, signed metadata, the launcher, and the agent that is updated to a
tree of this checkout. A stand-in for systemd starts the launcher again whenever it has ended.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from agent.update.journal import File, Journal
from ops import archive
from ops.chaos.device import AgentSettings, Device
from ops.chaos.system import System, blocking
from ops.drafts import Folder
from ops.services.child import python
from protocol.release import Release
from server.firmware import acts, bundles
from server.firmware.acts import New
from server.firmware.keys import make_key, read_public, read_signer
from server.firmware.policy import Gate, OnDevice, OnHalt, Policy, Ramp, WaveRule, write_policy
from server.firmware.releases import note_published
from server.firmware.repository import Repository, read_targets

pytestmark = [pytest.mark.services, pytest.mark.timeout(400), pytest.mark.long]

CHECKOUT = Path(__file__).parents[2]
PEOPLE = ("anna-root", "bo-root", "anna", "bo")
POLICY = Policy(
    windows=None,
    waves=(WaveRule(),),
    gate=Gate(success_pct=100, min_sample=1, soak_s=0),
    ramp=Ramp(base=1_000, factor=1),
    device=OnDevice(idle_s=0, trial_s=90),
    on_halt=OnHalt.KEEP,
)


@dataclass
class Approval:
    """The people with their keys, and what they have published for this system."""

    system: System
    top: Path
    folder: Folder = field(init=False)
    repository: Repository = field(init=False)

    def __post_init__(self) -> None:
        self.folder = Folder(self.top / "approvals")
        self.repository = Repository(self.system.deployment.settings.firmware)
        for name in PEOPLE:
            make_key(self.top / f"{name}.pem", password=None)
        snapshot, timestamp = self.repository.make_keys()
        root, targets = PEOPLE[:2], PEOPLE[2:]
        self.folder.begin(
            root=[read_public(self.top / f"{name}.pub") for name in root],
            targets=[read_public(self.top / f"{name}.pub") for name in targets],
            snapshot=read_public(snapshot),
            timestamp=read_public(timestamp),
            threshold=2,
            now=_now(),
        )
        self.publish()

    def publish(self) -> None:
        """Let all sign what is drafted, and serve it."""
        for name in PEOPLE:
            public = read_public(self.top / f"{name}.pub")
            drafts = self.folder.to_sign(public.keyid)
            self.folder.sign(drafts, read_signer(self.top / f"{name}.pem", password=None))
        blocking(self._publish())

    async def _publish(self) -> None:
        connection = await asyncpg.connect(self.system.dsn)
        try:
            targets = read_targets(self.folder.targets().signed)
            async with connection.transaction():
                await note_published(connection, targets, actor="test", now=_now())
            self.repository.publish(
                self.folder.roots(),
                self.folder.targets_file(),
                artifact=self.folder.artifact,
                now=_now(),
            )
        finally:
            await connection.close()

    def release(self, version: str, tree: Path) -> str:
        """Build, approve and publish a release of the agent."""
        out = self.top / f"{version}.tar"
        archive.build(tree, out, component="agent", version=version)
        approved = Release("agent", version, "0.1.0", None, ("DC2",), f"{version} for a test")
        self.folder.add(out, approved, now=_now())
        self.publish()
        return version

    def roll_out(self, version: str, device: Device) -> str:
        """Draft a rollout to one device, and have somebody else approve it; its reference."""
        return blocking(self._roll_out(version, device))

    async def _roll_out(self, version: str, device: Device) -> str:
        connection = await asyncpg.connect(self.system.dsn)
        try:
            row, organisation = await connection.fetchrow(
                "update devices set model = 'DC2' where device = $1 returning id, organisation_id",
                device.device,
            )
            async with connection.transaction():
                now = _now()
                name = f"agent {version}"
                bundle = await bundles.make(
                    connection, name, [("agent", version)], actor="ada", now=now
                )
                new = New(name, write_policy(POLICY), bundle=bundle)
                ref = await acts.draft(connection, organisation, new, actor="ada", now=now)
                plan = {"waves": [[row]], "excluded": []}
                await acts.plan(connection, organisation, ref, plan, actor="ada", now=now)
                await acts.submit(connection, organisation, ref, actor="ada", now=now)
                await acts.approve(connection, organisation, ref, actor="bo", now=now)
            return ref
        finally:
            await connection.close()


@dataclass
class Machine:
    """A device whose launcher is started again whenever it has ended, and somebody at its door."""

    device: Device
    starts: int = 0
    _closed: threading.Event = field(default_factory=threading.Event)
    _empty: threading.Event = field(default_factory=threading.Event)
    _off: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[Machine]:
        threads = [threading.Thread(target=work) for work in (self._supervise, self._count)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._closed.set()
            self._off.set()
            for thread in threads:
                thread.join()
            self.device.agent.end()

    def close_door(self) -> None:
        """Let nobody pass any more, and return once all are on the device's disk."""
        self._closed.set()
        assert self._empty.wait(30)

    def _supervise(self) -> None:
        while not self._off.wait(0.2):
            if not self.device.agent.running:
                self.device.agent.start()
                self.starts += 1

    def _count(self) -> None:
        while not self._closed.wait(0.1):
            with suppress(OSError, ValueError):
                self.device.count((0, 1, 0), (1, 0, 1))
        while not self._off.wait(0.1):  # what is left is offered once more
            with suppress(OSError, ValueError):
                self.device.count()
                self._empty.set()
                return


def _now() -> datetime:
    return datetime.now(UTC)


def wait(condition: Callable[[], Any], what: str, *, log: Callable[[], str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}\n{log()}"
        time.sleep(0.2)


def gaps_s(log: str) -> list[float]:
    """Return for how long nobody counted at each restart: from an agent's end to the next start."""
    found: list[float] = []
    ended: datetime | None = None
    for line in log.splitlines():
        stamp = re.match(r"timestamp=(\S+)", line)
        if stamp and 'event="agent stopped"' in line:
            ended = datetime.fromisoformat(stamp[1])
        elif stamp and 'event="agent started"' in line and ended is not None:
            found.append((datetime.fromisoformat(stamp[1]) - ended).total_seconds())
            ended = None
    return found


def asked(system: System, query: str, *values: object) -> list[asyncpg.Record]:
    async def ask() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(system.dsn)
        try:
            found: list[asyncpg.Record] = await connection.fetch(query, *values)
            return found
        finally:
            await connection.close()

    return blocking(ask())


@pytest.fixture
def approval(system: System, tmp_path: Path) -> Approval:
    return Approval(system, tmp_path)


def test_an_agent_updates_itself_and_goes_back_from_a_bad_one_without_losing_a_count(
    approval: Approval,
    system: System,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    [device] = system.enrol(1, settings=AgentSettings(max_mb=1.0))
    device.agent.command = python("-I", "-m", "agent.update.launch")
    device.agent.env = {**device.agent.env, "VESTIBULE_AGENT_HARDWARE": "DC2"}
    good = approval.release("0.2.0", CHECKOUT)
    bad_tree = tmp_path / "bad"
    for package in ("agent", "protocol"):
        shutil.copytree(CHECKOUT / package, bad_tree / package)
    (bad_tree / "agent/__main__.py").write_text("raise SystemExit(2)\n")
    bad = approval.release("0.3.0", bad_tree)

    def ended(ref: str) -> str:
        rows = asked(
            system,
            "select e.state from executions e join rollouts r on r.id = e.rollout_id "
            "where r.ref = $1 and e.ended_at is not null",
            ref,
        )
        return rows[0]["state"] if rows else ""

    def state(ref: str) -> str:
        [row] = asked(system, "select state from rollouts where ref = $1", ref)
        return str(row["state"])

    def agents() -> list[str]:
        rows = asked(
            system,
            "select agent from presences p join devices d on d.id = p.device_id "
            "where d.device = $1",
            device.device,
        )
        return [row["agent"] for row in rows]

    def log() -> str:
        return device.agent.tail(120) + "\n" + system.server.tail(40)

    with Machine(device).running() as machine:
        wait(device.listens, "the packaged agent runs", log=log)
        first = approval.roll_out(good, device)
        wait(lambda: ended(first), "the good release has ended", log=log)
        assert ended(first) == "confirmed", log()
        wait(lambda: state(first) == "completed", "its rollout is complete", log=log)
        wait(lambda: agents() == ["vestibule 0.2.0"], "it greets as what it is", log=log)
        second = approval.roll_out(bad, device)
        wait(lambda: ended(second), "the bad release has ended", log=log)
        assert ended(second) == "reverted by device", log()
        wait(lambda: state(second) == "halted", "its rollout halts", log=log)
        wait(device.listens, "the good one runs again", log=log)
        assert (
            machine.starts >= 2
        )  # by exec the launcher goes on in the same process; a crash ends it
        machine.close_door()
        verdict = system.converge()
        assert verdict.proved, verdict
    gaps = gaps_s(device.agent.log.read_text())
    assert len(gaps) == 2  # into the good release, and back from the bad one
    request.node.user_properties.append(("gaps_s", gaps))
    kept = Journal(File(device.state / "update"), now_ms=lambda: 0).update
    assert kept.settled
    assert [each.phase.value for each in kept.ended] == ["confirmed", "reverted"]
    assert kept.ended[-1].code == "crashed"
    assert os.readlink(device.state / "update/agent/current") == "a"
