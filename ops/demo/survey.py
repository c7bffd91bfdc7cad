"""What the store manager's card asks with: a survey, its links, and touchpoints for actions.

They are made by the product's own ways; a link is what a shop would send a customer by e-mail.
"""

import secrets
from datetime import UTC, datetime, timedelta

import asyncpg

from server.config import Settings
from server.feedback import actions, handing_out, surveys
from server.feedback.battery import Battery, Factor, Item, ItemKind, Population
from server.feedback.tokens import PURPOSE, Channel, Delay
from server.people.sealing import Seal

TOUCHPOINTS = ("Check-out", "Fitting rooms", "Staff")
NAME = "After your visit"


def _text(swedish: str, english: str) -> dict[str, str]:
    return {"sv": swedish, "en": english}


def _statement(key: str, factor: str, swedish: str, english: str) -> Item:
    return Item(key, ItemKind.STATEMENT, _text(swedish, english), factor=factor)


ASKED = Battery(
    languages=["sv", "en"],
    title=_text("Ditt besök", "Your visit"),
    why=_text(
        "Butiken läser varje svar, och säger vad som gjordes åt det.",
        "The shop reads every answer, and says what was done about it.",
    ),
    factors=[
        Factor("staff", _text("Bemötande", "Staff"), goal="to be seen and helped"),
        Factor("till", _text("Kassa", "Check-out"), goal="to be done quickly"),
    ],
    items=[
        Item("overall", ItemKind.OVERALL, _text("Hur var det som helhet?", "How was it overall?")),
        _statement("met", "staff", "Jag blev väl bemött.", "I was met well."),
        _statement("helped", "staff", "Jag fick hjälp när jag ville.", "I was helped if I wished."),
        _statement("fast", "till", "Det gick fort i kassan.", "The check-out was fast."),
        _statement(
            "open", "till", "Tillräckligt många kassor var öppna.", "Enough tills were open."
        ),
        Item("words", ItemKind.TEXT, _text("Något mer?", "Anything else?")),
    ],
    shown=4,
)


async def ask_visitors(connection: asyncpg.Connection, owner: int, *, actor: str) -> str:
    """Add the touchpoints, and make and publish the survey; return its reference."""
    now = datetime.now(UTC)
    for name in TOUCHPOINTS:
        await actions.add_touchpoint(connection, owner, name, actor=actor, now=now)
    made = await surveys.make(
        connection,
        owner,
        name=NAME,
        population=Population.VISITORS,
        battery=ASKED,
        actor=actor,
        now=now,
    )
    await surveys.move(connection, owner, made.ref, to="published", actor=actor, now=now)
    return made.ref


async def survey_link(
    connection: asyncpg.Connection,
    owner: int,
    *,
    survey: str,
    site: str,
    settings: Settings,
    actor: str,
) -> str:
    """Return the path of a link that one visitor of a site can answer by, once; role: desk."""
    _, [token] = await handing_out.mint(
        connection,
        owner,
        key=Seal(settings.session_secret).sign(PURPOSE, b""),
        survey=survey,
        site=site,
        channel=Channel.EMAIL,
        touchpoint="",
        delay=Delay.NOW,
        life=timedelta(days=7),
        count=1,
        round_=None,
        random=secrets.token_bytes,
        actor=actor,
        now=datetime.now(UTC),
    )
    return f"/s/{token.text}"
