"""The calendar of freezes: when an organisation wants nothing changed, and at which of its shops.

Days are shown as UTC has them. Who may roll out adds a freeze; its author alone ends it early.
"""

import calendar
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from aiohttp import web

from server.console import reads
from server.console.office import (
    Handlers,
    Here,
    Office,
    Problem,
    form_of,
    here,
    moment_of,
    part,
    tried,
)
from server.firmware import freezes
from server.firmware.freezes import Freeze, Frozen
from server.fleet.checks import FieldError
from server.people.roles import Permission

MONTHS = 3
MOST_MONTHS = 14
FIELDS = ("name", "reason", "starts_at", "ends_at", "sites")


@dataclass(frozen=True, slots=True)
class Day:
    """A day of the calendar; `day` None: of the month before or after."""

    day: date | None
    whole: bool = False
    some: bool = False
    today: bool = False


def add_freezes(app: web.Application, office: Office, base: str) -> None:
    """Add the routes below an organisation's address."""
    pages = Pages(office)
    app.router.add_get(f"{base}/rollouts/freezes", pages.show)
    app.router.add_post(f"{base}/rollouts/freezes", pages.add)
    app.router.add_post(base + "/rollouts/freezes/{freeze}/end", pages.end)


class Pages(Handlers):
    """The handlers."""

    async def show(self, request: web.Request) -> web.Response:
        """The freezes that are on or to come, and their days."""
        at = await here(self._office, request, Permission.READ_FLEET)
        return await self._page(request, at)

    async def add(self, request: web.Request) -> web.Response:
        at = await here(self._office, request, Permission.ROLL_OUT)
        at.demand(Permission.ROLL_OUT)
        form = await form_of(request)

        async def act() -> None:
            wanted = freezes.Wanted(
                form.get("name", ""),
                form.get("reason", ""),
                _moment(form, "ends_at") or _missing("ends_at"),
                _moment(form, "starts_at"),
                form.get("sites", ""),
            )
            async with at.acting("console add freeze") as connection:
                await freezes.add(
                    connection, at.id, wanted, actor=at.visitor.actor, now=self._office.now()
                )

        return await self._done(request, at, await tried(act), form)

    async def end(self, request: web.Request) -> web.Response:
        at = await here(self._office, request, Permission.ROLL_OUT)
        at.demand(Permission.ROLL_OUT)
        await form_of(request)
        ref = part(request, "freeze")

        async def act() -> None:
            async with at.acting("console end freeze") as connection:
                await freezes.end(
                    connection, at.id, ref, actor=at.visitor.actor, now=self._office.now()
                )

        return await self._done(request, at, await tried(act), {})

    async def _done(
        self, request: web.Request, at: Here, done: Problem | None, form: dict[str, str]
    ) -> web.Response:
        if done is None:
            raise web.HTTPSeeOther(f"{at.path}/rollouts/freezes")
        return await self._page(request, at, problem=done, form=form)

    async def _page(
        self,
        request: web.Request,
        at: Here,
        *,
        problem: Problem | None = None,
        form: dict[str, str] | None = None,
    ) -> web.Response:
        at.demand(Permission.READ_FLEET)
        past, now = request.query.get("past") == "1", self._office.now()
        async with at.acting("console freezes") as connection:
            rows = await freezes.listed(connection, at.id, now=now, past=past, limit=200)
            frozen = await freezes.load(connection, at.id, now=now)
            people = [who for each in rows for who in (each.author, each.ended_by)]
            names = await reads.names(connection, people)
        reach = {each.ref: each.sites for each in frozen.spans}
        return self._office.page(
            request,
            "freezes.html",
            at=at,
            rows=[(each, _standing(each, now), reach.get(each.ref)) for each in _ordered(rows)],
            months=months(frozen, now.astimezone(UTC).date()),
            past=past,
            form={name: (form or {}).get(name, "") for name in FIELDS},
            problem=problem,
            may_act=at.may(Permission.ROLL_OUT),
            own=at.visitor.actor,
            names=names,
        )


def months(frozen: Frozen, today: date) -> list[tuple[date, list[list[Day]]]]:
    """Return the months to show, each with its weeks: at least `MONTHS`, more where freezes are."""
    ends = [datetime.fromtimestamp(each.end_s - 1, UTC).date() for each in frozen.spans]
    last = max(ends, default=today)
    wanted = (last.year - today.year) * 12 + last.month - today.month + 1
    found = []
    month = today.replace(day=1)
    for _ in range(max(MONTHS, min(wanted, MOST_MONTHS))):
        weeks = calendar.Calendar().monthdatescalendar(month.year, month.month)
        found.append((month, [[_day(d, month, frozen, today) for d in week] for week in weeks]))
        month = (month + timedelta(days=31)).replace(day=1)
    return found


def _day(day: date, month: date, frozen: Frozen, today: date) -> Day:
    if day.month != month.month:
        return Day(None)
    low = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    on = [each for each in frozen.spans if each.start_s < low + 86_400 and each.end_s > low]
    return Day(day, any(each.sites is None for each in on), bool(on), day == today)


def _ordered(rows: Sequence[Freeze]) -> Iterable[Freeze]:
    return sorted(rows, key=lambda each: (each.starts_at, each.ref))


def _standing(each: Freeze, now: datetime) -> str:
    if each.ended_at is not None:
        return "ended"
    if each.ends_at <= now:
        return "over"
    return "on" if each.starts_at <= now else "coming"


def _moment(form: dict[str, str], name: str) -> datetime | None:
    text = form.get(name, "")
    found = moment_of(text)
    if text and found is None:
        raise FieldError(name, "expected a day and a time")
    return found


def _missing(name: str) -> datetime:
    raise FieldError(name, "say when it ends")
