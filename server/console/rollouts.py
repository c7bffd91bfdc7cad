"""Rollouts in the console: which there are, one of them live, and what people do with it.

Who reads the whole organisation's fleet looks; who may roll out acts. What takes something back is
asked for with a reason and a tick beside it; what only waits for approval says who may give it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from aiohttp import web

from server.console import policies
from server.console import reads as names_of
from server.console.live import Live
from server.console.office import (
    Here,
    Office,
    Problem,
    asked,
    form_of,
    here,
    moment_of,
    number_of,
    part,
    tried,
)
from server.console.rollout_new import grouped, rollout_names
from server.firmware import acts, drafting, members, reads
from server.firmware.life import FAILURES
from server.firmware.life import State as Stage
from server.firmware.policy import OnHalt
from server.firmware.reads import Line, One
from server.firmware.rollout import Kind
from server.firmware.standing import Act
from server.firmware.waves import PREPARING, State, WaveKind
from server.fleet.checks import FieldError
from server.people.roles import Permission

PAGE = 50
SHOWN = 100
"""Transitions, and devices, that a page shows."""
HOWS = (OnHalt.REVERT_FAILED, OnHalt.REVERT_ALL)
FUNNEL = (
    *(Stage.PLANNED, Stage.OFFERED, Stage.ACCEPTED, Stage.DOWNLOADING, Stage.READY),
    *(Stage.WAITING_WINDOW, Stage.WAITING_IDLE, Stage.INSTALLING, Stage.REBOOTING, Stage.TRIAL),
    Stage.CONFIRMED,
)
_KINDS = (WaveKind.WAVE, WaveKind.TAIL, WaveKind.STRAGGLERS)
SURE = frozenset({Act.CANCEL, Act.REVERT})
"""What is asked for with a tick."""


def add_rollouts(app: web.Application, office: Office, base: str, *, live: Live) -> None:
    """Add the routes below an organisation's address."""
    pages = Pages(office, live)
    one = base + "/rollouts/{rollout}"
    app.router.add_get(f"{base}/rollouts", pages.listing)
    app.router.add_get(f"{base}/rollouts/events", pages.events)
    app.router.add_get(f"{base}/rollouts/releases", pages.releases)
    app.router.add_get(one, pages.show)
    app.router.add_get(f"{one}/events", pages.events_of)
    app.router.add_get(f"{one}/devices", pages.devices)
    app.router.add_post(one, pages.act)


@dataclass(frozen=True, slots=True)
class Looked:
    """What one rollout's page shows; `told` of its plan, before it begins."""

    position: str
    one: One
    history: list[reads.Happened]
    told: drafting.Told | None
    rollouts: dict[str, str]
    names: dict[str, str]


