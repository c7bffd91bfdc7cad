"""A published survey and a visitor with a phone: what the tests of surveys start from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession

from server.api.keys import create_api_key
from server.feedback.battery import Battery, Factor, Item, ItemKind
from tests.integration.people_world import People

LANGUAGES = ("sv", "da", "en")


def said(sv: str, da: str, en: str) -> dict[str, str]:
    return {"sv": sv, "da": da, "en": en}


def battery(title: str = "Your visit") -> Battery:
    """Return two factors of three statements, a choice and a text, in three languages."""
    return Battery(
        list(LANGUAGES),
        said("Ditt besök", "Dit besøg", title),
        said("Butiken läser varje vecka.", "Butikken læser hver uge.", "The shop reads it weekly."),
        [
            Factor("staff", said("Personal", "Personale", "Staff"), "to feel welcome", "train"),
            Factor("queue", said("Kassa", "Kasse", "Check-out"), "to get on", "open tills"),
        ],
        [
            Item("overall", ItemKind.OVERALL, said("Helhet?", "Alt i alt?", "All in all?")),
            *(
                Item(f"{factor}{n}", ItemKind.STATEMENT, said("Bra.", "Godt.", "Good."), factor)
                for factor in ("staff", "queue")
                for n in range(4)
            ),
            Item(
                "came",
                ItemKind.CHOICE,
                said("Hur ofta?", "Hvor ofte?", "How often?"),
                options=[said("Ofta", "Ofte", "Often"), said("Sällan", "Sjældent", "Seldom")],
            ),
            Item("words", ItemKind.TEXT, said("Något mer?", "Andet?", "Anything else?")),
        ],
        5,
    )


@dataclass
class Counter:
    """A shop that asks, by its API key."""

    people: People
    key: str

    async def ask(
        self, method: str, path: str, body: object = None, *, status: int = 200, **headers: str
    ) -> dict[str, Any]:
        headers |= {"Authorization": f"Bearer {self.key}", "If-Match": "*"}
        async with self.people.browser().request(
            method, f"/v1{path}", json=body, headers=headers
        ) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
            assert response.status == status, answer
            return answer

    async def survey(self, population: str = "visitors", title: str = "Your visit") -> str:
        """Make and publish a survey; return its ref."""
        body = {
            "name": "Visit",
            "population": population,
            "content": msgspec.to_builtins(battery(title)),
        }
        made = await self.ask("POST", "/surveys", body, status=201)
        ref: str = made["survey"]
        await self.ask("PATCH", f"/surveys/{ref}", {"state": "published"})
        return ref

    async def tokens(self, survey: str, **more: object) -> list[dict[str, str]]:
        body = {"survey": survey, "site": "own-site", "channel": "receipt", **more}
        found: list[dict[str, str]] = (await self.ask("POST", "/survey-tokens", body))["tokens"]
        return found

    async def answers(self, survey: str, values: Sequence[int], **more: object) -> None:
        """Let one visitor for each value give it to every statement."""
        for token, value in zip(
            await self.tokens(survey, count=len(values), **more), values, strict=True
        ):
            phone = Phone(self.people)
            await phone.open(path_of(token["url"]))
            status, text = await phone.send(phone.filled(value))
            assert status == 200, text


class Phone:
    """A visitor's browser without scripts."""

    def __init__(self, people: People, language: str = "en") -> None:
        self.browser: ClientSession = people.browser()
        self.language = language
        self.path, self.html = "", ""

    async def open(self, path: str) -> tuple[int, str]:
        headers = {"Accept-Language": self.language, "Sec-Fetch-Site": "none"}
        async with self.browser.get(path, headers=headers) as response:
            self.path, self.html = response.url.path, await response.text()
            self.headers = dict(response.headers)
            return response.status, self.html

    def filled(self, value: int, **more: str) -> dict[str, str]:
        """Return the form with one value for all statements, and whatever else is said."""
        hidden = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', self.html)
        names = dict.fromkeys(re.findall(r'type="radio" name="([^"]+)"', self.html))
        form = {name: unescape(text) for name, text in hidden}
        form |= {name: str(value) for name in names if name not in ("overall", "came")}
        return form | {"overall": str(2 * value), "came": str(value % 2)} | more

    async def send(self, form: dict[str, str]) -> tuple[int, str]:
        headers = {
            "Accept-Language": self.language,
            "Origin": "null",
            "Sec-Fetch-Site": "same-origin",
        }
        async with self.browser.post(self.path, data=form, headers=headers) as response:
            self.headers = dict(response.headers)
            return response.status, await response.text()


def path_of(url: str) -> str:
    return "/s/" + url.rsplit("/", 1)[1]


@pytest.fixture
async def counter(people: People) -> Counter:
    organisation = people.organisations["own"]
    key = await create_api_key(
        people.owner, organisation, "test", scopes=("read", "opinions:write")
    )
    return Counter(people, key)
