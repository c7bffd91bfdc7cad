"""What the portal's pages on surveys share: who may ask visitors, and how their forms are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from aiohttp import web

from server.errors import NotFoundError, VestibuleError
from server.feedback import surveys
from server.feedback.surveys import Survey
from server.feedback.tokens import Delay
from server.fleet.checks import FieldError
from server.people.roles import Permission, Place
from server.portal import forms
from server.portal.frame import Look

E = TypeVar("E", bound=StrEnum)
_MOST_FIELD = 1_200


@dataclass(frozen=True, slots=True)
class Problem:
    """Why nothing was done."""

    field: str
    detail: str

    @classmethod
    def of(cls, error: VestibuleError) -> "Problem":
        return cls(error.parameter if isinstance(error, FieldError) else "", str(error))


def may_ask(look: Look) -> bool:
    return look.visitor.may(Permission.ASK_VISITORS, Place(look.organisation))


def demand_ask(look: Look) -> None:
    if not may_ask(look):
        raise web.HTTPNotFound


async def survey_of(look: Look, request: web.Request) -> Survey:
    ref = request.match_info["survey"]
    if "\0" in ref:
        raise web.HTTPNotFound
    try:
        return await surveys.find(look.db, look.organisation, ref)
    except NotFoundError as error:
        raise web.HTTPNotFound from error


async def form_of(request: web.Request) -> dict[str, str]:
    """Return a form's texts, a line of each as a line, without what stands around it."""
    form = await forms.form_of(request, longest=_MOST_FIELD, lines=True)
    return {
        name: "\n".join(" ".join(line.split()) for line in value.splitlines()).strip()
        for name, value in form.items()
    }


def number(form: Mapping[str, str], name: str, otherwise: int) -> int:
    text = form.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else otherwise


def one_of(kind: type[E], form: Mapping[str, str], name: str, otherwise: E) -> E:
    try:
        return kind(form[name]) if form.get(name) else otherwise
    except ValueError as error:
        raise FieldError(name, f"expected one of {', '.join(kind)}") from error


def delay_of(form: Mapping[str, str]) -> Delay:
    return one_of(Delay, form, "delay", Delay.NOW)