class Pages:
    """The handlers."""

    def __init__(self, office: Office, live: Live) -> None:
        self._office = office
        self._live = live

    async def releases(self, request: web.Request) -> web.Response:
        """What is approved, for which hardware, and what has no way back."""
        at = await self._here(request)
        async with at.acting("console releases") as connection:
            rows = await reads.releases(connection)
            bundles = await reads.bundles(connection)
        return self._office.shell.page(
            request,
            "releases.html",
            at=at,
            rows=rows,
            bundles=bundles,
            may_act=at.may(Permission.ROLL_OUT),
        )

    async def listing(self, request: web.Request) -> web.Response:
        """Rollouts that are not over, or those that are; live, the part alone is asked for."""
        at = await self._here(request)
        over, before = request.query.get("over") == "1", asked(request, "before") or None
        async with at.acting("console rollouts") as connection:
            rows = await reads.listed(connection, at.id, over=over, before=before, limit=PAGE + 1)
            position = await _position(connection, at.id)
            names = await names_of.names(connection, [each.author for each in rows])
        return self._office.page(
            request,
            "rollouts.html",
            alone="rollout_rows.html",
            at=at,
            rows=rows[:PAGE],
            older=rows[PAGE - 1].ref if len(rows) > PAGE else None,
            over=over,
            before=before,
            names=names,
            position=position,
            events=f"{at.path}/rollouts/events",
            may_act=at.may(Permission.ROLL_OUT),
        )

    async def show(self, request: web.Request) -> web.Response:
        """One rollout: its waves, its devices, its guards, and what may be done with it."""
        return await self._page(request, await self._here(request))

    async def devices(self, request: web.Request) -> web.Response:
        """The devices of a rollout, those in some state or all, and who is left out and why."""
        at, ref = await self._here(request), part(request, "rollout")
        state, after = asked(request, "state"), asked(request, "after")
        if state and state not in list(Stage):
            raise web.HTTPNotFound

        async def act() -> tuple[Line, list[members.Member]]:
            async with at.acting("console rollout's devices") as connection:
                line = await reads.find(connection, at.id, ref)
                return line, await members.members(
                    connection,
                    at.id,
                    ref,
                    now=self._office.now(),
                    states=[Stage(state)] if state else (),
                    after=number_of(after) or 0,
                    limit=SHOWN + 1,
                )

        found = await tried(act)
        if isinstance(found, Problem):
            raise web.HTTPNotFound
        line, rows = found
        return self._office.shell.page(
            request,
            "rollout_devices.html",
            at=at,
            line=line,
            rows=rows[:SHOWN],
            older=rows[SHOWN - 1].number if len(rows) > SHOWN else None,
            state=state,
            states=list(Stage),
        )

    async def act(self, request: web.Request) -> web.Response:
        """Submit, approve, start, pause, resume, cancel or revert it."""
        at = await here(self._office, request, Permission.ROLL_OUT)
        at.demand(Permission.ROLL_OUT)
        form, ref = await form_of(request), part(request, "rollout")
        if form.get("do") not in list(Act):
            raise web.HTTPNotFound
        do = Act(form["do"])

        async def act() -> str:
            if do in SURE and not form.get("sure"):
                raise FieldError("sure", "tick that this is meant")
            async with at.acting(f"console rollout {do}") as connection:
                return await self._do(connection, at, ref, do, form)

        done = await tried(act)
        if isinstance(done, Problem):
            return await self._page(request, at, problem=done, form=form)
        raise web.HTTPSeeOther(f"{at.path}/rollouts/{done}")

    async def _do(
        self, connection: asyncpg.Connection, at: Here, ref: str, do: Act, form: dict[str, str]
    ) -> str:
        """Do it, and return the rollout to look at then."""
        actor, now, reason = at.visitor.actor, self._office.now(), form.get("reason", "")
        match do:
            case Act.SUBMIT:
                await acts.submit(connection, at.id, ref, actor=actor, now=now)
            case Act.APPROVE:
                begins = moment_of(form.get("starts_at", ""))
                if form.get("starts_at") and begins is None:
                    raise FieldError("starts_at", "expected a day and a time")
                await acts.approve(
                    connection, at.id, ref, starts_at=begins, actor=actor, now=now
                )  # fmt: skip
            case Act.START:
                await acts.start(connection, at.id, ref, actor=actor, now=now)
            case Act.PAUSE:
                await acts.pause(connection, at.id, ref, reason=reason, actor=actor, now=now)
            case Act.RESUME:
                await acts.resume(connection, at.id, ref, reason=reason, actor=actor, now=now)
            case Act.CANCEL:
                await acts.cancel(connection, at.id, ref, reason=reason, actor=actor, now=now)
            case Act.REVERT:
                how = form.get("how", "")
                if how not in HOWS:
                    raise FieldError("how", f"expected {', '.join(HOWS)}")
                return await acts.revert(
                    connection, at.id, ref, OnHalt(how), reason=reason, actor=actor, now=now
                )
        return ref

    async def _page(
        self,
        request: web.Request,
        at: Here,
        *,
        problem: Problem | None = None,
        form: dict[str, str] | None = None,
    ) -> web.Response:
        ref, now = part(request, "rollout"), self._office.now()

        async def look() -> Looked:
            async with at.acting("console rollout") as connection:
                return await _look(connection, at, ref, now=now)

        looked = await tried(look)
        if isinstance(looked, Problem):
            raise web.HTTPNotFound
        found, told = looked.one, looked.told
        return self._office.page(
            request,
            "rollout.html",
            alone="rollout_live.html",
            at=at,
            one=found,
            waves=sorted(found.waves, key=lambda each: _KINDS.index(each.wave.kind)),
            line=found.line,
            history=looked.history,
            halt=_halt(found, looked.history),
            told=told,
            left_out=grouped(told),
            rollouts=looked.rollouts,
            names=looked.names,
            second_person=found.second_person,
            funnel=[(stage, found.funnel.get(stage, 0)) for stage in FUNNEL],
            ends=[(s, n) for s, n in found.funnel.items() if s not in FUNNEL],
            unwell=_unwell(found),
            hows=HOWS,
            policies=policies,
            policy=policies.form_of(found.policy),
            may_act=at.may(Permission.ROLL_OUT),
            own=at.visitor.actor == found.line.author,
            waiting=found.line.state is State.AWAITING_APPROVAL,
            position=looked.position,
            events=f"{at.path}/rollouts/{ref}/events",
            now=now,
            problem=problem,
            form=form or {},
        )

    async def _here(self, request: web.Request) -> Here:
        at = await here(self._office, request, Permission.READ_FLEET)
        at.demand(Permission.READ_FLEET)
        return at

    # -- live ------------------------------------------------------------------------------------

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Say `changed` whenever the list would show something else."""
        at = await self._here(request)
        return await self._live.serve(request, at, lambda db: _position(db, at.id))

    async def events_of(self, request: web.Request) -> web.StreamResponse:
        """Say `changed` whenever one rollout's page would show something else."""
        at, ref = await self._here(request), part(request, "rollout")

        async def known() -> None:
            async with at.acting("console rollout") as connection:
                await reads.find(connection, at.id, ref)

        if isinstance(await tried(known), Problem):
            raise web.HTTPNotFound
        return await self._live.serve(request, at, lambda db: reads.position(db, at.id, ref))


async def _look(
    connection: asyncpg.Connection, at: Here, ref: str, *, now: datetime
) -> Looked:  # fmt: skip
    """Return what a page shows; its position first, so that nothing is missed."""
    position = await reads.position(connection, at.id, ref)
    found = await reads.one(connection, at.id, ref, now=now)
    history = await reads.history(connection, at.id, ref, limit=SHOWN)
    told = None
    if found.line.state in PREPARING:
        told = await drafting.told_of(connection, await reads.load(connection, at.id, ref))
    line = found.line
    people = [line.author, line.approver, *(each.actor for each in history)]
    names = await names_of.names(connection, people)
    rollouts = await rollout_names(connection, at.id, told)
    return Looked(position, found, history, told, rollouts, names)


async def _position(connection: asyncpg.Connection, organisation: int) -> str:
    rows = await reads.listed(connection, organisation, limit=PAGE)
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _halt(found: One, history: Sequence[reads.Happened]) -> dict[str, object] | None:
    """Return what has halted a rollout: guard, number, limit and wave; None: nothing has."""
    if found.line.state is not State.HALTED:
        return None
    return next((dict(row.detail) for row in history if row.event == Kind.HALTED), None)


def _unwell(found: One) -> int:
    """Return how many devices a rollout has hurt, or may have."""
    counted: Iterable[Stage] = (*FAILURES, Stage.LOST)
    return sum(found.funnel.get(stage, 0) for stage in counted)
