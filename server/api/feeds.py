"""The routes of /v1 about what others follow: the feed of changes and webhooks."""

from enum import StrEnum
from typing import Annotated

import msgspec

from server.api.acts import ActRoute
from server.api.reads import Call, Route
from server.db.changes import (
    AlertNote,
    Change,
    GapNote,
    Kind,
    Revised,
    changes_after,
    place_first,
    place_now,
    place_of,
)

MOST_WAIT_S = 25
"""Less than what is in between usually waits for an answer."""


class Start(StrEnum):
    """Where to begin without a cursor."""

    OLDEST = "oldest"
    NOW = "now"


class ChangeParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What changed behind a place in the feed: send `next` of an answer as `cursor`.

    To begin: take `next` with `start=now`, read what you need, then follow from there. Nothing is
    skipped; a change that is told twice, to who asks twice, has the same `change`. `410` says that
    a cursor is of no use any more: begin again.
    """

    cursor: Annotated[str | None, msgspec.Meta(description="`next` of an answer before.")] = None
    start: Annotated[
        Start, msgspec.Meta(description="Without cursor: all that is kept (90 days), or from now.")
    ] = Start.OLDEST
    kind: Annotated[tuple[Kind, ...], msgspec.Meta(description="Kinds of changes; none: all.")] = ()
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000, description="The most changes.")] = 1_000
    wait: Annotated[
        int, msgspec.Meta(ge=0, le=MOST_WAIT_S, description="Seconds to wait for a first change.")
    ] = 0


class ChangeRow(msgspec.Struct, frozen=True):
    """A change; one of `revised`, `gap` and `alert` says more, by its kind.

    `change` is its number for ever: who is told twice knows it by that.
    """

    change: str
    kind: Kind
    at: str
    site: str | None
    spot: str | None
    revised: Revised | None = None
    gap: GapNote | None = None
    alert: AlertNote | None = None


class ChangesAnswer(msgspec.Struct, frozen=True):
    """Changes in the order of their transactions; `next` is always there, `more`: ask at once."""

    data: list[ChangeRow]
    next: str
    more: bool


def change_row(change: Change) -> ChangeRow:
    """Return a change as it is told, here and to webhooks."""
    detail = change.detail
    return ChangeRow(
        f"change-{change.id}",
        change.kind,
        change.at.isoformat(timespec="seconds").replace("+00:00", "Z"),
        change.site,
        change.spot,
        revised=detail if isinstance(detail, Revised) else None,
        gap=detail if isinstance(detail, GapNote) else None,
        alert=detail if isinstance(detail, AlertNote) else None,
    )


async def _changes(call: Call, asked: ChangeParameters) -> ChangesAnswer:
    organisation = await call.connection.fetchval("select current_organisation()")
    if asked.cursor is not None:
        place = place_of(asked.cursor)
    elif asked.start is Start.NOW:
        place = await place_now(call.connection, now=call.now)
    else:
        place = await place_first(call.connection, now=call.now)
    told = await changes_after(
        call.connection,
        place,
        organisation=organisation,
        kinds=asked.kind,
        limit=asked.limit,
        now=call.now,
    )
    return ChangesAnswer([change_row(each) for each in told.changes], told.place.text(), told.more)


ROUTES: tuple[Route, ...] = (
    Route(
        *("/changes", "What changed since, in order", ChangeParameters, ChangesAnswer, None),
        _changes,
        waits=True,
    ),
)
ACTS: tuple[ActRoute, ...] = ()
