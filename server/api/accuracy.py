"""The routes of /v1 about how far counters can be trusted: recounts and what follows from them."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from typing import Annotated

import msgspec

from server.api.acts import Act, ActRoute
from server.api.pages import after
from server.api.parameters import SpotListing, write_cursor
from server.api.reads import Call, Route
from server.api.types import Page
from server.insight import recounts
from server.insight.accuracy import Accuracy, Error, NoProposal, propose
from server.rollup.places import Spot, load_sites, load_spots

WRITE = "accuracy:write"
MOST_SPOTS = 500


class BlockBody(msgspec.Struct, forbid_unknown_fields=True):
    """People in and out, by eye, in the quarter of an hour that begins at `from`."""

    since: Annotated[datetime, msgspec.Meta(tz=True)] = msgspec.field(name="from")
    entered: int = msgspec.field(name="in")
    departed: int = msgspec.field(name="out")


class NewRecount(msgspec.Struct, forbid_unknown_fields=True):
    """What somebody counted at a spot: `manual`, at the door, or from a `video`."""

    spot: str
    method: str
    counted_by: str
    blocks: list[BlockBody]


class RecountRecord(msgspec.Struct, frozen=True):
    """A recount as it was kept."""

    recount: str
    spot: str
    method: str
    counted_by: str
    recorded_at: datetime
    blocks: int


class WithdrawnRecord(msgspec.Struct, frozen=True):
    """A recount that counts no more."""

    recount: str
    withdrawn: bool


class BlockRow(msgspec.Struct, frozen=True):
    """A block beside the counter's; `counted_*` are null unless `state` is `compared`."""

    spot: str
    recount: str
    method: str
    counted_by: str
    since: datetime = msgspec.field(name="from")
    until: datetime = msgspec.field(name="to")
    entered: int = msgspec.field(name="in")
    departed: int = msgspec.field(name="out")
    counted_in: float | None
    counted_out: float | None
    state: str


class ErrorRecord(msgspec.Struct, frozen=True):
    """counted / people - 1, with its interval of 95 %; null with too few people."""

    people: float
    counted: float
    blocks: int
    error: float | None
    low: float | None
    high: float | None


class FactorRecord(msgspec.Struct, frozen=True):
    """What the counter would have to be multiplied by; nobody but a person applies it."""

    factor: float
    low: float
    high: float


class AccuracyRow(msgspec.Struct, frozen=True):
    """A counter's directional error; `audited_on` null: never audited, or no longer."""

    spot: str
    site: str
    audited_on: date | None
    entered: ErrorRecord | None = msgspec.field(name="in")
    departed: ErrorRecord | None = msgspec.field(name="out")
    proposed: FactorRecord | None
    not_proposed: str | None


class AccuracyListing(SpotListing, frozen=True, forbid_unknown_fields=True):
    """A page of counters."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=MOST_SPOTS)] = MOST_SPOTS


async def _counters(call: Call, asked: AccuracyListing) -> tuple[Sequence[Spot], str | None]:
    """Return the counters of a page, and the cursor of the next."""
    begin = after(asked)
    sites = await load_sites(call.connection, asked.site)
    found = await load_spots(call.connection, kind="counter", sites=sites)
    rest = sorted((spot for spot in found if spot.ref > begin), key=lambda spot: spot.ref)
    page = rest[: asked.limit]
    return page, write_cursor(asked, (page[-1].ref, 0)) if len(rest) > len(page) else None


async def _accuracy(call: Call, asked: AccuracyListing) -> Page[AccuracyRow]:
    page, following = await _counters(call, asked)
    ids = [spot.id for spot in page]
    found = await recounts.accuracies(call.connection, ids, day=_today(call))
    return Page([_row(spot, found.get(spot.id)) for spot in page], following)


def _row(spot: Spot, found: Accuracy | None) -> AccuracyRow:
    if found is None:
        return AccuracyRow(spot.ref, spot.site.ref, None, None, None, None, NoProposal.TOO_FEW)
    proposed = propose(found)
    return AccuracyRow(
        spot.ref,
        spot.site.ref,
        found.audited_on if found.audited else None,
        _error(found.entered),
        _error(found.departed),
        None
        if isinstance(proposed, NoProposal)
        else FactorRecord(proposed.factor, proposed.low, proposed.high),
        proposed.value if isinstance(proposed, NoProposal) else None,
    )


def _error(found: Error) -> ErrorRecord:
    return ErrorRecord(found.people, found.counted, found.blocks, found.bias, found.low, found.high)


async def _recounts(call: Call, asked: AccuracyListing) -> Page[BlockRow]:
    page, following = await _counters(call, asked)
    refs = {spot.id: spot.ref for spot in page}
    blocks = await recounts.compared(call.connection, list(refs), day=_today(call))
    return Page(
        [
            BlockRow(
                *(refs[each.spot_id], each.recount, each.method, each.counted_by, each.from_at),
                *(each.until_at, each.entered, each.departed, each.counted_in, each.counted_out),
                each.state.value,
            )
            for each in blocks
        ],
        following,
    )


def _today(call: Call) -> date:
    """Return the day that it is in the last zone: what was recounted today counts at once."""
    return (call.now + timedelta(hours=14)).date()


async def _add(act: Act, body: NewRecount) -> RecountRecord:
    made = await recounts.add(
        act.connection,
        act.organisation,
        body.spot,
        method=body.method,
        counted_by=body.counted_by,
        blocks=[recounts.Counted(b.since, b.entered, b.departed) for b in body.blocks],
        **act.by,
    )
    return RecountRecord(
        *(made.ref, made.spot, made.method, made.counted_by, made.recorded_at), len(made.blocks)
    )


async def _withdraw(act: Act) -> WithdrawnRecord:
    await recounts.withdraw(act.connection, act.organisation, act.ref, **act.by)
    return WithdrawnRecord(act.ref, withdrawn=True)


ROUTES: tuple[Route, ...] = (
    Route(
        "/accuracy", "Counters' errors, from recounts", AccuracyListing, Page[AccuracyRow],
        AccuracyRow, _accuracy,
    ),
    Route(
        "/recounts", "Recounts, block by block, beside the counters", AccuracyListing,
        Page[BlockRow], BlockRow, _recounts,
    ),
)  # fmt: skip
ACTS: tuple[ActRoute, ...] = (
    ActRoute("POST", "/recounts", "Keep a recount", RecountRecord, _add, NewRecount, write=WRITE),
    ActRoute(
        "DELETE", "/recounts/{ref}", "Withdraw a recount", WithdrawnRecord, _withdraw, write=WRITE
    ),
)
