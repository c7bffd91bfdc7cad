"""Run a scenario on a fleet: enrol with claims, build devices, watch, drain, and tell.

The caller has created sites, devices and claims on the server; here they are only used, as a
device would. Claims come as a file: one token a line, optionally `,counter` or `,kiosk` and a time
zone after it; empty lines and lines that begin with `#` are passed over.
"""

import asyncio
import random
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TextIO

from agent.link import Identity
from simulators.device import ORDINARY, Conditions, SimDevice
from simulators.faults import FaultProxy, true_offset_ms
from simulators.fleet import Fleet, Stats, raise_file_limit
from simulators.hardware import DeviceSpec
from simulators.scenarios import Scenario
from simulators.traffic import random_door, random_kiosk, random_sensor
from simulators.truth import TruthFile

ENROLMENTS = 16  # at a time
DRAIN_S = 120.0
IN_MEMORY_FROM = 2_000  # devices; fewer have their outboxes in files

Kind = Literal["counter", "kiosk"]
KINDS: dict[str, Kind] = {"counter": "counter", "kiosk": "kiosk"}


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim token, and what hardware claims with it."""

    token: str = field(repr=False)
    kind: Kind = "counter"
    zone: str = "Europe/Stockholm"


@dataclass(frozen=True, slots=True)
class Member:
    """An enrolled device of the fleet."""

    identity: Identity
    kind: Kind = "counter"
    zone: str = "Europe/Stockholm"
    questionnaire: bytes = bytes(8)
    disk: Path | None = None  # where it was enrolled; a kiosk keeps its plan there


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `drained`: all that was journalled has its receipt."""

    stats: Stats
    drained: bool
    seconds: float
    cpu_s: float
    memory_mb: float
    connects: int
    conflicts: int

    def line(self) -> str:
        """Return the closing line."""
        stats = self.stats
        return (
            f"generated {stats.generated:,} journalled {stats.confirmed:,}"
            f" receipted {stats.stored:,} on their way {stats.on_their_way:,};"
            f" {stats.connected:,} of {stats.devices:,} connected,"
            f" {self.connects:,} connects, {self.conflicts:,} conflicts;"
            f" {self.seconds:.0f} s, {self.cpu_s:.0f} s of CPU, {self.memory_mb:.0f} MB"
        )


def read_claims(path: Path) -> list[Claim]:
    """Read a claims file; ValueError names the line that is none."""
    claims: list[Claim] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        token, *rest = (part.strip() for part in line.split(","))
        word = rest[0] if rest else "counter"
        if word not in KINDS:
            raise ValueError(f"{path}:{number}: expected counter or kiosk, got {word!r}")
        claims.append(Claim(token, KINDS[word], rest[1] if len(rest) > 1 else "Europe/Stockholm"))
    return claims


async def enrol_all(
    claims: Sequence[Claim],
    enrol: Callable[[Claim], Awaitable[Identity]],
    *,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[Member]:
    """Enrol each claim by `enrol`, sixteen at a time; the first failure stops all."""
    slots = asyncio.Semaphore(ENROLMENTS)
    done = 0

    async def one(claim: Claim) -> Member:
        nonlocal done
        async with slots:
            identity = await enrol(claim)
        done += 1
        on_done(done, len(claims))
        return Member(identity, claim.kind, claim.zone)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(claim)) for claim in claims]
    return [task.result() for task in tasks]


