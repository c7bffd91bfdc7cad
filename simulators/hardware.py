"""A device's scripted hardware: what it is, what it reports, and how that is recorded."""

from collections.abc import Iterator
from dataclasses import dataclass

from agent.held import Totals
from agent.recorder import Feed, Profile, Recorder
from simulators.traffic import (
    PERFECT,
    Crossing,
    Door,
    Kiosk,
    Sensor,
    Touch,
    people,
    per_minute,
    sense,
    touches,
)
from simulators.truth import TruthFile

Event = Crossing | Touch


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """What a simulated device is: its door, its sensor or kiosk, and its seed."""

    device: str
    door: Door
    seed: int
    sensor: Sensor = PERFECT
    kiosk: Kiosk | None = None
    questionnaire: bytes = bytes(8)

    def profile(
        self, *, interval_s: int = 60, frame_s: int = 300, quiet_frame_s: int = 1_800
    ) -> Profile:
        """Return the agent's profile for this hardware."""
        return Profile(
            kind="counter" if self.kiosk is None else "kiosk",
            lines=len(self.sensor.lines) if self.kiosk is None else 1,
            interval_s=interval_s,
            frame_s=frame_s,
            quiet_frame_s=quiet_frame_s,
            questionnaire=self.questionnaire,
        )

    def events(self, start_ms: int, end_ms: int) -> Iterator[Event]:
        """Yield what the hardware reports in that stretch of UTC."""
        if self.kiosk is None:
            yield from self._crossings(start_ms, end_ms)
        else:
            yield from touches(
                self.door, self.kiosk, seed=self.seed, start_ms=start_ms, end_ms=end_ms
            )

    def minutes(self, start_ms: int, end_ms: int) -> Iterator[Event]:
        """Yield the same with a counter's crossings summed per minute, for history."""
        if self.kiosk is None:
            for crossing in per_minute(self._crossings(start_ms, end_ms)):
                yield crossing._replace(at_ms=max(crossing.at_ms, start_ms))
        else:
            yield from self.events(start_ms, end_ms)

    def _crossings(self, start_ms: int, end_ms: int) -> Iterator[Crossing]:
        passages = people(self.door, seed=self.seed, start_ms=start_ms, end_ms=end_ms)
        return sense(passages, self.sensor)


def record(recorder: Recorder, event: Event, *, feed: Feed | None = None) -> None:
    """Hand one event to the recorder at its clock's now."""
    if isinstance(event, Crossing):
        recorder.count(event.line, entered=event.entered, left=event.left, feed=feed)
    else:
        recorder.press(event.question, event.answer, visit=event.visit, feed=feed)


def tell(truth: TruthFile, device: str, event: Event, *, sure: bool = True) -> None:
    """Add one event to the truth; `sure` if the agent has confirmed it as journalled."""
    at_ms = event.at_ms
    if isinstance(event, Crossing):
        entered, left = event.entered, event.left
        truth.count(device, event.line, at_ms=at_ms, entered=entered, left=left, sure=sure)
    else:
        question, answer = event.question, event.answer
        truth.press(device, at_ms=at_ms, question=question, answer=answer, sure=sure)


def size(event: Event) -> int:
    """Return how many people, or presses, an event is."""
    return event.entered + event.left if isinstance(event, Crossing) else 1


def people_in(totals: Totals) -> int:
    """Return all crossings, or presses, in totals."""
    return sum(into + out for _, into, out in totals.lines) + sum(n for *_, n in totals.answers)
