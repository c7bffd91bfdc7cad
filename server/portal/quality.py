"""The portal's pages on what is missing, late or estimated: every site's month, and one closely."""

from contextlib import suppress
from datetime import date, timedelta

from aiohttp import web

from server.portal.frame import Look, Portal, Section
from server.portal.numbers import places
from server.portal.quality_numbers import SiteQuality, month_of

MONTHS = 13
_FIRST = date(2000, 1, 1)


def add(portal: Portal) -> None:
    """Add the page, and its entry in the menu."""
    portal.sections.append(Section("/quality", "quality"))
    portal.site.app.router.add_get("/quality", Pages(portal).quality)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal

    async def quality(self, request: web.Request) -> web.Response:
        """All sites' month in strips, or with `site` one site's in full."""
        now = self._portal.now()
        month = _month(request, today=now.date())
        wanted = request.query.get("site", "")
        async with self._portal.looking(request, "portal quality") as look:
            refs = sorted(ref for ref, _, _ in await places(look.db) if ref in look.seen)
            if wanted and wanted not in refs:
                raise web.HTTPNotFound
            sites = await month_of(look.db, refs, month=month, now=now) if not wanted else []
            one: SiteQuality | None = None
            if wanted:
                [one] = await month_of(look.db, [wanted], month=month, now=now, closely=True)
            names = await _names(look)
        return self._portal.page(
            request,
            "quality.html",
            look,
            sites=sites,
            one=one,
            names=names,
            month=month,
            months=_months(now.date(), month),
            curl=self._portal.command(request, look, _command(month, wanted)),
        )


async def _names(look: Look) -> list[tuple[str, str]]:
    rows = await look.db.fetch("select ref, name from sites order by name, ref")
    return [(row["ref"], row["name"]) for row in rows if row["ref"] in look.seen]


def _month(request: web.Request, *, today: date) -> date:
    """Return the first day of the month that is asked for, or of this one (also for nonsense)."""
    with suppress(ValueError):
        asked = date.fromisoformat(f"{request.query.get('month', '')[:7]}-01")
        if _FIRST <= asked <= today:
            return asked
    return today.replace(day=1)


def _months(today: date, shown: date) -> list[date]:
    """Return the months to choose from, the latest first."""
    found = [today.replace(day=1)]
    while len(found) < MONTHS:
        found.append((found[-1] - timedelta(days=1)).replace(day=1))
    return found if shown in found else [*found, shown]


def _command(month: date, site: str) -> str:
    until = (month + timedelta(days=32)).replace(day=1)
    query = f"estimates?bucket=day&from={month}&to={until}"
    return f"{query}&site={site}" if site else query
