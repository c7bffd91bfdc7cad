"""The portal's page on the Monday digest: ask for it, see last week's, end it; and the way out.

Who has a message may end it without signing in, by the address in it: a mail program by one POST
(RFC 8058), a person by a button, so that no program that merely looks at links ends anything.
"""

from aiohttp import web

from server.db.engine import overseeing
from server.people.sealing import Seal
from server.portal.digest_mail import UNSUBSCRIBE, parts_of, read_token, title_of
from server.portal.digest_numbers import digest_of, last_due, week_of, zone_of
from server.portal.frame import Look, Portal, Section


def add(portal: Portal) -> None:
    """Add the pages, and their entry in the menu."""
    portal.sections.append(Section("/digest", "digest"))
    pages = Pages(portal)
    routes = portal.site.app.router
    routes.add_get("/digest", pages.show)
    routes.add_post("/digest", pages.choose)
    routes.add_get(UNSUBSCRIBE + "{token}", pages.ask)
    routes.add_post(UNSUBSCRIBE + "{token}", pages.end)


class Pages:
    """The handlers."""

    def __init__(self, portal: Portal) -> None:
        self._portal = portal
        self._seal = Seal(portal.settings.session_secret)

    async def show(self, request: web.Request) -> web.Response:
        """Show last week's digest, and whether it is sent to who looks."""
        now, t = self._portal.now(), self._portal.shell.words(request)
        async with self._portal.looking(request, "portal digest") as look:
            rows = await look.db.fetch("select ref, time_zone from sites order by ref")
            seen = [row for row in rows if row["ref"] in look.seen]
            zone = zone_of([row["time_zone"] for row in seen])
            monday = week_of(last_due(now, zone), zone)
            digest = None
            if seen:
                refs = [row["ref"] for row in seen]
                digest = await digest_of(look.db, refs, monday=monday, now=now)
        async with overseeing(self._portal.desk, "read a digest's subscription") as db:
            asked = await db.fetchval(_ASKED, look.visitor.user_id, look.organisation)
            email = await db.fetchval(_EMAIL, look.visitor.user_id)
            last = await db.fetchrow(_LAST, look.visitor.user_id, look.organisation)
        return self._portal.page(
            request,
            "digest.html",
            look,
            asked=asked,
            email=email,
            last=last,
            title=title_of(digest, t) if digest else "",
            parts=parts_of(digest, t) if digest else [],
            mails=bool(self._portal.settings.smtp_url.reveal()),
            zone=zone,
        )

    async def choose(self, request: web.Request) -> web.Response:
        """Ask for digests, or end them."""
        form = await request.post()
        async with self._portal.looking(request, "portal digest") as look:
            mine = look
        if form.get("wanted") == "yes":
            await self._begin(mine)
        else:
            await self._end(mine.visitor.user_id, mine.organisation)
        raise web.HTTPSeeOther("/digest")

    async def ask(self, request: web.Request) -> web.Response:
        """Ask whether to end them: looking at the address ends nothing."""
        if read_token(self._seal, request.match_info["token"]) is None:
            raise web.HTTPNotFound
        return self._portal.shell.page(request, "unsubscribe.html", ended=False)

    async def end(self, request: web.Request) -> web.Response:
        """End them; what waits to be sent is not sent. Once or twice, the answer is one."""
        found = read_token(self._seal, request.match_info["token"])
        if found is None:
            raise web.HTTPNotFound
        await self._end(*found)
        return self._portal.shell.page(request, "unsubscribe.html", ended=True)

    async def _begin(self, look: Look) -> None:
        async with overseeing(self._portal.desk, "ask for digests") as db:
            await db.execute(_BEGIN, look.visitor.user_id, look.organisation, self._portal.now())

    async def _end(self, user: int, organisation: int) -> None:
        async with overseeing(self._portal.desk, "end digests") as db:
            await db.execute(_END, user, organisation)
            await db.execute(_END_WAITING, user, organisation)


_ASKED = """
    select exists (select from digest_subscriptions where user_id = $1 and organisation_id = $2)
"""
_EMAIL = "select email from users where id = $1"
_LAST = """
    select week, sent_at, given_up_at, trouble from digests
    where user_id = $1 and organisation_id = $2 order by week desc limit 1
"""
_BEGIN = """
    insert into digest_subscriptions (user_id, organisation_id, created_at) values ($1, $2, $3)
    on conflict do nothing
"""
_END = "delete from digest_subscriptions where user_id = $1 and organisation_id = $2"
_END_WAITING = """
    delete from digests where user_id = $1 and organisation_id = $2
      and sent_at is null and given_up_at is null
"""
