"""The routes of /v1 about rollouts: plan, approve, watch and act, and why a device waits.

Who approves is somebody else than the author where a policy's blast radius is passed, a freeze is
overridden, or there is no way back. A key is nobody in particular: it plans and acts, but never is
that second person. Each act says by If-Match which state it has seen (`acts`): what halted
meanwhile is not resumed unseen.
"""

from collections.abc import Awaitable, Callable
from typing import Annotated

import asyncpg
import msgspec

from server.api.acts import Act, ActRoute, written
from server.api.freezes import WRITE, Instant
from server.api.pages import after, page_of
from server.api.parameters import Listing, Nothing, read_cursor, write_cursor
from server.api.reads import Call, Route
from server.api.releases import ExecutionRow, Explanation, execution_row, explanation
from server.api.rollout_rows import (
    HistoryRow,
    JoinedRecord,
    PlannedRollout,
    RolloutDetail,
    RolloutPlan,
    RolloutRow,
    detail_of,
    history_row,
    joined_of,
    plan_of,
    row_of,
)
from server.api.types import Page
from server.errors import RefusedError
from server.firmware import acts, drafting, joining, members, planning, reads
from server.firmware.change import SettingsChange
from server.firmware.joiners import KEY
from server.firmware.life import State
from server.firmware.policy import OnHalt, Policy, read_policy, write_policy
from server.fleet.checks import ChangedError, FieldError

_Ref = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Filter = Annotated[str, msgspec.Meta(max_length=4_000)]


# -- asked -----------------------------------------------------------------------------------------


class RolloutWanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A bundle for the devices that `filter` finds, or a segment; neither: for all there are.

    Or `settings` for the devices of a layer; those of scope `device` for whom the filter finds.
    Or a `questionnaire` (a version, published or not) for kiosks.
    What the policy leaves out is as by default; `windows`: null installs at any time.
    """

    bundle: _Ref | None = None
    settings: SettingsChange | None = None
    questionnaire: _Ref | None = None
    filter: _Filter = ""
    segment: _Ref | None = None
    policy: Policy = Policy()

    def asked(self) -> planning.Asked:
        """Return it as plans take it. Raises PolicyError, FieldError."""
        policy = read_policy(write_policy(self.policy))
        if [self.bundle, self.settings, self.questionnaire].count(None) != 2:
            raise FieldError("bundle", "name a bundle, settings or a questionnaire, one of them")
        return planning.Asked(
            self.bundle or "",
            self.filter,
            self.segment,
            policy,
            change=self.settings,
            questionnaire=self.questionnaire,
        )


class NewRollout(RolloutWanted, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rollout to be planned, under a name; it begins once it was submitted and approved."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class RolloutListing(Listing, frozen=True, forbid_unknown_fields=True):
    """Rollouts, the latest first."""

    over: Annotated[
        bool | None, msgspec.Meta(description="Those alone that are over, or are not.")
    ] = None


class ExecutionListing(Listing, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Devices of a rollout, in the order of its plan."""

    state: Annotated[
        tuple[State, ...], msgspec.Meta(description="In these states; none: any.")
    ] = ()
    kind: Annotated[str | None, msgspec.Meta(description="Failed so.")] = msgspec.field(
        name="class", default=None
    )
    wave: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=1_000)] | None,
        msgspec.Meta(description="Of this one."),
    ] = None
    site: Annotated[str | None, msgspec.Meta(description="At this one.")] = None
    filter: Annotated[str, msgspec.Meta(description="As of `/v1/devices`.")] = ""


class OfDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device."""

    device: Annotated[str, msgspec.Meta(description="Its id.")]


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Let it begin, now or at `starts_at`."""

    starts_at: Instant | None = None


class Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why; it is kept in the history."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]


class Reversal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take back those that failed, or all; `keep` takes nobody back and is refused."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    how: OnHalt = OnHalt.REVERT_ALL


