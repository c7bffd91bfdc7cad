"""Render pages in the shared layout, under a policy that lets nothing inline run.

Decided here: scripts and styles are files of ours or pinned ones, so the content policy needs no
nonce; pages cannot be framed, and say nothing of themselves to other sites.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from aiohttp import web
from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket
from markupsafe import Markup

from server.people.roles import Permission, scopes
from server.web import catalogue
from server.web.catalogue import Catalogue
from server.web.sessions import CSRF_FIELD, form_token, visitor
from server.web.static_files import StaticFiles

TEMPLATES = Path(__file__).parent / "templates"
LANGUAGE_COOKIE = "language"
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, a form of ours says `Origin: null`
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class _Compiled(BytecodeCache):
    """Templates that were compiled in this process: the shared ones are of every part."""

    def __init__(self) -> None:
        self._codes: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        if bucket.key in self._codes:
            bucket.bytecode_from_string(self._codes[bucket.key])  # or not, if its source changed

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._codes[bucket.key] = bucket.bytecode_to_string()


_COMPILED = _Compiled()


class Shell:
    """Templates and catalogues of one part of the site, on top of the shared ones.

    `language`: the only one of pages that speak no other; `languages`: those of pages that do not
    speak all.
    """

    def __init__(
        self,
        *,
        templates: Path,
        catalogues: Sequence[Path],
        static: StaticFiles,
        language: str = "",
        languages: Sequence[str] = tuple(catalogue.LANGUAGES),
    ) -> None:
        self._environment = Environment(
            loader=FileSystemLoader([templates, TEMPLATES]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            bytecode_cache=_COMPILED,
        )
        self._environment.globals["static"] = static.url
        self._environment.globals["visitor"] = None
        self._environment.globals["console"] = False
        offered = {code: name for code, name in catalogue.LANGUAGES.items() if code in languages}
        self._environment.globals["languages"] = {} if language else offered
        self._language = language
        self.catalogues = catalogue.load([catalogue.SHARED, *catalogues], tuple(offered))

    def words(self, request: web.Request) -> Catalogue:
        """Return the catalogue of the reader's language, or of the only one there is."""
        if self._language:
            return self.catalogues[self._language]
        wished = request.cookies.get(LANGUAGE_COOKIE, "")
        accepted = request.headers.get("Accept-Language", "")
        chosen = catalogue.choose(accepted, wished=wished)
        return self.catalogues.get(chosen, self.catalogues[catalogue.DEFAULT_LANGUAGE])

    def fragment(self, template: str, words: Catalogue, **values: object) -> Markup:
        """Return a template's text."""
        text = self._environment.get_template(template).render(t=words, **values)
        return Markup(text)  # noqa: S704 - autoescaped by the environment

    def page(
        self, request: web.Request, template: str, *, status: int = 200, **values: object
    ) -> web.Response:
        """Return a whole page, or the fragment of it that a live refresh asks for."""
        words = self.words(request)
        html = self.fragment(
            template,
            words,
            path=request.path_qs,
            visitor=visitor(request),
            console=_runs_fleet(request),
            csrf=lambda: _form_field(request),
            csrf_token=lambda: form_token(request),
            **values,
        )
        return web.Response(
            text=html,
            status=status,
            content_type="text/html",
            headers={"Cache-Control": "no-store", "Vary": "Cookie, Accept-Language, HX-Request"},
        )


def _runs_fleet(request: web.Request) -> bool:
    """Whether who is signed in has business in the console."""
    found = visitor(request)
    return found is not None and any(
        scopes(found.grants, permission)
        for permission in (Permission.CHANGE_REGISTER, Permission.MANAGE_PEOPLE)
    )


def _form_field(request: web.Request) -> Markup:
    """Return the hidden field that each form of a page needs: `{{ csrf() }}`.

    What sends no form puts `{{ csrf_token() }}` into the header `X-CSRF-Token`.
    """
    field = '<input type="hidden" name="{}" value="{}">'
    return Markup(field).format(CSRF_FIELD, form_token(request))  # noqa: S704 - format escapes


async def protect(request: web.Request, response: web.StreamResponse) -> None:
    """Add the security headers to a page before it is sent; the API has its own."""
    if not request.path.startswith("/v1/"):
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)


async def choose_language(request: web.Request) -> web.Response:
    """Remember the language and go back: `/language?to=sv&back=/sites/x`."""
    language = catalogue.choose("", wished=request.query.get("to", ""))
    response = web.HTTPSeeOther(local_path(request.query.get("back", "/")))
    keep_language(response, language)
    raise response


def keep_language(response: web.StreamResponse, language: str) -> None:
    """Let the browser ask for this language from now on."""
    response.set_cookie(
        LANGUAGE_COOKIE, language, max_age=31_536_000, samesite="Lax", httponly=True
    )


def local_path(wanted: str) -> str:
    """Return `wanted` if it is a path of this server, else `/`: no redirect leads elsewhere."""
    if not wanted.startswith("/") or wanted[1:2] in ("/", "\\") or not wanted.isprintable():
        return "/"
    return wanted
