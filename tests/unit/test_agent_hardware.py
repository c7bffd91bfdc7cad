"""Beams, buttons and visits."""

import asyncio
import os
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gpio import Beams, GpioButton, GpioLine, GpioSensor, GpioSettings
from agent.kiosk import Visits
from agent.sensor import Crossing, Event, Touch

IN = ((0, True), (1, True), (0, False), (1, False))
OUT = ((1, True), (0, True), (1, False), (0, False))


def passes(*edges: tuple[int, bool]) -> list[int]:
    beams = Beams()
    return [way for beam, broken in edges if (way := beams.edge(beam, broken=broken))]


def test_the_order_of_the_beams_is_the_direction() -> None:
    assert passes(*IN, *OUT, *IN) == [1, -1, 1]


def test_who_turns_back_is_not_counted() -> None:
    assert passes((0, True), (1, True), (1, False), (0, False)) == []
    assert passes((0, True), (0, False), *OUT) == [-1]


def test_who_hesitates_in_the_door_is_counted_once() -> None:
    wavering = ((0, True), (1, True), (1, False), (1, True), (0, False), (1, False))
    assert passes(*wavering) == [1]


def test_a_missed_edge_is_a_fault_and_no_person() -> None:
    beams = Beams()
    for beam, broken in ((0, True), (0, True), (1, True), (0, False), (1, False)):
        assert beams.edge(beam, broken=broken) == 0
    assert beams.faults == 1
    assert sum(beams.edge(beam, broken=broken) for beam, broken in IN) == 1


@given(st.lists(st.tuples(st.integers(0, 1), st.booleans()), max_size=60))
def test_beams_never_count_more_than_they_were_broken(edges: list[tuple[int, bool]]) -> None:
    assert len(passes(*edges)) <= sum(broken for _, broken in edges) / 2


class Pins:
    """A line request whose edges a test makes."""

    def __init__(self) -> None:
        self.fd, self._far = os.pipe()
        self._edges: list[tuple[int, bool]] = []
        self.released = False

    def make(self, *edges: tuple[int, bool]) -> None:
        self._edges += edges
        os.write(self._far, b"!")

    def edges(self) -> list[tuple[int, bool]]:
        os.read(self.fd, 64)
        edges, self._edges = self._edges, []
        return edges

    def release(self) -> None:
        self.released = True
        os.close(self.fd)
        os.close(self._far)


async def test_gpio_edges_become_crossings_and_presses() -> None:
    pins, events = Pins(), list[Event]()
    settings = GpioSettings(
        lines=(GpioLine(0, 17, 27), GpioLine(1, 22, single="out")),
        buttons=(GpioButton(5, 1, 4),),
    )
    now_s = [100.0]
    sensor = GpioSensor(settings, request=lambda _: pins, now_s=lambda: now_s[0])
    task = asyncio.create_task(sensor.run(events.append))
    await asyncio.sleep(0)
    pins.make((17, True), (27, True), (17, False), (27, False), (22, True), (22, False))
    pins.make((5, True), (5, False), (99, True))
    async with asyncio.timeout(10):
        while len(events) < 3:  # noqa: ASYNC110 - the loop reads the pins
            await asyncio.sleep(0.01)
    assert events == [Crossing(0, 1, 0), Crossing(1, 0, 1), Touch(1, 4)]
    free = {"sensor.faults": 0.0, "sensor.blocked_s": 0.0, "button.held_s": 0.0}
    assert sensor.health() == free
    pins.make((27, True), (22, True))
    async with asyncio.timeout(10):
        while len(events) < 4:  # noqa: ASYNC110 - the loop reads the pins
            await asyncio.sleep(0.01)
    now_s[0] = 700.0
    assert sensor.health() == free | {"sensor.blocked_s": 600.0}
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert pins.released


def test_a_pin_is_used_once() -> None:
    with pytest.raises(ValueError, match="once"):
        _ = GpioSettings(lines=(GpioLine(0, 17, 17),)).pins


def test_presses_within_half_a_minute_belong_to_one_visit() -> None:
    visits = Visits()
    times = [1_000, 2_000, 31_000, 61_000, 62_000]
    assert [visits.ordinal(ms) for ms in times] == [1, 1, 1, 2, 2]
    visits.reset()
    assert visits.ordinal(62_001) == 3


@given(st.lists(st.integers(0, 200_000), min_size=1))
def test_visits_never_go_back(waits: list[int]) -> None:
    visits, now, ordinals = Visits(), 0, []
    for wait in waits:
        now += wait
        ordinals.append(visits.ordinal(now))
    assert all(right - left in {0, 1} for left, right in pairwise(ordinals))
