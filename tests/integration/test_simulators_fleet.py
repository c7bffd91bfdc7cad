"""Fleets of real agents at the real broker: every scenario ends with the truth, nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from agent.link import LinkOptions
from ops.services.stack import Stack
from simulators.command import Member, Outcome, simulate
from simulators.device import Conditions
from simulators.faults import ProxyFaults
from simulators.hardware import DeviceSpec
from simulators.scenarios import SCENARIOS, Scenario
from simulators.shapes import ALWAYS
from simulators.traffic import Door, Kiosk, Sensor
from simulators.truth import Truth, TruthFile, read
from tests.integration.simulators_world import Server, enrolled, serving

pytestmark = pytest.mark.services
LONG = pytest.mark.long

QUICK = Conditions(
    interval_s=1,
    frame_s=1,
    quiet_frame_s=5,
    options=LinkOptions(retry_min_s=0.05, retry_max_s=0.5, connect_timeout_s=5),
    durable=False,
)


def fleet(stack: Stack, folder: Path, number: int, *, name: str) -> list[Member]:
    return [
        Member(
            enrolled(stack, folder, f"{name}-{index:03}"), "kiosk" if index % 4 == 3 else "counter"
        )
        for index in range(number)
    ]


def busy(member: Member) -> DeviceSpec:
    """A door with a person each second on a Saturday at two, and a kiosk that half of them use."""
    name = member.identity.device
    door = Door(name, median_day=14_000, hours=ALWAYS)
    kiosk = Kiosk(rate=0.5) if member.kind == "kiosk" else None
    return DeviceSpec(name, door, 5, sensor=Sensor(lines=(0.6, 0.4)), kiosk=kiosk)


async def play(
    stack: Stack, folder: Path, scenario: Scenario, *, duration_s: float, number: int = 12
) -> tuple[Outcome, Truth, Server]:
    """Run a scenario to its end and return what is said, what is true and what was stored."""
    members = fleet(stack, folder, number, name=scenario.name)
    path = folder / "truth"
    async with serving(stack) as server:
        with TruthFile(path) as truth:
            outcome = await simulate(
                members,
                scenario=scenario,
                duration_s=duration_s,
                state=folder / "state",
                spec=busy,
                truth=truth,
                conditions=QUICK,
                drain_s=60,
                progress=None,
            )
    return outcome, read(path), server


def check(outcome: Outcome, truth: Truth, server: Server, scenario: Scenario) -> None:
    """Nothing lost, doubled or altered; minutes exact where the scenario promises it."""
    assert outcome.drained, outcome.line()
    assert outcome.stats.on_their_way == 0, outcome.line()
    total = truth.people() + truth.pressed()
    assert outcome.stats.generated == outcome.stats.confirmed == total
    assert server.people.total() == total
    assert not truth.unsure_counts
    per_device: Counter[str] = Counter()
    for (device, _, _), pair in truth.counts.items():
        per_device[device] += sum(pair)
    for (device, *_), number in truth.presses.items():
        per_device[device] += number
    assert +per_device == +server.people
    if scenario.expect.minutes:
        expected = Counter(
            {
                (device, line, minute, way): number
                for (device, line, minute), pair in truth.counts.items()
                for way, number in zip(("in", "out"), pair, strict=True)
            }
        )
        assert +expected == server.counts
        assert truth.presses == server.presses
    assert server.undated == 0 or scenario.expect.undated
    assert outcome.conflicts == 0 or scenario.expect.conflicts
    if scenario.proxy is None:  # it goes on resetting connections to the very end
        assert outcome.stats.connected == outcome.stats.devices


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=LONG) for name in ("quiet-night", "saturday", "morning-rush")],
)
async def test_quiet_and_busy_times_are_stored_as_they_were(
    stack: Stack, tmp_path: Path, name: str
) -> None:
    scenario = SCENARIOS[name]
    outcome, truth, server = await play(stack, tmp_path, scenario, duration_s=5)
    check(outcome, truth, server, scenario)
    if name == "saturday":
        assert truth.people() > 50
        assert truth.pressed() > 0
    assert len(server.cursors) == 12
    assert server.repeats == 0


@pytest.mark.parametrize(
    "name",
    [
        "flaky-links",
        pytest.param("reboots", marks=LONG),
        pytest.param("clock-trouble", marks=LONG),
        pytest.param("outage", marks=LONG),
        pytest.param("clones", marks=LONG),
    ],
)
async def test_trouble_loses_nobody_and_counts_nobody_twice(
    stack: Stack, tmp_path: Path, name: str
) -> None:
    scenario = SCENARIOS[name]
    if scenario.proxy is not None:
        proxy = ProxyFaults(delay_s=0.01, life_s=(1.0, 4.0), half_open=0.2, half_open_s=1.0)
        scenario = replace(scenario, proxy=proxy)
    outcome, truth, server = await play(stack, tmp_path, scenario, duration_s=10)
    check(outcome, truth, server, scenario)
    assert truth.people() > 100
    assert outcome.connects > 12
    match name:
        case "flaky-links":
            assert server.repeats > 0
            assert server.early > 0
        case "reboots" | "clones":
            assert len(server.cursors) > 12
        case "clock-trouble":
            assert server.undated > 0
        case _:
            pass


async def test_a_second_run_goes_on_from_the_same_outboxes(stack: Stack, tmp_path: Path) -> None:
    scenario = SCENARIOS["saturday"]
    members = fleet(stack, tmp_path, 3, name="second-run")
    path = tmp_path / "truth"
    async with serving(stack) as server:
        for _ in range(2):
            with TruthFile(path) as truth:
                outcome = await simulate(
                    members,
                    scenario=scenario,
                    duration_s=3,
                    state=tmp_path / "state",
                    spec=busy,
                    truth=truth,
                    conditions=QUICK,
                    progress=None,
                )
            check(outcome, read(path), server, scenario)
    assert len(server.cursors) == 6
