"""The routes of /v1 about opinions: response rates, alerts of dissatisfaction, actions."""

from enum import StrEnum
from typing import Annotated

import msgspec

from server.api.acts import ActRoute
from server.api.parameters import ConversionParameters, Format
from server.api.reads import Call, Route
from server.feedback.response_rate import ResponseRate, WeightedIndex, response_rates
from server.rollup.answer import By, CountQuery
from server.rollup.buckets import Size
from server.rollup.quality import Scope

WRITE = "opinions:write"


class RateSize(StrEnum):
    """How long a bucket of response rates is."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class RateParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Responses against exits, in opening hours; buckets of an hour and larger."""

    since: Annotated[
        str, msgspec.Meta(description="First day or moment.", examples=["2026-03-01"])
    ] = msgspec.field(name="from")
    until: Annotated[
        str, msgspec.Meta(description="End, exclusive; as `from`.", examples=["2026-04-01"])
    ] = msgspec.field(name="to")
    site: Annotated[tuple[str, ...], msgspec.Meta(description="Site references; none: all.")] = ()
    spot: Annotated[
        tuple[str, ...], msgspec.Meta(description="Terminals, by reference; none: all.")
    ] = ()
    bucket: RateSize = RateSize.DAY
    by: Annotated[By, msgspec.Meta(description="A row per site or per terminal.")] = By.SITE
    format: Annotated[
        Format | None, msgspec.Meta(description="Instead of the Accept header: json or csv.")
    ] = None

    def query(self) -> CountQuery:
        """Return the question in the rollup's terms. Raises ParameterError."""
        asked = ConversionParameters(since=self.since, until=self.until)
        return CountQuery(Size(self.bucket), *asked.span, Scope.OPEN, self.by, self.site, self.spot)


class RateAnswer(msgspec.Struct, frozen=True):
    """Response rates by bucket; and the indices of the whole range, weighted by exits."""

    data: list[ResponseRate]
    indices: list[WeightedIndex]
    next: str | None = None


async def _rates(call: Call, asked: RateParameters) -> RateAnswer:
    found = await response_rates(call.connection, asked.query(), now_s=call.now_s)
    return RateAnswer(found.rows, found.indices)


ROUTES: tuple[Route, ...] = (
    Route(
        "/response-rate",
        "Responses per person who left, and indices weighted by it",
        RateParameters,
        RateAnswer,
        ResponseRate,
        _rates,
    ),
)
ACTS: tuple[ActRoute, ...] = ()
