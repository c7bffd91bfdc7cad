"""What the routes answer: the structs are the wire, and the OpenAPI page is made from them."""

from datetime import date
from typing import Generic, TypeVar

import msgspec

from server.rollup.answer import CountRow, Unplaced


class SiteRow(msgspec.Struct, frozen=True):
    """A store or mall."""

    site: str
    name: str
    time_zone: str
    currency: str
    opens_on: date | None
    closes_on: date | None


class OpeningRow(msgspec.Struct, frozen=True):
    """Hours of a weekday (0 Monday) in minutes after local midnight; above 1440: past midnight."""

    weekday: int
    opens: int
    closes: int


class ExceptionRow(msgspec.Struct, frozen=True):
    """A day's own hours; opens null: closed all day."""

    day: date
    opens: int | None
    closes: int | None
    note: str


class SpotRow(msgspec.Struct, frozen=True):
    """A mounted position; `device` is what stands there now."""

    spot: str
    site: str
    name: str
    kind: str
    door: str | None
    device: str | None


class SiteDetail(msgspec.Struct, frozen=True):
    """A site with its hours and spots; no opening rows: always open."""

    site: str
    name: str
    time_zone: str
    currency: str
    opens_on: date | None
    closes_on: date | None
    opening: list[OpeningRow]
    exceptions: list[ExceptionRow]
    spots: list[SpotRow]


class DeviceRow(msgspec.Struct, frozen=True):
    """A device; `stored_to` is until when its counts are stored, in its own time."""

    device: str
    kind: str
    model: str
    serial: str
    state: str
    site: str | None
    spot: str | None
    enrolled_at: str | None
    stored_to: str | None
    last_stored: str | None
    undated_frames: int


class GapRow(msgspec.Struct, frozen=True):
    """What is known to be missing. `visits` and `exits` were counted, but not to the minute."""

    id: int
    site: str
    spot: str
    device: str
    start: str | None = msgspec.field(name="from")
    until: str | None
    reason: str
    explanation: str
    visits: int | float
    exits: int | float
    presses: int
    recorded_at: str
    filled_at: str | None


T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of rows; `next` is the cursor of the following page, null on the last."""

    data: list[T]
    next: str | None = None


class CountAnswer(msgspec.Struct, frozen=True):
    """Counts; `unplaced` are people in gaps that no bucket of this page contains wholly."""

    data: list[CountRow]
    unplaced: list[Unplaced]
    next: str | None = None


GAP_REASONS = {
    "thinned": "The device was cut off for so long that its store had to give up single minutes.",
    "rotted": "Records in the device's store could not be read any more.",
    "forgotten": "The device was asked for records that it no longer has.",
    "quarantined": "A frame arrived that cannot be read; it is kept, and may be filled later.",
    "refused": "The device was not admitted; it holds what it counted, and this is its sum.",
    "totals": "The device's totals and its readings differ; an alert was raised.",
}
