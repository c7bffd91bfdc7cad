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
    """A device; `stored_to` is until when its counts are stored, in its own time.

    `state` is where it is in its life, `presence` how its connection is, as last judged; `agent` is
    what runs on it.
    """

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
    presence: str
    agent: str


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


class MaskRow(msgspec.Struct, frozen=True):
    """A stretch in which a spot's counts are not true. `until` is null while it goes on.

    It lowers coverage; no count is removed. `cause` is the condition that was found.
    """

    id: int
    site: str
    spot: str
    start: str = msgspec.field(name="from")
    until: str | None
    cause: str
    explanation: str
    recorded_at: str


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


# The register, as it is read and written. `version` is in the ETag, for If-Match.


class RegionRecord(msgspec.Struct, frozen=True):
    """A region."""

    region: str
    name: str
    version: str


class SiteRecord(msgspec.Struct, frozen=True):
    """A site as it may be edited; `hours` as `Mo-Fr 10:00-19:00; Sa off`, empty: never closes."""

    site: str
    name: str
    time_zone: str
    currency: str
    address: str
    region: str | None
    hours: str
    opens_on: date | None
    closes_on: date | None
    version: str


class DoorRecord(msgspec.Struct, frozen=True):
    """A door; `behind` is the one before it, null: it opens to the outside."""

    door: str
    site: str
    name: str
    behind: str | None
    version: str


class SpotRecord(msgspec.Struct, frozen=True):
    """A spot, and how it is mounted now."""

    spot: str
    site: str
    name: str
    kind: str
    door: str | None
    purpose: str
    height_cm: int | None
    version: str


class NewRegion(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A region to be added."""

    name: str


class RegionWrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A region's new name."""

    name: str | msgspec.UnsetType = msgspec.UNSET


class SiteWrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change of a site; what is left out stays."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    time_zone: str | msgspec.UnsetType = msgspec.UNSET
    currency: str | msgspec.UnsetType = msgspec.UNSET
    address: str | msgspec.UnsetType = msgspec.UNSET
    region: str | msgspec.UnsetType | None = msgspec.UNSET
    hours: str | msgspec.UnsetType = msgspec.UNSET
    opens_on: date | msgspec.UnsetType | None = msgspec.UNSET
    closes_on: date | msgspec.UnsetType | None = msgspec.UNSET


class NewSite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site to be added; `hours` left out: it never closes."""

    name: str
    time_zone: str
    currency: str = "EUR"
    address: str = ""
    region: str | None = None
    hours: str = ""
    opens_on: date | None = None
    closes_on: date | None = None


class NewDoor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A door to be added to a site."""

    site: str
    name: str
    behind: str | None = None


class DoorWrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change of a door; what is left out stays."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    behind: str | msgspec.UnsetType | None = msgspec.UNSET


class NewSpot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A spot to be added to a site."""

    site: str
    name: str
    kind: str
    door: str | None = None
    purpose: str = "entrance"
    height_cm: int | None = None


class SpotWrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change of a spot, from now on; what is left out stays."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    door: str | msgspec.UnsetType | None = msgspec.UNSET
    purpose: str | msgspec.UnsetType = msgspec.UNSET
    height_cm: int | msgspec.UnsetType | None = msgspec.UNSET
