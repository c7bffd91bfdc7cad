"""What a page's form says, as text: bounded, and without what no text has."""

from collections.abc import Mapping
from datetime import date

from aiohttp import web

from server.fleet.checks import FieldError, day


async def form_of(request: web.Request, *, longest: int, lines: bool = False) -> dict[str, str]:
    """Return a form's texts, each of at most `longest` characters; in one line unless `lines`."""
    form = await request.post()
    found = {
        name: value.replace("\0", "")[:longest]
        for name, value in form.items()
        if isinstance(value, str)
    }
    return {name: text.strip() if lines else " ".join(text.split()) for name, text in found.items()}


def day_of(form: Mapping[str, str], field: str) -> date:
    """Return the day that a field holds. Raises FieldError, of an empty one, too."""
    found = day(form.get(field, ""), field)
    if found is None:
        raise FieldError(field, "expected a day such as 2026-12-24")
    return found