async def simulate(
    members: Sequence[Member],
    *,
    scenario: Scenario,
    duration_s: float,
    state: Path,
    seed: int = 1,
    spec: Callable[[Member], DeviceSpec] | None = None,
    truth: TruthFile | None = None,
    conditions: Conditions = ORDINARY,
    in_memory: bool | None = None,
    drain_s: float = DRAIN_S,
    progress: TextIO | None = sys.stderr,
) -> Outcome:
    """Run `scenario` for `duration_s`, then drain; outboxes stay under `state` for another run.

    `spec` gives each member its hardware; without it, doors are drawn by id and seed.
    """
    memory = len(members) >= IN_MEMORY_FROM if in_memory is None else in_memory
    if memory and scenario.needs_files:
        raise ValueError(f"{scenario.name} copies storage: outboxes must be in files")
    raise_file_limit(len(members), in_memory=memory)
    state.mkdir(parents=True, exist_ok=True)
    offset_ms = true_offset_ms()
    began, cpu = time.monotonic(), time.process_time()
    async with AsyncExitStack() as stack:
        members = await _behind_proxy(stack, members, scenario, seed)
        hardware = spec or (lambda member: spec_of(member, scenario, seed=seed))
        devices: list[SimDevice] = []
        for member in members:
            around = _surroundings(conditions, member, scenario, seed, duration_s)
            device = SimDevice(
                hardware(member),
                member.identity,
                outbox_path=None if memory else state / f"{member.identity.device}.outbox",
                disk=member.disk,
                true_offset_ms=offset_ms,
                truth=truth,
                conditions=around,
            )
            devices.append(device)
            await asyncio.sleep(0)  # opening thousands of outboxes takes its time
        fleet = Fleet(devices, truth=truth)
        await stack.enter_async_context(fleet.running())
        await _watch(fleet, duration_s, progress)
        drained = await fleet.drain(timeout_s=drain_s)
        return _outcome(fleet, drained=drained, began=began, cpu=cpu)


def _outcome(fleet: Fleet, *, drained: bool, began: float, cpu: float) -> Outcome:
    return Outcome(
        fleet.stats(),
        drained,
        seconds=time.monotonic() - began,
        cpu_s=time.process_time() - cpu,
        memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        connects=sum(device.connects for device in fleet.devices),
        conflicts=sum(device.conflicts for device in fleet.devices),
    )


def spec_of(member: Member, scenario: Scenario, *, seed: int) -> DeviceSpec:
    """Return a member's hardware: its door, sensor or kiosk are drawn by its id and the seed."""
    rng = random.Random(f"{seed}/{member.identity.device}")
    door = random_door(rng, member.identity.device, zone=member.zone)
    door = replace(
        door,
        median_day=door.median_day * scenario.scale,
        shape=scenario.shape or door.shape,
        hours=scenario.hours or door.hours,
    )
    kiosk = random_kiosk(rng) if member.kind == "kiosk" else None
    if kiosk is not None and not any(member.questionnaire) and member.disk is None:
        kiosk = replace(kiosk, follow_up=0.0)  # a kiosk that is given none asks one question
    return DeviceSpec(
        member.identity.device,
        door,
        seed,
        sensor=random_sensor(rng),
        kiosk=kiosk,
        questionnaire=member.questionnaire,
    )


def _surroundings(
    base: Conditions, member: Member, scenario: Scenario, seed: int, duration_s: float
) -> Conditions:
    dice = random.Random(f"{seed}/{member.identity.device}/troubles")
    return replace(
        base,
        shift_ms=scenario.shift_ms(time.time_ns() // 1_000_000, member.zone),
        frames=scenario.frames,
        troubles=scenario.plan(dice, duration_s),
    )


async def _behind_proxy(
    stack: AsyncExitStack, members: Sequence[Member], scenario: Scenario, seed: int
) -> Sequence[Member]:
    """Return the members, connecting through a fault proxy if the scenario has one."""
    if scenario.proxy is None or not members:
        return members
    first = members[0].identity
    proxy = FaultProxy(first.broker_host, first.broker_port, faults=scenario.proxy, seed=seed)
    port = (await stack.enter_async_context(proxy.serving())).port
    return [replace(m, identity=replace(m.identity, broker_port=port)) for m in members]


async def _watch(fleet: Fleet, duration_s: float, progress: TextIO | None) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + duration_s
    async with _line(progress) as show:
        while (left := until - loop.time()) > 0:
            stats = fleet.stats()
            show(
                f"{stats.generated:,} people generated, {stats.stored:,} stored,"
                f" {stats.on_their_way:,} on their way;"
                f" {stats.connected:,} of {stats.devices:,} devices connected; {left:.0f} s left"
            )
            await asyncio.sleep(min(1.0, left))


@asynccontextmanager
async def _line(out: TextIO | None) -> AsyncIterator[Callable[[str], None]]:
    """Give a function that refreshes one line on a terminal, and prints nothing elsewhere."""
    live = out is not None and out.isatty()

    def show(text: str) -> None:
        if live and out is not None:
            out.write(f"\r\x1b[K{text}")
            out.flush()

    try:
        yield show
    finally:
        if live and out is not None:
            out.write("\r\x1b[K")
            out.flush()
