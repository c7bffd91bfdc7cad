"""The register as a file: give it out, and take one in after a look at what it would change."""

from aiohttp import web

from server.console.office import Handlers, Here, Office, Problem, here, problem_of
from server.errors import VestibuleError
from server.fleet import exchange
from server.fleet.exchange import Outcome
from server.people.roles import Permission

MOST_ROWS = 2_000
CHANGE = Permission.CHANGE_REGISTER


def add_files(app: web.Application, office: Office, base: str) -> None:
    """Add the routes below an organisation's address."""
    pages = Pages(office)
    app.router.add_get(f"{base}/export", pages.give_out)
    app.router.add_get(f"{base}/import", pages.show)
    app.router.add_post(f"{base}/import", pages.take_in)


class Pages(Handlers):
    """The handlers."""

    async def give_out(self, request: web.Request) -> web.Response:
        at = await here(self._office, request, Permission.READ_FLEET)
        at.demand(Permission.READ_FLEET)
        async with at.acting("export register") as connection:
            data = await exchange.give_out(connection, at.id, now=self._office.now())
        return web.Response(
            body=data,
            content_type="text/csv",
            charset="utf-8",
            headers={
                "Content-Disposition": f'attachment; filename="{at.ref}-sites.csv"',
                "Cache-Control": "no-store",
            },
        )

    async def show(self, request: web.Request) -> web.Response:
        return self._page(request, await self._here(request))

    async def take_in(self, request: web.Request) -> web.Response:
        """Show what a file would change; asked again with `apply`, do it."""
        at = await self._here(request)
        try:
            form = await request.post()
        except web.HTTPRequestEntityTooLarge:
            return self._page(request, at, problem=Problem("too_large"))
        upload, text = form.get("file"), form.get("text")
        if isinstance(upload, web.FileField):
            data = upload.file.read()
        else:
            data = text.encode() if isinstance(text, str) else b""
        apply = form.get("apply") == "yes"
        try:
            async with at.acting("import register" if apply else "look at import") as connection:
                found = await exchange.take_in(
                    connection,
                    at.id,
                    data,
                    actor=at.visitor.actor,
                    now=self._office.now(),
                    dry_run=not apply,
                    most_rows=MOST_ROWS,
                )
        except VestibuleError as error:
            return self._page(request, at, problem=problem_of(error))
        return self._page(
            request,
            at,
            found=found,
            text=data.decode("utf-8-sig"),
            applied=apply and not found.errors,
        )

    async def _here(self, request: web.Request) -> Here:
        at = await here(self._office, request, CHANGE)
        at.demand(CHANGE)
        return at

    def _page(
        self,
        request: web.Request,
        at: Here,
        *,
        found: Outcome | None = None,
        text: str = "",
        applied: bool = False,
        problem: Problem | None = None,
    ) -> web.Response:
        bad = problem is not None or (found is not None and bool(found.errors))
        return self._office.shell.page(
            request,
            "import.html",
            status=422 if bad else 200,
            at=at,
            found=found,
            text=text,
            applied=applied,
            most_rows=MOST_ROWS,
            problem=problem,
        )
