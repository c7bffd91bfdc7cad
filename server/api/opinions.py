"""The routes of /v1 about opinions: response rates, alerts of dissatisfaction, actions."""

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from server.api.acts import Act, ActRoute, written
from server.api.pages import following, page_of
from server.api.parameters import (
    AsFormat,
    ConversionParameters,
    Listing,
    Nothing,
    Sites,
    SpotListing,
)
from server.api.reads import Call, Route
from server.api.types import Page
from server.feedback import actions, alerts
from server.feedback.actions import Action, Plan, Result
from server.feedback.alerts import Alert
from server.feedback.response_rate import ResponseRate, WeightedIndex, response_rates
from server.rollup.answer import By, CountQuery
from server.rollup.buckets import Size
from server.rollup.places import load_sites
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
    site: Sites = ()
    spot: Annotated[
        tuple[str, ...], msgspec.Meta(description="Terminals, by reference; none: all.")
    ] = ()
    bucket: RateSize = RateSize.DAY
    by: Annotated[By, msgspec.Meta(description="A row per site or per terminal.")] = By.SITE
    format: AsFormat = None

    def query(self) -> CountQuery:
        """Return the question in the rollup's terms. Raises ParameterError."""
        asked = ConversionParameters(since=self.since, until=self.until)
        return CountQuery(Size(self.bucket), *asked.span, Scope.OPEN, self.by, self.site, self.spot)


class RateAnswer(msgspec.Struct, frozen=True):
    """Response rates by bucket; and the indices of the whole range, weighted by exits."""

    data: list[ResponseRate]
    indices: list[WeightedIndex]
    next: str | None = None


class AlertRow(msgspec.Struct, frozen=True, gc=False):
    """An alert of dissatisfaction, with the evidence that it was raised with.

    `n` answers since `since`, `bad` of them bad, where the kiosk's own hours of the week let expect
    `expected`; `p` is the chance of as many. `false_alarms_per_week` is how often one kiosk's watch
    is wrong. Minutes are from the alert on.
    """

    alert: str
    site: str
    spot: str
    cause: str
    state: str
    raised_at: datetime
    since: datetime
    questionnaire: str
    question: int
    n: int
    bad: int
    expected: float
    p: float
    false_alarms_per_week: float
    filter_version: int
    assignee: str
    taken_at: datetime | None
    minutes_to_take: float | None
    outcome: str
    done_at: datetime | None
    minutes_to_act: float | None


class AlertParameters(Listing, frozen=True, forbid_unknown_fields=True):
    """A page of alerts, the latest first."""

    site: Sites = ()
    open: Annotated[bool, msgspec.Meta(description="Those alone that are not done.")] = False


class AlertTaken(msgspec.Struct, forbid_unknown_fields=True):
    """Who sees to it."""

    assignee: str


class AlertDone(msgspec.Struct, forbid_unknown_fields=True):
    """What came of it."""

    outcome: str


class AlarmSettings(msgspec.Struct, forbid_unknown_fields=True):
    """How many false alarms a week one kiosk may raise."""

    false_alarms_per_week: float


class TouchpointRow(msgspec.Struct, frozen=True):
    """What visitors meet."""

    touchpoint: str
    name: str


class NewTouchpoint(msgspec.Struct, forbid_unknown_fields=True):
    """A touchpoint to be added."""

    name: str


class ActionRow(msgspec.Struct, frozen=True):
    """What is done at a touchpoint of a site. `result`: the comparison that it was closed with."""

    action: str
    site: str
    touchpoint: str
    touchpoint_name: str
    alert: str | None
    title: str
    owner: str
    state: str
    due_on: date
    remeasure_on: date
    done_on: date | None
    told: dict[str, str]
    published_at: datetime | None
    made_at: datetime
    closed_at: datetime | None
    result: Result | None


class NewAction(msgspec.Struct, forbid_unknown_fields=True):
    """An action to be made; `alert` where it answers one of the site's."""

    site: str
    touchpoint: str
    title: str
    owner: str
    due_on: date
    remeasure_on: date
    alert: str | None = None


class ActionDone(msgspec.Struct, forbid_unknown_fields=True):
    """On which day it was carried out."""

    done_on: date


class ActionTold(msgspec.Struct, forbid_unknown_fields=True):
    """ "You said, we did", by language (sv, da, en), and whether visitors may be shown it."""

    told: dict[str, str]
    published: bool = False


def _alert(found: Alert) -> AlertRow:
    return AlertRow(
        found.ref,
        found.site,
        found.spot,
        found.cause,
        "done" if found.done_at else "taken" if found.taken_at else "open",
        found.raised_at,
        found.since,
        f"{found.questionnaire & (1 << 64) - 1:016x}",
        found.question,
        found.n,
        found.bad,
        round(found.expected, 3),
        found.p,
        found.false_alarms_per_week,
        found.filter_version,
        found.assignee,
        found.taken_at,
        found.minutes_to_take,
        found.outcome,
        found.done_at,
        found.minutes_to_act,
    )


def _action(found: Action) -> ActionRow:
    return ActionRow(
        *(found.ref, found.site, found.touchpoint, found.touchpoint_name, found.alert),
        *(found.title, found.owner, found.state, found.due_on, found.remeasure_on),
        *(found.done_on, dict(found.told), found.published_at, found.made_at, found.closed_at),
        found.result,
    )


