"""Where events come from: GPIO lines, or a feeder at a socket or standard input.

A sensor hands each event to `take`, which records it at once (or raises RefusedError), and is told
by `flushed` whenever the journal has been written, so that a feeder hears `stored` only then.
The drivers are `agent.gpio` (GpioSensor) and `agent.feed` (SocketSensor, StdinSensor).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.recorder import Feed


@dataclass(frozen=True, slots=True)
class Crossing:
    """People who crossed a line just now."""

    line: int
    entered: int = 0
    left: int = 0
    feed: Feed | None = None


@dataclass(frozen=True, slots=True)
class Touch:
    """One press just now; without `visit`, presses within 30 s of each other make one."""

    question: int
    answer: int
    visit: int | None = None
    source: int = 0
    feed: Feed | None = None
    questionnaire: bytes | None = None  # its hash; none: the settings' own


@dataclass(frozen=True, slots=True)
class Button:
    """A button was pressed that means an answer of what is on the screen, from 1."""

    position: int


Event = Crossing | Touch | Button
Take = Callable[[Event], None]


class Sensor(Protocol):
    """A source of events."""

    async def run(self, take: Take) -> None:
        """Deliver events until cancelled, or return when there can be no more."""
        ...

    def flushed(self) -> None:
        """Hear that all taken so far is journalled."""
        return

    def identify(self) -> str:
        """Make the device known to who stands before it: blink, beep; say how, '' if it can't."""
        return ""

    def health(self) -> dict[str, float]:
        """Return metrics of the hardware, by name."""
        return {}
