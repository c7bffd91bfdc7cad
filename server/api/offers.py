"""The routes of /v1 about surveys offered at kiosks: after a press, on one's own phone."""

from datetime import datetime

import msgspec

from server.api.acts import Act, ActRoute, written
from server.api.pages import after, page_of
from server.api.parameters import SpotListing
from server.api.reads import Call, Route
from server.api.surveys import WRITE
from server.api.types import Page
from server.feedback import offers
from server.feedback.offers import Offer
from server.rollup.places import load_sites


class NewOffer(msgspec.Struct, forbid_unknown_fields=True):
    """Offer a published survey at all of a site's kiosks, or at one spot."""

    survey: str
    site: str
    spot: str | None = None


class OfferRecord(msgspec.Struct, frozen=True):
    """Where a survey is offered by kiosks, each visitor by a code that counts once."""

    offer: str
    survey: str
    site: str
    spot: str | None
    offered_at: datetime
    ended_at: datetime | None


def _record(found: Offer) -> OfferRecord:
    return OfferRecord(
        found.ref, found.survey, found.site, found.spot, found.offered_at, found.ended_at
    )


async def _list(call: Call, asked: SpotListing) -> Page[OfferRecord]:
    if asked.site:
        await load_sites(call.connection, asked.site)
    found = await offers.listed(
        call.connection,
        await call.organisation(),
        sites=asked.site,
        after=after(asked),
        limit=asked.limit + 1,
    )
    return page_of(asked, [_record(each) for each in found], lambda row: row.offer)


async def _make(act: Act, body: NewOffer) -> OfferRecord:
    return _record(
        await offers.make(
            act.connection,
            act.organisation,
            survey=body.survey,
            site=body.site,
            spot=body.spot,
            **act.by,
        )
    )


async def _end(act: Act) -> OfferRecord:
    return _record(await offers.end(act.connection, act.organisation, act.ref, **act.by))


ROUTES = (
    Route(
        *("/survey-offers", "Surveys that kiosks offer", SpotListing, Page[OfferRecord]),
        *(OfferRecord, _list),
    ),
)
ACTS = written(
    WRITE,
    ActRoute("POST", "/survey-offers", "Offer a survey at kiosks", OfferRecord, _make, NewOffer),
    ActRoute("DELETE", "/survey-offers/{ref}", "Offer it there no longer", OfferRecord, _end),
)
