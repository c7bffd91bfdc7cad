"""A replay through real links and the real broker, interrupted and resumed."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from ops.services.stack import Stack
from simulators.counts_file import CountsFile, interpret, parse_rows
from simulators.replay import Replayer, proof
from tests.integration.simulators_world import Server, enrolled, serving

pytestmark = pytest.mark.services

ZONE = "Europe/London"
PLACES = {"Briggate": "replay-001", "Headrow": "replay-002", "Nobody there": "replay-003"}


def four_months() -> CountsFile:
    """Two places over a spring and a hundred days, with a gap, and one without a good row."""
    lines = ["Date,Hour,LocationName,InCount", "2012-03-01,0,Nobody there,-1"]
    for number in range(100):
        day = date(2012, 3, 1) + timedelta(days=number)
        for hour in range(24):
            if number != 40:
                lines.append(f"{day:%d/%m/%Y},{hour},Briggate,{number * 24 + hour}")
            lines.append(f"{day},{hour},Headrow,{hour}")
    return interpret(parse_rows(lines), zone=ZONE)


def served(server: Server, file: CountsFile) -> dict[tuple[str, date], int | None]:
    names = {device: place for place, device in PLACES.items()}
    days: Counter[tuple[str, date]] = Counter()
    zero = {key: 0 for key, day in file.days.items() if day.readings}
    for (device, _, minute, way), number in server.counts.items():
        assert way == "in"
        local = datetime.fromtimestamp(minute * 60, ZoneInfo(ZONE))
        days[names[device], local.date()] += number
    return {**zero, **days}


async def test_an_interrupted_replay_ends_in_an_exact_match(stack: Stack, tmp_path: Path) -> None:
    file = four_months()
    identities = {place: enrolled(stack, tmp_path, name) for place, name in PLACES.items()}
    async with serving(stack) as server:
        interrupted = asyncio.Event()

        def interrupt(recorded: int, sent: int) -> None:
            if sent > 1_000:
                interrupted.set()

        first = asyncio.create_task(
            Replayer(file, tmp_path / "state").run(identities, on_progress=interrupt)
        )
        waiting = asyncio.create_task(interrupted.wait())
        await asyncio.wait({first, waiting}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        waiting.cancel()
        shown: list[tuple[int, int]] = []
        second = Replayer(file, tmp_path / "state")
        await second.run(identities, on_progress=lambda *hours: shown.append(hours))
        assert proof(file, served(server, file)) == []
        assert shown[-1] == (second.hours, second.hours)
        assert second.hours == 100 * 24 - 1 + 99 * 24 - 1
        before = server.people.total()
        await Replayer(file, tmp_path / "state").run(identities)  # for nothing
        assert server.people.total() == before
