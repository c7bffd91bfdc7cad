"""Updates as the running agent does them, with a server of a few lines and slots on a board."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.content import Terms
from agent.enrol import Answered
from agent.update import run, trial, trust
from agent.update.agreement import Fault, Refused
from agent.update.download import CutError, Source
from agent.update.launch import Launched
from agent.update.run import Updates
from agent.update.states import Stage
from agent.update.trial import Around
from protocol.assignment import Assignment, Envelope, read_assignment, read_envelope
from protocol.update import (
    Answer,
    Attempt,
    Class,
    Phase,
    Report,
    Step,
    read_report,
    write_answer,
    write_report,
)
from simulators.board import Board, BoardPaper, BoardSlots
from tests.unit.test_update_machine import AGENT, BOTH, LAST, SCREEN, job

FAR_MS = 1 << 47


@dataclass
class Server:
    """Offers one assignment until it has ended, and acknowledges trials."""

    offer: Assignment
    steps: list[Step] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    nonces: int = 0
    answers_trials: bool = True
    cancelled: tuple[str, ...] = ()

    def answer(self, body: bytes) -> str:
        report = read_report(body).report
        self.reports.append(report)
        fresh = report.answers == f"{self.nonces:032x}"
        heard: dict[Attempt, int] = {}
        for said in report.steps:
            if said.phase is Phase.CONFIRMED and not fresh:
                break
            if said not in self.steps:
                self.steps.append(said)
            heard[said.attempt] = said.seq
        self.nonces += 1
        envelope = Envelope(replace(self.offer, nonce=report.nonce).content(), b"signed", "chain")
        done = self.ended is not None
        trial = report.trial if self.answers_trials and fresh else None
        made = Answer(
            f"{self.nonces:032x}", 3600, heard, None if done else envelope.content(), trial,
            self.cancelled,
        )  # fmt: skip
        return write_answer(made).decode()

    @property
    def ended(self) -> Step | None:
        return next((each for each in self.steps if each.phase in LAST), None)

    @property
    def phases(self) -> list[Phase]:
        return [each.phase for each in self.steps]


class Talking(Updates):
    """Talks to a `Server` instead of the network."""

    server: Server

    async def _asked(self, *_: Any, body: Any = None, **__: Any) -> Answered:
        return Answered(200, "OK", "", self.server.answer(body))

    def _signed(self, report: Report) -> bytes:
        return write_report(report, b"signature")

    def _device(self) -> str:
        return "dc-simulated1"


@dataclass
class Device:
    """A board, and one process after the other on it."""

    server: Server
    state: Path
    board: Board = field(default_factory=Board)
    launcher: bool = True
    idle_ms: int = 1 << 30
    online: bool = True
    failing: str = ""
    screen: bool = False
    draws: bool = True
    shown: list[tuple[str, int]] = field(default_factory=list)
    starts: int = 0
    now: Updates | None = None

    async def live(self, until: Callable[[], bool]) -> None:
        """Start processes until a condition holds."""
        async with asyncio.timeout(30):
            while not until():
                await self._process(until)

    async def _process(self, until: Callable[[], bool]) -> None:
        slot, why = self.board.launch(float(self.starts))
        self.starts += 1
        record = self.board.record
        attempt = None if record is None else (record.execution, record.attempt)
        restart = asyncio.Event()
        slots = BoardSlots(self.board, slot)
        around = Around(
            version=self.board.version("agent", slot),
            idle_ms=lambda: self.idle_ms,
            trouble=lambda: "",
            online=lambda: self.online,
            self_test=self._test,
            restart=restart.set,
            show=self._show if self.screen else None,
            drawn=lambda: self.draws,
        )
        terms = Terms(self.state, ("localhost", 1), SystemClock(), random.Random(1), lambda: 0, 0.0)
        made = self.now = Talking(
            terms,
            slots=slots,
            paper=BoardPaper(self.board),
            hardware="DC2",
            around=around,
            launched=Launched(slot, why, attempt, (), {}) if self.launcher else None,
            reserve_bytes=0,
        )
        made.server = self.server
        task = asyncio.create_task(made.run())
        try:
            while not (until() or restart.is_set() or task.done()):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            if task.done():
                task.result()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _test(self) -> str:
        return self.failing

    def _show(self, folder: Path | None, name: str, trial_s: int) -> None:
        del folder
        self.shown.append((name[:7], trial_s))

    @property
    def stage(self) -> Stage:
        assert self.now is not None
        return self.now.update.stage


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no python-tuf, and no time between a step and its telling."""

    async def check(question: trust.Question) -> trust.Verified:
        envelope = read_envelope(question.envelope)
        found = read_assignment(envelope.text)
        assert found.nonce == question.nonce
        return trust.Verified(found, 0)

    monkeypatch.setattr(trust, "check", check)
    monkeypatch.setattr(run, "download", lambda item, folder, source, told: folder / item.sha256)
    monkeypatch.setattr(trial, "HEALTH_S", 0.02)
    monkeypatch.setattr(run, "SAY_S", 0.01)
    monkeypatch.setattr(run, "LOOK_S", 0.02)
    monkeypatch.setattr(run, "LEFT_S", 0.05)


