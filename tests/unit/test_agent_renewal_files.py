"""Renewal on the device: its files, the power failing anywhere, and another identity beside it."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from agent import identity
from agent.identity import DamagedError
from agent.renewal import (
    Act,
    Step,
)
from server.pki.authority import Authority
from tests.unit.renewal_world import Device, Server, names
from tests.unit.renewal_world import device as device
from tests.unit.renewal_world import fleet as fleet


class PowerCut(BaseException):
    """Nothing of the process survives this."""


@dataclass
class Disk:
    """The real file system, whose power fails after so many steps.

    A rename that was not followed by a sync of the folder may be lost with it: `forgets`.
    """

    left: int = 1 << 30
    passed: int = 0
    forgets: bool = False
    unsynced: list[tuple[Path, bytes | None]] = field(default_factory=list)

    def step(self) -> None:
        self.passed += 1
        self.left -= 1
        if self.left < 0:
            if self.forgets:
                for path, before in reversed(self.unsynced):
                    os.unlink(path) if before is None else path.write_bytes(before)
            self.unsynced.clear()
            raise PowerCut


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    rename, unlink, fsync = Path.replace, Path.unlink, os.fsync

    def replaced(path: Path, target: Path) -> Path:
        made.step()
        made.unsynced.append((target, target.read_bytes() if target.exists() else None))
        done = rename(path, target)
        made.step()
        return done

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            made.step()
        unlink(path, missing_ok=missing_ok)

    def synced(descriptor: int) -> None:
        made.step()
        fsync(descriptor)
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            made.unsynced.clear()
        made.step()

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replaced)
        patched.setattr(Path, "unlink", unlinked)
        patched.setattr(os, "fsync", synced)
        yield made


@pytest.mark.parametrize("forgets", [False, True])
async def test_the_power_may_fail_between_any_two_steps(
    tmp_path: Path, fleet: Authority, disk: Disk, forgets: bool
) -> None:
    async def whole(folder: Path, cut_after: int) -> int:
        disk.left = 1 << 30
        device = Device(folder, Server(fleet))
        device.enrol()
        identity.note(folder, replace(identity.read(folder), renew_after_ms=1))
        device.hook = disk.step
        disk.unsynced.clear()
        disk.passed, disk.left, disk.forgets = 0, cut_after, forgets
        for _ in range(3):
            try:
                await device.runs(device.start(), until=device.done)
                break
            except PowerCut:
                disk.left = 1 << 30
                for path in (folder / "identity").glob(".*.new"):  # what was not synced
                    path.write_bytes(b"")
        assert device.done()
        assert len(device.server.states) == 2  # no certificate was made in vain
        device.start()
        assert not [name for name in names(device) if name.startswith(("key.p", "chain.p"))]
        return disk.passed

    steps = await whole(tmp_path / "undisturbed", 1 << 30)
    assert steps > 30
    for number in range(steps):
        await whole(tmp_path / f"cut-{number}", number)


async def test_the_power_may_fail_again_and_again(
    tmp_path: Path, fleet: Authority, disk: Disk
) -> None:
    rng = random.Random(7)
    for number in range(15):
        device = Device(tmp_path / f"{number}", Server(fleet))
        disk.left = 1 << 30
        device.enrol()
        identity.note(device.state, replace(identity.read(device.state), renew_after_ms=1))
        device.hook = disk.step
        for cuts in range(60):
            disk.left = rng.randrange(4, 12) + cuts  # else it might never get further
            disk.forgets = rng.random() < 0.5
            try:
                await device.runs(device.start(), until=device.done)
                break
            except PowerCut:
                continue
        disk.left = 1 << 30
        assert device.done()


async def test_damaged_files_of_the_next_pair_are_thrown_away(device: Device) -> None:
    for damage in (b"", b"nonsense"):
        for name in ("key", "chain", "bundle"):
            pair = device.pair
            renewal = device.start()
            await device.runs(renewal, until=lambda r=renewal: r.progress.step is Step.STAGED)  # type: ignore[misc]
            files = identity.files(device.state).next
            getattr(files, name).write_bytes(damage)
            renewal = device.start()
            assert renewal.progress.step is Step.STAGED
            await device.runs(renewal, until=lambda p=pair: device.done(p + 1))  # type: ignore[misc]
            identity.note(device.state, replace(identity.read(device.state), renew_after_ms=1))


async def test_another_enrolment_while_a_renewal_is_under_way_wins(device: Device) -> None:
    renewal = device.start()
    await device.runs(renewal, until=lambda: renewal.progress.step is Step.STAGED)
    device.enrol()
    assert names(device) == ["bundle.1.pem", "chain.1.pem", "identity.json", "key.1.pem"]
    assert device.start().progress.step is Step.REST


@pytest.mark.parametrize("moment", ["before the check", "while the server answers"])
async def test_an_identity_that_came_beside_a_running_agent_is_never_written_over(
    device: Device, moment: str
) -> None:
    renewal = device.start()
    if moment == "before the check":
        device.enrol()
    else:
        answer = device.server.answer

        def late(path: str, shown: x509.Certificate, body: dict[str, Any]) -> dict[str, Any]:
            said = answer(path, shown, body)
            device.enrol()
            return said

        device.server.answer = late  # type: ignore[method-assign]
    await renewal.step(Act.CHECK)
    assert device.pair == 1
    assert names(device) == ["bundle.1.pem", "chain.1.pem", "identity.json", "key.1.pem"]
    device.start()


@pytest.mark.parametrize("name", ["key", "chain", "bundle"])
async def test_a_pair_that_is_not_all_there_is_not_promoted(device: Device, name: str) -> None:
    renewal = device.start()
    await device.runs(renewal, until=lambda: renewal.progress.step is Step.PROVED)
    getattr(identity.files(device.state).next, name).unlink()
    with pytest.raises(DamagedError, match=name):
        identity.promote(device.state)
    await renewal.step(Act.PROMOTE)
    assert device.pair == 0
    assert renewal.progress.step is Step.REST  # it makes another
    device.start()
