"""The routes of /v1 about what others follow: the feed of changes and webhooks."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from server.api.acts import Act, ActRoute
from server.api.parameters import Nothing, read_cursor, write_cursor
from server.api.reads import Call, Route
from server.api.types import Page
from server.db.changes import (
    Kind,
    changes_after,
    place_first,
    place_now,
    place_of,
)
from server.feeds import webhooks
from server.feeds.sending import ChangeRow, change_row
from server.feeds.webhooks import Delivery, Webhook

WRITE = "feeds:write"
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


class ChangesAnswer(msgspec.Struct, frozen=True):
    """Changes in the order of their transactions; `next` is always there, `more`: ask at once."""

    data: list[ChangeRow]
    next: str
    more: bool


async def _changes(call: Call, asked: ChangeParameters) -> ChangesAnswer:
    organisation = await call.organisation()
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


# -- webhooks ------------------------------------------------------------------------------------


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address to be told; `kinds` none: all kinds of changes, from now on."""

    url: str
    kinds: list[Kind] = []


class Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies behind the cursor `after`, up to the cursor `until`."""

    after: str
    until: str


class WebhookWrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Enable or disable it, change its kinds, or tell it a stretch of the feed again."""

    enabled: bool | msgspec.UnsetType = msgspec.UNSET
    kinds: list[Kind] | msgspec.UnsetType = msgspec.UNSET
    replay: Replay | msgspec.UnsetType = msgspec.UNSET


class WebhookRecord(msgspec.Struct, frozen=True):
    """Somebody who is told: `waiting` deliveries are tried again, `dead` ones were given up.

    A delivery is a POST of a `Message` that answers 2xx, at least once for each change, signed as
    Standard Webhooks has it. It is tried for 3 days; a webhook that has failed for 5 is disabled.
    """

    webhook: str
    url: str
    kinds: list[Kind]
    enabled: bool
    disabled: str
    failing_since: datetime | None
    waiting: int
    dead: int
    version: str


class WebhookMade(msgspec.Struct, frozen=True):
    """A webhook, and the secret that signs, which is shown this once."""

    webhook: str
    secret: str


class DeliveryState(StrEnum):
    """What became of it."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    DEAD = "dead"


class DeliveryListing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A webhook's deliveries, latest first."""

    dead: Annotated[
        bool | None, msgspec.Meta(description="Those given up alone, or those not.")
    ] = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=1_000, description="The most rows.")] = 100
    cursor: Annotated[str | None, msgspec.Meta(description="`next` of the page before.")] = None


class DeliveryRow(msgspec.Struct, frozen=True):
    """What became of telling a change; `trouble` says what went wrong last."""

    delivery: int
    change: str
    kind: Kind
    state: DeliveryState
    tries: int
    status: int | None
    trouble: str
    queued_at: datetime
    next_at: datetime | None


def _record(known: Webhook) -> WebhookRecord:
    return WebhookRecord(
        *(known.ref, known.url, list(known.kinds), known.disabled_at is None, known.disabled),
        *(known.failing_since, known.waiting, known.dead, known.version),
    )


async def _webhooks(call: Call, asked: Nothing) -> Page[WebhookRecord]:
    found = await webhooks.listed(call.connection, await call.organisation())
    return Page([_record(each) for each in found])


async def _webhook(call: Call, asked: Nothing) -> WebhookRecord:
    return _record(await _known(call))


async def _known(call: Call) -> Webhook:
    return await webhooks.find(call.connection, await call.organisation(), call.path["ref"])


async def _deliveries(call: Call, asked: DeliveryListing) -> Page[DeliveryRow]:
    known = await _known(call)
    found = await webhooks.deliveries(
        call.connection,
        known.id,
        dead=asked.dead,
        before=None if asked.cursor is None else int(read_cursor(asked)[1]),
        limit=asked.limit + 1,
    )
    more, found = len(found) > asked.limit, found[: asked.limit]
    return Page(
        [_delivery(each) for each in found],
        write_cursor(asked, ("", found[-1].id)) if more else None,
    )


def _delivery(each: Delivery) -> DeliveryRow:
    state = DeliveryState.DEAD if each.dead_at else DeliveryState.WAITING
    if each.delivered_at:
        state = DeliveryState.DELIVERED
    return DeliveryRow(
        *(each.id, f"change-{each.change}", each.kind, state, each.tries, each.status),
        *(each.trouble, each.queued_at, each.next_at),
    )


async def _add(act: Act, body: NewWebhook) -> WebhookMade:
    made, secret = await webhooks.add(
        act.connection, act.organisation, url=body.url, kinds=body.kinds, seal=act.seal, **act.by
    )
    return WebhookMade(made.ref, secret)


async def _change(act: Act, body: WebhookWrite) -> WebhookRecord:
    replay = None
    if body.replay is not msgspec.UNSET:
        replay = place_of(body.replay.after), place_of(body.replay.until)
    changed = await webhooks.change(
        act.connection,
        act.organisation,
        act.ref,
        enabled=None if body.enabled is msgspec.UNSET else body.enabled,
        kinds=None if body.kinds is msgspec.UNSET else body.kinds,
        replay=replay,
        seen=act.seen,
        **act.by,
    )
    return _record(changed)


async def _remove(act: Act) -> WebhookRecord:
    return _record(await webhooks.remove(act.connection, act.organisation, act.ref, **act.by))


ROUTES: tuple[Route, ...] = (
    Route(
        *("/changes", "What changed since, in order", ChangeParameters, ChangesAnswer, None),
        _changes,
        waits=True,
    ),
    Route("/webhooks", "Who is told of changes", Nothing, Page[WebhookRecord], None, _webhooks),
    Route("/webhooks/{ref}", "One webhook", Nothing, WebhookRecord, None, _webhook),
    Route(
        *("/webhooks/{ref}/deliveries", "What became of telling it", DeliveryListing),
        *(Page[DeliveryRow], DeliveryRow, _deliveries),
    ),
)
ACTS: tuple[ActRoute, ...] = (
    ActRoute(
        *("POST", "/webhooks", "Register a webhook", WebhookMade, _add, NewWebhook),
        write=WRITE,
        shown_once=True,
    ),
    ActRoute(
        *("PATCH", "/webhooks/{ref}", "Change, enable or replay a webhook", WebhookRecord),
        *(_change, WebhookWrite),
        write=WRITE,
    ),
    ActRoute(
        *("DELETE", "/webhooks/{ref}", "Forget a webhook", WebhookRecord, _remove), write=WRITE
    ),
)
