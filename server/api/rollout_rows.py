"""What /v1 answers about rollouts, and how it is made of what `server.firmware` reads."""

from datetime import datetime

import msgspec

from server.firmware import joining, reads
from server.firmware.change import SettingsChange
from server.firmware.drafting import (
    Conflict,
    Detects,
    LeftOut,
    Leg,
    OneWay,
    Pending,
    Told,
    WaveTold,
)
from server.firmware.guards import Guard
from server.firmware.life import Counters, State
from server.firmware.policy import Policy
from server.firmware.reads import CountedWave, Failure, Line, NextWindow, One, SiteNow, WaveNow
from server.firmware.standing import Act as Doing
from server.firmware.standing import Passing, Standing
from server.firmware.waves import State as RolloutState
from server.firmware.waves import WaveKind, WaveState


class RolloutRow(msgspec.Struct, frozen=True):
    """A rollout. `wave`: the one that must pass next, of `waves`; null: none is left, or it has not
    begun. `bytes`: what one device fetches at most. `flying`: offered and not ended. `rejected`:
    the device would not have it. `settings`, `questionnaire`: what it, or the one that it takes
    back, brings."""

    rollout: str
    name: str
    payload: str
    bundle: str | None
    bundle_name: str | None
    settings: SettingsChange | None
    questionnaire: str | None
    state: RolloutState
    since: datetime
    reason: str
    author: str
    approver: str
    approved_at: datetime | None
    starts_at: datetime | None
    reverses: str | None
    reversed_by: str | None
    wave: int | None
    waves: int
    devices: int
    bytes: int
    attempted: int
    flying: int
    confirmed: int
    failed: int
    lost: int
    rejected: int
    unreachable: int


class RolloutPlan(msgspec.Struct, frozen=True):
    """Who would get it in which wave, who not and why, and what it takes, at the soonest.

    `reasons` counts all who are left out, `excluded` names the first of them. `detects`: the least
    loss of counts that the guard would find; null: none at all, and `detects_nothing` says why.
    `one_way`: for whom there is no way back. `second_person`: why its author may not approve it.
    `commitment`: SHA-256 of the seed of the lot that orders devices and draws controls; empty in a
    preview, as another lot is drawn for what is kept.
    """

    filter: str
    devices: int
    sites: int
    bytes: int
    controls: int
    commitment: str
    done_at: datetime | None
    waves: list[WaveTold]
    reasons: dict[str, int]
    excluded: list[LeftOut]
    legs: list[Leg]
    one_way: list[OneWay]
    conflicts: list[Conflict]
    pending: list[Pending]
    detects: Detects | None
    detects_nothing: str
    second_person: list[str]


class PlannedRollout(msgspec.Struct, frozen=True):
    """A rollout as it was planned; `plan` null: it takes another one back, and was made by that.

    `version` is in the ETag, for If-Match.
    """

    rollout: str
    version: str
    summary: RolloutRow
    plan: RolloutPlan | None


class DeviceCounts(msgspec.Struct, frozen=True):
    """How many devices: `attempted` have accepted it once, `ended` of them; `refused` never did;
    `gone` were taken out (`unreachable` among them); `flying` are on their way."""

    attempted: int
    ended: int
    confirmed: int
    failed: int
    lost: int
    refused: int
    gone: int
    unreachable: int
    flying: int


class WaveRow(msgspec.Struct, frozen=True):
    """A wave. Number 0 counts stragglers, the last who joined later. `since`: what has been counted
    since somebody acknowledged failures, which guards and gates look at."""

    number: int
    kind: WaveKind
    state: WaveState
    size: int
    remaining: int
    opened_at: datetime | None
    total: DeviceCounts
    since: DeviceCounts
    gate: Passing | None


class FailureRow(msgspec.Struct, frozen=True):
    """Devices that ended alike, or are tried again after it (`planned`); `said`: the end of what
    one of them wrote down."""

    state: State
    code: str
    devices: int
    latest_at: datetime | None
    examples: list[str]
    said: str
    kind: str = msgspec.field(name="class", default="")


class GuardRow(msgspec.Struct, frozen=True):
    """How far a guard is from its limit. `wave`: null where it looks at all waves together, 0 the
    stragglers. `missing`: how many have to end before it is judged at all."""

    wave: int | None
    guard: Guard
    found: float
    limit: float
    missing: int
    tripped: bool


