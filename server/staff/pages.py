"""The page at `/w/<token>`, for whoever stands before a device in a shop: no login, no script.

The token names one spot (`server.web.spot_codes`); of it a verdict and steps are shown (`advice`),
no count, no number of the organisation, no other device. No cookie is set, the address goes to
nobody else, and an address that asks too often, or guesses, waits.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import asyncpg
from aiohttp import web

from server.db.engine import DATABASE_SILENT, overseeing
from server.health.judgement import Condition
from server.health.presence import State
from server.people.sealing import Seal
from server.people.throttle import Throttle, TooManyTriesError, network
from server.staff.advice import Advice, Verdict, advise
from server.web import catalogue
from server.web.shell import Shell
from server.web.site import Site
from server.web.spot_codes import spot_of

HERE = Path(__file__).parent
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "Vary": "Accept-Language",
    "X-Robots-Tag": "noindex, nofollow",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
}


def add_staff(
    site: Site,
    *,
    desk: asyncpg.Pool,
    seal: Seal,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    clock: Callable[[], float] = monotonic,
) -> None:
    """Add the page; `desk` is the pool of the role of pages."""
    site.static.add(HERE / "static")
    site.app.router.add_get("/w/{token}", Pages(site, desk, seal, now, clock).show)


class Pages:
    """The one handler."""

    def __init__(
        self,
        site: Site,
        desk: asyncpg.Pool,
        seal: Seal,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self._desk, self._seal, self._now = desk, seal, now
        self._shell = Shell(
            templates=HERE / "templates", catalogues=[HERE / "catalogues"], static=site.static
        )
        self._wrong = Throttle(free=10, first_s=2, most_s=60, forget_s=600, monotonic=clock)
        self._looks = Throttle(free=60, first_s=1, most_s=30, forget_s=60, monotonic=clock)

    async def show(self, request: web.Request) -> web.Response:
        """Say whether the device works, and what to do."""
        caller = network(request.remote)
        spot = spot_of(self._seal, request.match_info["token"])
        try:
            self._looks.begin(caller)
            self._wrong.demand(caller)
            if spot is None:
                self._wrong.begin(caller)
        except TooManyTriesError:
            return self._page(request, None, status=429, refused="often")
        if spot is None:
            return self._page(request, None, status=404, refused="unknown")
        try:
            async with overseeing(self._desk, "staff page") as connection:
                row = await connection.fetchrow(_SPOT, spot, self._now())
        except DATABASE_SILENT:
            return self._page(request, None, status=503, refused="away")
        if row is None:
            return self._page(request, None, status=404, refused="unknown")
        return self._page(request, row, advice=_advice(row))

    def _page(
        self,
        request: web.Request,
        row: asyncpg.Record | None,
        *,
        status: int = 200,
        advice: Advice | None = None,
        refused: str = "",
    ) -> web.Response:
        wished = request.query.get("l", "")
        language = catalogue.choose(request.headers.get("Accept-Language", ""), wished=wished)
        words = self._shell.catalogues[language]
        html = self._shell.fragment(
            "staff.html", words, row=row, advice=advice, refused=refused, good=Verdict.WORKING
        )
        return web.Response(text=html, status=status, content_type="text/html", headers=HEADERS)


def _advice(row: asyncpg.Record) -> Advice:
    return advise(
        None if row["presence"] is None else State(row["presence"]),
        [Condition(code) for code in row["conditions"] if code in list(Condition)],
        admitted=bool(row["admitted"]),
        known=not row["unknown"],
        seen_to=row["seen_to"],
    )


_SPOT = """
    select p.name as spot, s.name as site, p.kind, d.admitted, pr.state as presence,
        exists (select from platform_unknown where until is null) as unknown,
        exists (select from health_windows w where w.organisation_id = p.organisation_id
            and w.starts_at <= $2 and w.ends_at > $2 and w.ended_at is null
            and (w.device_id = d.id or w.site_id = s.id)) as seen_to,
        array(select distinct e.condition from episodes e where e.resolved_at is null
            and (e.spot_id = p.id or e.device_id = d.id
                 or (e.subject = 'site' and e.site_id = s.id))) as conditions
    from spots p join sites s on s.id = p.site_id
    left join assignments a on a.spot_id = p.id and a.valid @> $2::timestamptz
    left join devices d on d.id = a.device_id left join presences pr on pr.device_id = d.id
    where p.ref = $1 and (s.closes_on is null or s.closes_on >= ($2::timestamptz)::date)
"""