def server(**terms: Any) -> Server:
    terms = {"trial_s": 1, "not_after_ms": FAR_MS, **terms}
    return Server(job(**terms))


async def settled(device: Device) -> Step:
    """Live until the server has heard the end; return it."""
    await device.live(lambda: device.server.ended is not None and device.stage is Stage.IDLE)
    assert device.server.ended is not None
    return device.server.ended


async def test_an_update_goes_through_two_processes_and_is_confirmed(tmp_path: Path) -> None:
    device = Device(server(), tmp_path)
    assert (await settled(device)).phase is Phase.CONFIRMED
    assert device.starts == 2
    assert device.server.phases == [
        Phase.ACCEPTED, Phase.DOWNLOADING, Phase.READY, Phase.INSTALLING, Phase.REBOOTING,
        Phase.TRIAL, Phase.CONFIRMED,
    ]  # fmt: skip
    last = device.server.reports[-1]
    assert (last.slot, last.components["agent"].version) == ("a", "1.0.0")
    assert device.board.links == {"agent": "a"}


async def test_a_screen_is_tried_by_the_agent_that_runs_and_committed(tmp_path: Path) -> None:
    device = Device(server(components=SCREEN), tmp_path, screen=True)
    assert (await settled(device)).phase is Phase.CONFIRMED
    assert device.starts == 1
    name = device.server.offer.bundle[0].sha256[:7]
    assert device.shown == [("package", 0), (name, 1), (name, 0)]


async def test_a_screen_that_nobody_draws_gives_way_to_the_one_before(tmp_path: Path) -> None:
    device = Device(server(components=SCREEN), tmp_path, screen=True, draws=False)
    last = await settled(device)
    assert (last.phase, last.kind, last.code) == (Phase.REVERTED, Class.SELF_TEST, "not_drawn")
    assert device.shown[-1] == ("package", 0)
    assert device.board.links == {}


async def test_a_bundle_is_all_or_none(tmp_path: Path) -> None:
    device = Device(server(components=BOTH), tmp_path, screen=True, failing="doctor.disk")
    last = await settled(device)
    assert (last.phase, last.code) == (Phase.REVERTED, "doctor.disk")
    assert device.board.links == {}
    device.server.offer = job(2, components=BOTH, trial_s=1, not_after_ms=FAR_MS)
    device.server.steps.clear()
    device.failing = ""
    assert (await settled(device)).phase is Phase.CONFIRMED
    assert set(device.board.links) == {"agent", "kiosk"}


@pytest.mark.parametrize(
    ("wrong", "code"), [("online", "trial_session"), ("server", "trial_server")]
)
async def test_a_trial_without_session_or_server_is_over_in_time(
    tmp_path: Path, wrong: str, code: str
) -> None:
    device = Device(server(), tmp_path, online=wrong != "online")
    device.server.answers_trials = wrong != "server"
    last = await settled(device)
    assert (last.phase, last.kind, last.code) == (Phase.REVERTED, Class.TIMEOUT, code)
    assert device.board.links == {}


async def test_who_uses_the_device_is_waited_for_but_not_for_ever(tmp_path: Path) -> None:
    device = Device(server(idle_s=60, delay_s=1), tmp_path, idle_ms=0)
    assert (await settled(device)).phase is Phase.CONFIRMED
    assert Phase.WAITING_IDLE in device.server.phases
    assert any(report.busy for report in device.server.reports)


async def test_later_is_an_answer_and_no_failure(tmp_path: Path) -> None:
    device = Device(server(idle_s=60, delay_s=86_400), tmp_path, idle_ms=0)
    await device.live(lambda: Phase.WAITING_IDLE in device.server.phases)
    device.idle_ms = 1 << 30

    def deferred() -> bool:
        if device.now is not None and device.stage is Stage.WAIT and not device.now.update.later_ms:
            device.now.later("staff", 600)
        return Phase.DEFERRED in device.server.phases

    device.idle_ms = 0
    await device.live(deferred)
    assert device.server.ended is None
    assert device.stage is Stage.WAIT
    assert device.now is not None
    told: Any = device.now.status()["update"]
    assert told["left_alone_for"].startswith("staff: ")


async def test_windows_that_are_past_are_not_used(tmp_path: Path) -> None:
    device = Device(server(window=((1, 2),)), tmp_path)
    await device.live(lambda: Phase.WAITING_WINDOW in device.server.phases)
    assert device.stage is Stage.WAIT


