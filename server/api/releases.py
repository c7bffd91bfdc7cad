"""The routes of /v1 about versions: what is released, and what each device runs and waits for."""

from datetime import datetime

import msgspec

from server.api.acts import ActRoute
from server.api.parameters import AsFormat, Nothing
from server.api.reads import Call, Route
from server.api.types import Page
from server.firmware import members, reads
from server.firmware.life import State
from server.firmware.members import Component, Explained, Member
from server.firmware.reads import Bundle, Part
from server.firmware.why import Reason, Why


class Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of them, the latest first."""

    format: AsFormat = None


class ReleaseRow(msgspec.Struct, frozen=True):
    """A version of a component, approved offline. Once a device runs it, nothing below `floor`
    follows; it is installed from `requires` on, where that is said, on the models of `hardware`.
    """

    release: str
    component: str
    version: str
    floor: str
    requires: str | None
    hardware: list[str]
    bytes: int
    sha256: str
    notes: str
    published_at: datetime
    withdrawn_at: datetime | None


class BundleRow(msgspec.Struct, frozen=True):
    """Releases that are installed together, in this order, all or none.

    `fit`: it may be rolled out; none of it was withdrawn.
    """

    bundle: str
    name: str
    created_at: datetime
    bytes: int
    fit: bool
    releases: list[ReleaseRow]


class ExecutionRow(msgspec.Struct, frozen=True):
    """One device in one rollout: where it stands, in which attempt, and how it ended.

    `straggler`: it appeared when its wave had passed. `class` and `code` say why it failed, or why
    it is tried again at `due_at`; `excluded` why it takes no part. `before`: what it ran.
    """

    execution: str
    rollout: str
    device: str
    site: str | None
    site_name: str | None
    spot: str | None
    wave: int
    straggler: bool
    state: State
    attempt: int
    code: str
    excluded: str
    bytes: int
    due_at: datetime | None
    offered_at: datetime | None
    accepted_at: datetime | None
    since: datetime | None
    ended_at: datetime | None
    before: dict[str, str]
    kind: str = msgspec.field(name="class", default="")


class ReasonRow(msgspec.Struct, frozen=True):
    """Why a device waits, or how far it is; `until`: when this reason ends by itself."""

    reason: Reason
    text: str
    until: datetime | None
    values: dict[str, int | str]


class Explanation(msgspec.Struct, frozen=True):
    """Why a device does not run what a rollout brings: the nearest reason first."""

    device: str
    rollout: str
    reasons: list[ReasonRow]
    execution: ExecutionRow | None


class FirmwareAnswer(msgspec.Struct, frozen=True):
    """What a device runs, as it last signed, and what is under way of it, or was last."""

    device: str
    hardware: str
    slot: str
    components: dict[str, Component]
    reported_at: datetime | None
    now: Explanation | None


def execution_row(found: Member) -> ExecutionRow:
    """Return an execution as it is answered."""
    return ExecutionRow(
        execution=found.ref,
        rollout=found.rollout,
        device=found.device,
        site=found.site,
        site_name=found.site_name,
        spot=found.spot,
        wave=found.wave,
        straggler=found.pool == 0 and found.wave != 0,
        state=found.state,
        attempt=found.attempt,
        code=found.code,
        excluded=found.excluded,
        bytes=found.bytes,
        due_at=found.due_at,
        offered_at=found.offered_at,
        accepted_at=found.accepted_at,
        since=found.phase_at,
        ended_at=found.ended_at,
        before=dict(found.before),
        kind=found.kind,
    )


def explanation(found: Explained) -> Explanation:
    """Return why a device waits as it is answered."""
    return Explanation(
        found.device,
        found.rollout,
        [_reason(each) for each in found.reasons],
        None if found.member is None else execution_row(found.member),
    )


def _reason(found: Why) -> ReasonRow:
    return ReasonRow(found.reason, found.text, found.until, dict(found.values))


def _release(part: Part) -> ReleaseRow:
    return ReleaseRow(
        *(part.ref, part.component, part.version, part.floor, part.requires),
        *(list(part.hardware), part.bytes, part.sha256, part.notes),
        *(part.published_at, part.withdrawn_at),
    )


def bundle_row(each: Bundle) -> BundleRow:
    """Return a bundle as it is answered."""
    return BundleRow(
        *(each.ref, each.name, each.created_at, each.bytes, each.fit),
        [_release(part) for part in each.parts],
    )


async def _releases(call: Call, asked: Whole) -> Page[ReleaseRow]:
    return Page([_release(part) for part in await reads.releases(call.connection)])


async def _bundles(call: Call, asked: Nothing) -> Page[BundleRow]:
    return Page([bundle_row(each) for each in await reads.bundles(call.connection)])


async def _firmware(call: Call, asked: Nothing) -> FirmwareAnswer:
    found = await members.of_device(
        call.connection, await call.organisation(), call.path["ref"], now=call.now
    )
    return FirmwareAnswer(
        *(found.device, found.hardware, found.slot, dict(found.components), found.reported_at),
        None if found.now is None else explanation(found.now),
    )


ROUTES: tuple[Route, ...] = (
    Route("/releases", "Versions there are", Whole, Page[ReleaseRow], ReleaseRow, _releases),
    Route("/bundles", "What can be rolled out", Nothing, Page[BundleRow], None, _bundles),
    Route(
        "/devices/{ref}/firmware",
        "What a device runs, and why not yet what is planned",
        Nothing,
        FirmwareAnswer,
        None,
        _firmware,
    ),
)
ACTS: tuple[ActRoute, ...] = ()