class Joiners(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Devices by their ids that are to join what runs, whatever its filter says."""

    devices: Annotated[list[_Ref], msgspec.Meta(min_length=1, max_length=joining.MOST_NAMED)]


# -- reading ---------------------------------------------------------------------------------------


async def _rollouts(call: Call, asked: RolloutListing) -> Page[RolloutRow]:
    found = await reads.listed(
        call.connection,
        await call.organisation(),
        over=asked.over,
        before=after(asked) or None,
        limit=asked.limit + 1,
    )
    return page_of(asked, [row_of(each) for each in found], lambda row: row.rollout)


async def _preview(call: Call, asked: RolloutWanted) -> RolloutPlan:
    dry = await planning.dry_run(
        call.connection, await call.organisation(), asked.asked(), now=call.now
    )
    return msgspec.structs.replace(plan_of(drafting.told(dry)), commitment="")


async def _rollout(call: Call, asked: Nothing) -> RolloutDetail:
    organisation = await call.organisation()
    return detail_of(await reads.one(call.connection, organisation, call.path["ref"], now=call.now))


async def _plan(call: Call, asked: Nothing) -> PlannedRollout:
    return await _planned(call.connection, await call.organisation(), call.path["ref"])


async def _planned(
    connection: asyncpg.Connection, organisation: int, ref: str
) -> PlannedRollout:  # fmt: skip
    known = await reads.load(connection, organisation, ref)
    told = await drafting.told_of(connection, known)
    plan = None if told is None else plan_of(told)
    return PlannedRollout(ref, known.version, row_of(known.line), plan)


async def _executions(call: Call, asked: ExecutionListing) -> Page[ExecutionRow]:
    found = await members.members(
        call.connection,
        await call.organisation(),
        call.path["ref"],
        now=call.now,
        states=asked.state,
        kind=asked.kind,
        wave=asked.wave,
        site=asked.site,
        expression=asked.filter,
        after=0 if asked.cursor is None else int(read_cursor(asked)[1]),
        limit=asked.limit + 1,
    )
    shown = found[: asked.limit]
    more = len(found) > len(shown)
    return Page(
        [execution_row(each) for each in shown],
        write_cursor(asked, ("", shown[-1].number)) if more else None,
    )


async def _history(call: Call, asked: Listing) -> Page[HistoryRow]:
    found = await reads.history(
        call.connection,
        await call.organisation(),
        call.path["ref"],
        before=None if asked.cursor is None else int(read_cursor(asked)[1]),
        limit=asked.limit + 1,
    )
    shown = [history_row(each) for each in found[: asked.limit]]
    more = len(found) > len(shown)
    return Page(shown, write_cursor(asked, ("", shown[-1].number)) if more else None)


async def _why(call: Call, asked: OfDevice) -> Explanation:
    found = await members.explain(
        call.connection, await call.organisation(), call.path["ref"], asked.device, now=call.now
    )
    return explanation(found)


# -- acting ----------------------------------------------------------------------------------------


async def _draft(act: Act, body: NewRollout) -> PlannedRollout:
    made = await drafting.draft(act.connection, act.organisation, body.name, body.asked(), **act.by)
    return await _planned(act.connection, act.organisation, made.ref)


async def _unchanged(act: Act) -> None:
    """Lock the rollout, which is to stand as the caller has seen it. Raises ChangedError."""
    row = await act.connection.fetchval(
        "select id from rollouts where organisation_id = $1 and ref = $2 for no key update",
        *(act.organisation, act.ref),
    )
    known = await reads.load(act.connection, act.organisation, act.ref)
    if row is not None and act.seen not in (None, known.version):
        raise ChangedError(f"{act.ref} is {known.line.state.value} by now: read it again")


async def _shown(act: Act) -> RolloutDetail:
    return detail_of(await reads.one(act.connection, act.organisation, act.ref, now=act.now))


async def _submit(act: Act) -> RolloutDetail:
    await _unchanged(act)
    await acts.submit(act.connection, act.organisation, act.ref, **act.by)
    return await _shown(act)


async def _approve(act: Act, body: Approval) -> RolloutDetail:
    await _unchanged(act)
    known = await reads.load(act.connection, act.organisation, act.ref)
    if act.actor.startswith(KEY) and known.second_person:
        raise RefusedError("four_eyes", "a second person approves this, and a key is nobody")
    await acts.approve(
        act.connection, act.organisation, act.ref, starts_at=body.starts_at, **act.by
    )
    return await _shown(act)


async def _start(act: Act) -> RolloutDetail:
    await _unchanged(act)
    await acts.start(act.connection, act.organisation, act.ref, **act.by)
    return await _shown(act)


def _saying(
    act: Callable[..., Awaitable[None]],
) -> Callable[[Act, Said], Awaitable[RolloutDetail]]:
    """Return the handler of an act for which a reason is all there is to say."""

    async def do(called: Act, body: Said) -> RolloutDetail:
        await _unchanged(called)
        given = called.connection, called.organisation, called.ref
        await act(*given, reason=body.reason, **called.by)
        return await _shown(called)

    return do


async def _revert(act: Act, body: Reversal) -> RolloutDetail:
    await _unchanged(act)
    await acts.revert(
        act.connection, act.organisation, act.ref, body.how, reason=body.reason, **act.by
    )
    return await _shown(act)


async def _join(act: Act, body: Joiners) -> JoinedRecord:
    given = act.connection, act.organisation, act.ref
    return joined_of(act.ref, await joining.ask(*given, body.devices, **act.by))


_ONE = "/rollouts/{ref}"
ROUTES: tuple[Route, ...] = (
    Route(
        *("/rollouts", "Rollouts, the latest first", RolloutListing, Page[RolloutRow], RolloutRow),
        _rollouts,
    ),
    Route(
        *("/rollouts:preview", "Plan a rollout, keeping nothing", Nothing, RolloutPlan, None),
        _preview,
        method="POST",
        body=RolloutWanted,
    ),
    Route(_ONE, "One rollout, live", Nothing, RolloutDetail, None, _rollout),
    Route(f"{_ONE}/plan", "What was approved", Nothing, PlannedRollout, None, _plan),
    Route(
        *(f"{_ONE}/executions", "Its devices", ExecutionListing, Page[ExecutionRow], ExecutionRow),
        _executions,
    ),
    Route(f"{_ONE}/history", "What happened", Listing, Page[HistoryRow], None, _history),
    Route(f"{_ONE}/why", "Why a device waits", OfDevice, Explanation, None, _why),
)


def _done(
    word: str,
    summary: str,
    handler: Callable[..., Awaitable[RolloutDetail]],
    body: type[msgspec.Struct] | None = None,
) -> ActRoute:
    """Return the route of an act, which is asked for as what is to be true of the rollout."""
    path = f"{_ONE}/{word}"
    return ActRoute("PUT", path, summary, RolloutDetail, handler, body, compares=True)


ACTS: tuple[ActRoute, ...] = written(
    WRITE,
    ActRoute("POST", "/rollouts", "Plan a rollout", PlannedRollout, _draft, NewRollout),
    _done("submitted", "Ask for approval", _submit),
    _done("approved", "Approve a rollout", _approve, Approval),
    _done("started", "Begin now what is scheduled", _start),
    _done("paused", "Offer nothing more for now", _saying(acts.pause), Said),
    _done("resumed", "Acknowledge what failed, and go on", _saying(acts.resume), Said),
    _done("cancelled", "End a rollout", _saying(acts.cancel), Said),
    _done("reverted", "Take devices back to what they ran", _revert, Reversal),
    ActRoute("PUT", f"{_ONE}/joiners", "Let devices join what runs", JoinedRecord, _join, Joiners),
)