@pytest.mark.parametrize("why", ["launcher", "hardware", "screen"])
async def test_what_can_not_be_tried_here_is_refused(tmp_path: Path, why: str) -> None:
    parts = SCREEN if why == "screen" else AGENT
    device = Device(server(components=parts), tmp_path, launcher=why != "launcher")
    if why == "hardware":
        unknown = Talking.__init__

        def init(self: Talking, *arguments: Any, **named: Any) -> None:
            unknown(self, *arguments, **{**named, "hardware": ""})

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Talking, "__init__", init)
            last = await settled(device)
    else:
        last = await settled(device)
    assert last.phase is Phase.REJECTED
    assert last.code in ("no_launcher", "hardware_unknown", "no_screen")


async def test_what_is_not_approved_is_refused_with_its_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(_: trust.Question) -> trust.Verified:
        raise Refused(Fault.UNKNOWN_TARGET, "bundle[0]", "no such release")

    monkeypatch.setattr(trust, "check", check)
    last = await settled(Device(server(), tmp_path))
    assert (last.phase, last.kind) == (Phase.REJECTED, Class.TRUST)
    assert last.code == "unknown_target"


async def test_a_check_that_could_not_be_made_is_made_again_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [0]

    async def check(_: trust.Question) -> trust.Verified:
        checks[0] += 1
        raise Refused(Fault.UNREACHABLE, "", "nobody there")

    monkeypatch.setattr(trust, "check", check)
    monkeypatch.setattr(run, "backoff_ms", lambda *_: 10)
    last = await settled(Device(server(), tmp_path))
    assert (last.phase, last.kind) == (Phase.REJECTED, Class.NETWORK)
    assert checks[0] == run.MOST_UNTOLD


async def test_a_download_that_never_comes_is_a_failure_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(*_: Any, **__: Any) -> Path:
        raise CutError("unreachable", "nobody there")

    monkeypatch.setattr(run, "bring", cut)
    last = await settled(Device(server(), tmp_path))
    assert (last.phase, last.kind, last.code) == (Phase.FAILED, Class.NETWORK, "unreachable")


async def test_a_disk_with_too_little_room_is_told_before_a_byte_is_asked_for(
    tmp_path: Path,
) -> None:
    offered = server()
    huge = replace(offered.offer.bundle[0], length=268_435_456)
    offered.offer = replace(offered.offer, bundle=(huge,))
    device = Device(offered, tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 20))
        last = await settled(device)
    assert (last.phase, last.kind, last.code) == (Phase.FAILED, Class.STORAGE, "disk_full")


async def test_an_execution_that_is_taken_back_is_dropped(tmp_path: Path) -> None:
    device = Device(server(window=((1, 2),)), tmp_path)
    await device.live(lambda: Phase.WAITING_WINDOW in device.server.phases)
    device.server.cancelled = (device.server.offer.execution,)
    last = await settled(device)
    assert (last.phase, last.kind, last.code) == (Phase.FAILED, Class.REFUSED, "cancelled")


async def test_who_stops_the_agent_in_order_says_nothing_against_the_new_code(
    tmp_path: Path,
) -> None:
    device = Device(server(trial_s=600), tmp_path, failing="doctor.disk")
    for stops, code in ((True, "stopped"), (False, "crashed")):
        device.server.offer = job(1 + stops, trial_s=600, not_after_ms=FAR_MS)
        device.server.steps.clear()

        seen: list[Updates] = []

        def on_trial(stops: bool = stops, seen: list[Updates] = seen) -> bool:
            if not seen and device.now is not None and device.stage is Stage.TRIAL:
                seen.append(device.now)
                if stops:
                    device.now.stop()
            return bool(seen)

        await device.live(on_trial)
        last = await settled(device)
        assert (last.phase, last.code) == (Phase.REVERTED, code)


async def test_a_download_ends_at_once_where_the_agent_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    ours, theirs = socket.socketpair()

    def endless(item: Any, folder: Path, source: Source, told: Callable[[int], None]) -> Path:
        source.connect()
        begun.set()
        while True:
            ours.recv(1)
            told(1)

    def connect(self: Updates) -> Any:
        self._fetching = ours

    monkeypatch.setattr(run, "download", endless)
    monkeypatch.setattr(Updates, "_connection", connect)
    with ours, theirs:
        device = Device(server(), tmp_path)
        await device.live(begun.is_set)
        # what asyncio does at its end: it waits for its threads
        await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_journal_that_cannot_be_written_ends_a_trial_all_the_same(tmp_path: Path) -> None:
    device = Device(server(), tmp_path, failing="doctor.disk")

    def on_trial() -> bool:
        return device.now is not None and device.stage is Stage.TRIAL

    await device.live(on_trial)
    device.board.writable = False
    starts = device.starts
    # the process that was on trial is gone with `live`: as after a kill, the launcher goes back
    await device.live(lambda: device.starts > starts and device.now is not None)
    device.board.writable = True
    last = await settled(device)
    assert last.phase is Phase.REVERTED
    assert device.board.links == {}
