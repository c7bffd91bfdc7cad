"""The routes of /v1 about freezes: when nothing is to change, everywhere or at some sites."""

from datetime import datetime
from typing import Annotated

import msgspec

from server.api.acts import Act, ActRoute, written
from server.api.pages import following, page_of
from server.api.parameters import Listing, Nothing
from server.api.reads import Call, Route
from server.api.types import Page
from server.firmware import freezes
from server.firmware.freezes import Freeze, Wanted

WRITE = "rollouts:write"
Instant = Annotated[datetime, msgspec.Meta(tz=True)]


class FreezeListing(Listing, frozen=True, forbid_unknown_fields=True):
    """Freezes that are on or still to come, the latest first; with `past` all of them."""

    past: bool = False


class NewFreeze(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Nothing changes from `starts_at` (now) to `ends_at`, at most 92 days.

    `sites`: a filter by site, as `site.region = "North"`; empty: all of the organisation. Its
    author alone ends it early.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    ends_at: Instant
    starts_at: Instant | None = None
    sites: Annotated[str, msgspec.Meta(max_length=2_000)] = ""


class FreezeRow(msgspec.Struct, frozen=True):
    """A freeze, who wanted it and why; `ended_at`: its author ended it before its time."""

    freeze: str
    name: str
    starts_at: datetime
    ends_at: datetime
    sites: str
    reason: str
    author: str
    created_at: datetime
    ended_at: datetime | None
    ended_by: str


def row_of(each: Freeze) -> FreezeRow:
    """Return a freeze as it is answered."""
    return FreezeRow(
        *(each.ref, each.name, each.starts_at, each.ends_at, each.sites, each.reason),
        *(each.author, each.created_at, each.ended_at, each.ended_by),
    )


async def _freezes(call: Call, asked: FreezeListing) -> Page[FreezeRow]:
    found = await freezes.listed(
        call.connection,
        await call.organisation(),
        now=call.now,
        past=asked.past,
        **following(asked),
    )
    return page_of(asked, [row_of(each) for each in found], lambda row: row.freeze)


async def _freeze(call: Call, asked: Nothing) -> FreezeRow:
    return row_of(await freezes.find(call.connection, await call.organisation(), call.path["ref"]))


async def _add(act: Act, body: NewFreeze) -> FreezeRow:
    wanted = Wanted(body.name, body.reason, body.ends_at, body.starts_at, body.sites)
    return row_of(await freezes.add(act.connection, act.organisation, wanted, **act.by))


async def _end(act: Act) -> FreezeRow:
    return row_of(await freezes.end(act.connection, act.organisation, act.ref, **act.by))


ROUTES: tuple[Route, ...] = (
    Route("/freezes", "When nothing changes", FreezeListing, Page[FreezeRow], FreezeRow, _freezes),
    Route("/freezes/{ref}", "One freeze", Nothing, FreezeRow, None, _freeze),
)
ACTS: tuple[ActRoute, ...] = written(
    WRITE,
    ActRoute("POST", "/freezes", "Let nothing change for a time", FreezeRow, _add, NewFreeze),
    ActRoute("DELETE", "/freezes/{ref}", "End a freeze of one's own early", FreezeRow, _end),
)
