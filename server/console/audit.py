"""The audit: who did what, newest first, and whether the chain still holds."""

import asyncio
import json
from dataclasses import replace

import asyncpg
from aiohttp import web

from server.audit.chain import Break, Entry, breaks
from server.audit.log import PLATFORM
from server.console.office import CONSOLE, Handlers, Office, asked, here, number_of
from server.db.engine import overseeing
from server.people.roles import EVERYWHERE, Permission
from server.web.sessions import demand

PAGE = 100


def add_audit(app: web.Application, office: Office, base: str) -> None:
    """Add the page of an organisation's chain, and of the platform's."""
    pages = Pages(office)
    app.router.add_get(f"{CONSOLE}/audit", pages.show)
    app.router.add_get(f"{base}/audit", pages.show)


class Pages(Handlers):
    """The handlers."""

    async def show(self, request: web.Request) -> web.Response:
        """A page of the chain; with `verify`, all of it is proved."""
        at = None
        if "organisation" in request.match_info:
            at = await here(self._office, request, Permission.READ_AUDIT)
            at.demand(Permission.READ_AUDIT)
        else:
            demand(request, Permission.READ_AUDIT, EVERYWHERE)
        chain, words = at.id if at else PLATFORM, asked(request, "q")
        async with overseeing(self._office.desk, "console audit") as connection:
            rows = await connection.fetch(
                "select a.number, a.at, a.actor, a.act, a.subject, a.detail, u.name from audit a "
                "left join users u on a.actor = 'user ' || u.ref where a.chain = $1 "
                "and ($2::int is null or a.number < $2) and ($3 = '' or position(lower($3) in "
                "lower(concat_ws(' ', a.actor, u.name, a.act, a.subject))) > 0) "
                "order by a.number desc limit $4",
                *(chain, number_of(request.query.get("before", "")), words, PAGE + 1),
            )
            verified = None
            if "verify" in request.query:
                verified = await _verify(connection, chain)
        return self._office.page(
            request,
            "audit.html",
            alone="audit_rows.html",
            at=at,
            base=f"{at.path if at else CONSOLE}/audit",
            rows=[(row, json.loads(row["detail"])) for row in rows[:PAGE]],
            before=rows[PAGE - 1]["number"] if len(rows) > PAGE else None,
            wanted=words,
            verified=verified,
        )


async def _verify(connection: asyncpg.Connection, chain: int) -> tuple[int, list[Break]]:
    """Return how many rows a chain has, and where it does not hold."""
    rows = await connection.fetch(
        "select chain, number, at, actor, act, subject, detail, previous, hash from audit "
        "where chain = $1 order by number",
        chain,
    )

    def prove() -> list[Break]:
        entries = (Entry(*row.values()) for row in rows)
        return breaks(replace(each, detail=json.loads(str(each.detail))) for each in entries)

    return len(rows), await asyncio.to_thread(prove)