async def _rates(call: Call, asked: RateParameters) -> RateAnswer:
    found = await response_rates(call.connection, asked.query(), now_s=call.now_s)
    return RateAnswer(found.rows, found.indices)


async def _alerts(call: Call, asked: AlertParameters) -> Page[AlertRow]:
    if asked.site:
        await load_sites(call.connection, asked.site)
    found = await alerts.listed(
        call.connection,
        await call.organisation(),
        sites=asked.site,
        open_only=asked.open,
        **following(asked),
    )
    return page_of(asked, [_alert(each) for each in found], lambda row: row.alert)


async def _settings(call: Call, asked: Nothing) -> AlarmSettings:
    del asked
    return AlarmSettings(await alerts.false_alarms_of(call.connection, await call.organisation()))


async def _touchpoints(call: Call, asked: Nothing) -> Page[TouchpointRow]:
    del asked
    found = await actions.touchpoints(call.connection, await call.organisation())
    return Page([TouchpointRow(each.ref, each.name) for each in found])


async def _actions(call: Call, asked: SpotListing) -> Page[ActionRow]:
    if asked.site:
        await load_sites(call.connection, asked.site)
    found = await actions.listed(
        call.connection,
        await call.organisation(),
        sites=asked.site,
        **following(asked),
    )
    return page_of(asked, [_action(each) for each in found], lambda row: row.action)


async def _take(act: Act, body: AlertTaken) -> AlertRow:
    return _alert(
        await alerts.take(
            act.connection, act.organisation, act.ref, assignee=body.assignee, **act.by
        )
    )


async def _finish(act: Act, body: AlertDone) -> AlertRow:
    return _alert(
        await alerts.finish(
            act.connection, act.organisation, act.ref, outcome=body.outcome, **act.by
        )
    )


async def _allow(act: Act, body: AlarmSettings) -> AlarmSettings:
    rate = body.false_alarms_per_week
    return AlarmSettings(
        await alerts.allow_false_alarms(act.connection, act.organisation, rate, **act.by)
    )


async def _add_touchpoint(act: Act, body: NewTouchpoint) -> TouchpointRow:
    made = await actions.add_touchpoint(act.connection, act.organisation, body.name, **act.by)
    return TouchpointRow(made.ref, made.name)


async def _plan(act: Act, body: NewAction) -> ActionRow:
    wanted = Plan(
        *(body.site, body.touchpoint, body.title, body.owner, body.due_on, body.remeasure_on),
        body.alert,
    )
    return _action(await actions.plan(act.connection, act.organisation, wanted, **act.by))


async def _carry_out(act: Act, body: ActionDone) -> ActionRow:
    return _action(
        await actions.carry_out(act.connection, act.organisation, act.ref, body.done_on, **act.by)
    )


async def _tell(act: Act, body: ActionTold) -> ActionRow:
    return _action(
        await actions.tell(
            act.connection,
            act.organisation,
            act.ref,
            body.told,
            published=body.published,
            **act.by,
        )
    )


async def _close(act: Act) -> ActionRow:
    return _action(await actions.close(act.connection, act.organisation, act.ref, **act.by))


ROUTES: tuple[Route, ...] = (
    Route(
        "/response-rate",
        "Responses per person who left, and indices weighted by it",
        RateParameters,
        RateAnswer,
        ResponseRate,
        _rates,
    ),
    Route(
        "/feedback-alerts",
        "Alerts of dissatisfaction, the latest first",
        AlertParameters,
        Page[AlertRow],
        AlertRow,
        _alerts,
    ),
    Route(
        "/alarm-settings",
        "How often an alert may be wrong",
        Nothing,
        AlarmSettings,
        None,
        _settings,
    ),
    Route(
        "/touchpoints",
        "What visitors meet, by name",
        Nothing,
        Page[TouchpointRow],
        TouchpointRow,
        _touchpoints,
    ),
    Route(
        "/actions",
        "What is done, the latest first",
        SpotListing,
        Page[ActionRow],
        ActionRow,
        _actions,
    ),
)
ACTS = written(
    WRITE,
    ActRoute(
        *("PUT", "/feedback-alerts/{ref}/assignee", "Take an alert, or hand it on", AlertRow),
        *(_take, AlertTaken),
    ),
    ActRoute(
        *("PUT", "/feedback-alerts/{ref}/outcome", "End an alert with what came of it", AlertRow),
        *(_finish, AlertDone),
    ),
    ActRoute(
        *("PUT", "/alarm-settings", "Say how often an alert may be wrong", AlarmSettings),
        *(_allow, AlarmSettings),
    ),
    ActRoute(
        *("POST", "/touchpoints", "Add a touchpoint", TouchpointRow),
        *(_add_touchpoint, NewTouchpoint),
    ),
    ActRoute("POST", "/actions", "Plan an action", ActionRow, _plan, NewAction),
    ActRoute(
        *("PUT", "/actions/{ref}/done", "Say when it was carried out", ActionRow),
        *(_carry_out, ActionDone),
    ),
    ActRoute(
        *("PUT", "/actions/{ref}/told", "Say what visitors may be told", ActionRow),
        *(_tell, ActionTold),
    ),
    ActRoute("PUT", "/actions/{ref}/closed", "Close it with its comparison", ActionRow, _close),
)