class RolloutDetail(msgspec.Struct, frozen=True):
    """One rollout, live. `funnel`: devices by where they stand. `acts`: what may be done now.

    `version` is in the ETag, for If-Match. `waits_for_people`: nothing happens by itself.
    """

    rollout: str
    version: str
    summary: RolloutRow
    acts: list[Doing]
    waits_for_people: bool
    second_person: bool
    policy: Policy
    waves: list[WaveRow]
    funnel: dict[str, int]
    failures: list[FailureRow]
    sites_in_all: int
    sites: list[SiteNow]
    guards: list[GuardRow]
    counted: list[CountedWave]
    counted_at: datetime | None
    next_window: NextWindow | None


class NotJoined(msgspec.Struct, frozen=True):
    """A device that does not join, and why."""

    device: str
    why: str


class JoinedRecord(msgspec.Struct, frozen=True):
    """Who has joined the tail of a rollout, and who has not."""

    rollout: str
    devices: list[str]
    left_out: list[NotJoined]


Detail = str | int | float | list[int] | dict[str, int]


class HistoryRow(msgspec.Struct, frozen=True):
    """What happened to a rollout or one of its waves, and each wave's counters at that moment."""

    number: int
    at: datetime
    event: str
    actor: str
    reason: str
    detail: dict[str, Detail]
    counters: dict[str, dict[str, int]]


def row_of(line: Line) -> RolloutRow:
    """Return a rollout as it stands in lists."""
    total = {name: getattr(line.totals, name) for name in _TOTALS}
    same = {name: getattr(line, name) for name in _OF_LINE}
    return RolloutRow(rollout=line.ref, **same, **total)


_TOTALS = ("attempted", "flying", "confirmed", "failed", "lost", "rejected", "unreachable")
_OF_LINE = tuple(n for n in RolloutRow.__struct_fields__ if n not in ("rollout", *_TOTALS))


def plan_of(told: Told) -> RolloutPlan:
    """Return a plan as it is answered."""
    return RolloutPlan(
        *(told.filter, told.devices, told.sites, told.bytes, told.controls, told.commitment),
        *(told.done_at, list(told.waves), dict(told.reasons), list(told.excluded)),
        *(list(told.legs), list(told.one_way), list(told.conflicts), list(told.pending)),
        *(told.detects, told.detects_nothing, list(told.second_person)),
    )


def detail_of(found: One) -> RolloutDetail:
    """Return one rollout as it is answered."""
    return RolloutDetail(
        rollout=found.line.ref,
        version=found.version,
        summary=row_of(found.line),
        acts=list(found.acts),
        waits_for_people=found.waits_for_people,
        second_person=found.second_person,
        policy=found.policy,
        waves=[_wave(each) for each in found.waves],
        funnel={state.value: number for state, number in found.funnel.items()},
        failures=[_failure(each) for each in found.failures],
        sites_in_all=found.sites_in_all,
        sites=list(found.sites),
        guards=[_guard(each) for each in found.guards],
        counted=list(found.counted),
        counted_at=found.counted_at,
        next_window=found.next_window,
    )


def _wave(found: WaveNow) -> WaveRow:
    wave = found.wave
    return WaveRow(
        *(wave.number, wave.kind, wave.state, wave.size, wave.remaining, wave.opened_at),
        *(_counted(wave.total), _counted(wave.since), found.passing),
    )


def _counted(found: Counters) -> DeviceCounts:
    return DeviceCounts(*(getattr(found, name) for name in DeviceCounts.__struct_fields__))


def _failure(found: Failure) -> FailureRow:
    return FailureRow(
        *(found.state, found.code, found.number, found.latest_at, list(found.devices)),
        *(found.said, found.kind),
    )


def _guard(found: Standing) -> GuardRow:
    return GuardRow(
        *(found.wave, found.guard, found.found, found.limit, found.missing, found.tripped)
    )


def history_row(each: reads.Happened) -> HistoryRow:
    """Return a transition as it is answered."""
    return HistoryRow(
        *(each.number, each.at, each.event, each.actor, each.reason),
        msgspec.convert(each.detail, dict[str, Detail]),
        {wave: dict(counters) for wave, counters in each.counters.items()},
    )


def joined_of(ref: str, found: joining.Joined) -> JoinedRecord:
    """Return who has joined as it is answered."""
    left = [NotJoined(each.device, each.why) for each in found.left_out]
    return JoinedRecord(ref, list(found.devices), left)
