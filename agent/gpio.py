"""GPIO: two light beams a line tell the direction of who passes; buttons are presses.

The edges come from the kernel through libgpiod 2 (`pip install 'vestibule[gpio]'`), debounced
there. Which way somebody went is decided by `Beams`, which knows no hardware: a passage must break
A, then both, then B, then none (in), or the reverse (out). Who turns back is not counted; an order
that no person can make is counted as a fault, not as a person.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import structlog

from agent.recorder import RefusedError
from agent.sensor import Button, Crossing, Event, Sensor, Take, Touch

log = structlog.get_logger(__name__)

_STEPS = {0b00: 0, 0b01: 1, 0b11: 2, 0b10: 3}  # A alone, both, B alone: a quarter turn each


class Beams:
    """The order in which one line's two beams break."""

    def __init__(self) -> None:
        self.faults = 0
        self._broken = 0
        self._turn = 0
        self._lost = False

    def edge(self, beam: int, *, broken: bool) -> int:
        """Take an edge of beam 0 (A) or 1 (B); return 1 if someone came in, -1 out, else 0."""
        before = self._broken
        bit = 1 << beam
        self._broken = before | bit if broken else before & ~bit
        step = (_STEPS[self._broken] - _STEPS[before]) % 4
        if step == 0:
            self._lost = True  # an edge was missed: the beam was already in this state
        else:
            self._turn += 1 if step == 1 else -1
        if self._broken:
            return 0
        turn, lost = self._turn, self._lost
        self._turn, self._lost = 0, False
        if lost:
            self.faults += 1
            return 0
        return (turn == 4) - (turn == -4)


@dataclass(frozen=True, slots=True)
class GpioLine:
    """A counting line's pins: beams A (outside) and B (inside), or A alone and its direction."""

    line: int
    a: int
    b: int | None = None
    single: str = "in"


@dataclass(frozen=True, slots=True)
class GpioButton:
    """A button's pin, and what it answers: one question always, or what is on the screen.

    `position` counts the answers on the screen, from 1.
    """

    pin: int
    question: int | None = None
    answer: int | None = None
    position: int | None = None

    def __post_init__(self) -> None:
        """Refuse a button that means nothing, or two things."""
        fixed = self.question is not None and self.answer is not None
        half = (self.question is None) != (self.answer is None)
        if half or fixed == (self.position is not None):
            raise ValueError("a button has question and answer, or a position on the screen")

    @property
    def event(self) -> Touch | Button:
        """What a press of it is."""
        if self.position is not None:
            return Button(self.position)
        assert self.question is not None
        assert self.answer is not None
        return Touch(self.question, self.answer)


@dataclass(frozen=True, slots=True)
class GpioSettings:
    """One chip's wiring."""

    chip: str = "/dev/gpiochip0"
    lines: tuple[GpioLine, ...] = ()
    buttons: tuple[GpioButton, ...] = ()
    debounce_ms: float = 5.0
    active_low: bool = True

    @property
    def pins(self) -> tuple[int, ...]:
        """All pins in use; ValueError if one is named twice."""
        named = [pin for line in self.lines for pin in (line.a, line.b) if pin is not None]
        named += [button.pin for button in self.buttons]
        if len(set(named)) != len(named) or not named:
            raise ValueError(f"each GPIO pin is used once, and at least one: {sorted(named)}")
        return tuple(named)


class Request(Protocol):
    """What we need of a libgpiod line request."""

    @property
    def fd(self) -> int:
        """Readable when there are edges."""
        ...

    def edges(self) -> list[tuple[int, bool]]:
        """Return (pin, active) of each edge since the last call."""
        ...

    def release(self) -> None:
        """Give the pins back."""
        ...


class GpioSensor(Sensor):
    """Edges of a chip's pins; `request` opens them (libgpiod unless a test says otherwise)."""

    def __init__(
        self,
        settings: GpioSettings,
        *,
        request: Callable[[GpioSettings], Request] | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._request = request or request_lines
        self._now_s = now_s
        self._active: dict[int, float] = {}  # since when a pin is, by pin
        self._beams = {line.line: Beams() for line in settings.lines if line.b is not None}
        self._act: Mapping[int, Callable[[bool], Event | None]] = {
            **{b.pin: self._button(b) for b in settings.buttons},
            **{pin: act for line in settings.lines for pin, act in self._line(line)},
        }

    async def run(self, take: Take) -> None:
        """Deliver edges until cancelled."""
        request = self._request(self._settings)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def readable() -> None:
            try:
                for pin, active in request.edges():
                    self._edge(pin, active, take)
            except OSError as error:
                if not ended.done():
                    ended.set_exception(error)

        loop.add_reader(request.fd, readable)
        try:
            await ended
        finally:
            loop.remove_reader(request.fd)
            request.release()

    def health(self) -> dict[str, float]:
        """Return how many passages made no sense, and for how long beams or buttons are held."""
        values = {"sensor.faults": float(sum(beams.faults for beams in self._beams.values()))}
        beams = [pin for line in self._settings.lines for pin in (line.a, line.b)]
        for name, pins in (
            ("sensor.blocked_s", beams),
            ("button.held_s", [button.pin for button in self._settings.buttons]),
        ):
            if pins:
                since = [self._active[pin] for pin in pins if pin in self._active]
                values[name] = round(self._now_s() - min(since), 1) if since else 0.0
        return values

    def _edge(self, pin: int, active: bool, take: Take) -> None:
        if active:
            self._active.setdefault(pin, self._now_s())
        else:
            self._active.pop(pin, None)
        act = self._act.get(pin)
        event = None if act is None else act(active)
        if event is None:
            return
        try:
            take(event)
        except RefusedError as error:
            log.error("an event was refused", pin=pin, error=str(error))

    def _button(self, button: GpioButton) -> Callable[[bool], Event | None]:
        event = button.event
        return lambda active: event if active else None

    def _line(self, line: GpioLine) -> list[tuple[int, Callable[[bool], Event | None]]]:
        if line.b is None:
            came_in = line.single == "in"
            event = Crossing(line.line, int(came_in), int(not came_in))
            return [(line.a, lambda active: event if active else None)]

        def beam(number: int) -> Callable[[bool], Event | None]:
            def act(active: bool) -> Event | None:
                way = self._beams[line.line].edge(number, broken=active)
                return Crossing(line.line, int(way > 0), int(way < 0)) if way else None

            return act

        return [(line.a, beam(0)), (line.b, beam(1))]


def request_lines(settings: GpioSettings) -> Request:
    """Open the pins through libgpiod 2."""
    try:
        import gpiod
        from gpiod.line import Bias, Edge
    except ImportError as error:
        raise RuntimeError("GPIO needs libgpiod: pip install 'vestibule[gpio]'") from error
    request = gpiod.request_lines(
        settings.chip,
        consumer="vestibule-agent",
        config={
            settings.pins: gpiod.LineSettings(
                edge_detection=Edge.BOTH,
                bias=Bias.PULL_UP if settings.active_low else Bias.PULL_DOWN,
                active_low=settings.active_low,
                debounce_period=timedelta(milliseconds=settings.debounce_ms),
            )
        },
    )

    class Opened:
        fd = request.fd

        def edges(self) -> list[tuple[int, bool]]:
            rising = gpiod.EdgeEvent.Type.RISING_EDGE
            return [
                (event.line_offset, event.event_type is rising)
                for event in request.read_edge_events()
            ]

        def release(self) -> None:
            request.release()

    return Opened()
