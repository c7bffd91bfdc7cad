"""The routes of /v1 about surveys on one's own phone: made, published, handed out, summed up."""

import asyncio
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

from server.api.acts import Act, ActRoute, written
from server.api.pages import after, page_of
from server.api.parameters import AsFormat, Listing, Nothing, Sites, read_cursor, write_cursor
from server.api.problems import ParameterError
from server.api.reads import Call, Route
from server.api.types import Page
from server.errors import NotFoundError, UnavailableError
from server.feedback import answering, handing_out, surveys
from server.feedback.answering import Answered, WordsRecord
from server.feedback.battery import Battery, Population, asked_seconds
from server.feedback.qr import svg
from server.feedback.results import BY, Choice, Results, Score, summed, withheld
from server.feedback.scores import LEAST_GROUP, changes, drivers
from server.feedback.surveys import Round, Survey
from server.feedback.tokens import PURPOSE, Channel, Delay
from server.fleet.checks import FieldError
from server.rollup.places import load_sites

WRITE = "opinions:write"
_MOST_QR = 50


class NewSurvey(msgspec.Struct, forbid_unknown_fields=True):
    """A version to be made; the builder refuses what would take a visitor 55 s or more."""

    name: str
    content: Battery
    population: Population = Population.VISITORS


class SurveyMove(msgspec.Struct, forbid_unknown_fields=True):
    """`published`: it may be asked from now on; `closed`: never again."""

    state: str


class SurveyRecord(msgspec.Struct, frozen=True):
    """A version of a survey. `asked_seconds`: the longest that one visitor may be asked for."""

    survey: str
    name: str
    number: int
    population: Population
    hash: str
    state: str
    asked_seconds: float
    made_at: datetime
    published_at: datetime | None
    closed_at: datetime | None


class SurveyDetail(SurveyRecord, frozen=True):
    """A version, and what it asks."""

    content: Battery


class NewTokens(msgspec.Struct, forbid_unknown_fields=True):
    """A batch of one-time tokens, or one poster. `qr`: with pictures, of at most 50."""

    survey: str
    site: str
    channel: Channel
    touchpoint: str = ""
    delay: Delay = Delay.NOW
    days: float = 30
    count: int = 1
    round: str | None = None
    qr: bool = False


class TokenRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token, which is shown this once: its address, the code to type, and a QR code as SVG."""

    url: str
    code: str
    qr: str = ""


class TokenBatch(msgspec.Struct, frozen=True):
    """What was made, and what all of it is bound to."""

    survey: str
    site: str
    channel: Channel
    touchpoint: str
    delay: Delay
    expires_at: datetime
    type_at: str
    tokens: list[TokenRecord]


class NewRound(msgspec.Struct, forbid_unknown_fields=True):
    """A survey to be asked at a site for a while; `follows`: the round it is held against."""

    survey: str
    site: str
    name: str
    delay: Delay = Delay.NOW
    follows: str | None = None


class RoundRecord(msgspec.Struct, frozen=True):
    """A round."""

    round: str
    survey: str
    site: str
    name: str
    delay: Delay
    follows: str | None
    opened_at: datetime
    closed_at: datetime | None


class ResultParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which answers, and what they are parted by."""

    by: Annotated[
        str,
        msgspec.Meta(description=f"One of {', '.join(BY)}, or a choice's key; none: not parted."),
    ] = ""
    site: Sites = ()
    round: Annotated[str | None, msgspec.Meta(description="Answers of one round alone.")] = None
    format: AsFormat = None


class SurveyScore(msgspec.Struct, frozen=True):
    """A score: 1 to 5 of a factor, 0 to 10 of `overall`, with its 95 % interval over n visitors.

    `way`: one-time tokens and posters are never summed. `hidden`: fewer than 5 answered, or the
    group would tell one of fewer.
    """

    survey: str
    population: Population
    way: str
    channels: list[str]
    group: str
    measure: str
    factor: str
    n: int | None
    value: float | None
    low: float | None
    high: float | None
    alpha: float | None
    omega: float | None
    reliability_n: int | None
    hidden: bool


class SurveyChoice(msgspec.Struct, frozen=True):
    """An option's share of those who chose at all (n), with Wilson's 95 % interval.

    A group whose scores are hidden has none.
    """

    way: str
    group: str
    item: str
    option: int
    text: dict[str, str]
    chosen: int
    n: int
    share: float
    low: float
    high: float


class SecondsTaken(msgspec.Struct, frozen=True):
    """How long answering took; an `estimate` until 200 answers."""

    median: float
    p90: float
    n: int
    estimate: bool


class SurveyResults(msgspec.Struct, frozen=True):
    """All scores. `pooled_locales`: several languages in one number, not shown to be equal."""

    data: list[SurveyScore]
    survey: str
    population: Population
    by: str
    n: int
    seconds: SecondsTaken | None
    locales: dict[str, int]
    pooled_locales: bool
    choices: list[SurveyChoice]


class GainRecord(msgspec.Struct, frozen=True):
    """By how much the overall score (0 to 10) rises with one point more of a factor (1 to 5)."""

    factor: str
    gain: float
    low: float
    high: float


class DriverAnswer(msgspec.Struct, frozen=True):
    """What moves the overall score; `refused` says why nothing is said: `too_few`, say."""

    data: list[GainRecord]
    survey: str
    population: Population
    n: int
    penalty: float
    refused: str


class ChangeRecord(msgspec.Struct, frozen=True):
    """How a factor moved since the round before, with Welch's 95 % interval."""

    factor: str
    change: float | None
    low: float | None
    high: float | None
    n_before: int
    n_after: int


class ChangeAnswer(msgspec.Struct, frozen=True):
    """A round held against the one it follows."""

    data: list[ChangeRecord]
    round: str
    follows: str
    population: Population


def _record(found: Survey) -> SurveyRecord:
    return SurveyRecord(
        *(found.ref, found.name, found.version, found.population, found.hash.hex(), found.state),
        *(round(asked_seconds(found.battery), 1), found.made_at, found.published_at),
        found.closed_at,
    )


def _round(found: Round) -> RoundRecord:
    return RoundRecord(
        *(found.ref, found.survey, found.site, found.name, found.delay, found.follows),
        *(found.opened_at, found.closed_at),
    )


async def _list(call: Call, asked: Listing) -> Page[SurveyRecord]:
    found = await surveys.listed(
        call.connection, await call.organisation(), after=after(asked), limit=asked.limit + 1
    )
    return page_of(asked, [_record(each) for each in found], lambda row: row.survey)


async def _rounds(call: Call, asked: Listing) -> Page[RoundRecord]:
    found = await surveys.rounds(
        call.connection, await call.organisation(), after=after(asked), limit=asked.limit + 1
    )
    return page_of(asked, [_round(each) for each in found], lambda row: row.round)


async def _found(call: Call) -> Survey:
    return await surveys.find(call.connection, await call.organisation(), call.path["ref"])


async def _one(call: Call, asked: Nothing) -> SurveyDetail:
    del asked
    found = await _found(call)
    return SurveyDetail(**msgspec.structs.asdict(_record(found)), content=found.battery)


async def _answered(call: Call, found: Survey, asked: ResultParameters) -> list[Answered]:
    return await answering.answered(
        call.connection, found, sites=asked.site or None, round_=asked.round
    )


async def _results(call: Call, asked: ResultParameters) -> SurveyResults:
    if asked.site:
        await load_sites(call.connection, asked.site)
    found = await _found(call)
    answers, battery = await _answered(call, found, asked), found.battery
    cells = await answering.cells_of(call.connection, found)

    def made() -> Results:
        hide = withheld(found.population, answers, cells, by=asked.by)
        return summed(battery, found.population, answers, by=asked.by, hide=hide)

    try:
        result = await asyncio.to_thread(made)
    except KeyError as error:
        raise ParameterError("by", f"expected one of {', '.join(BY)}, or a choice") from error
    return SurveyResults(
        [_score(found, each) for each in result.scores],
        *(found.ref, found.population, asked.by, result.n, _seconds(result), result.locales),
        result.pooled_locales,
        [each for choice in result.choices for each in _chosen(battery, choice)],
    )


def _chosen(battery: Battery, choice: Choice) -> list[SurveyChoice]:
    options = battery.by_key[choice.item].options
    return [
        SurveyChoice(
            *(choice.way, choice.group, choice.item, each.option, options[each.option]),
            *(each.chosen, choice.n, each.share, each.low, each.high),
        )
        for each in choice.shares
    ]


def _seconds(result: Results) -> SecondsTaken | None:
    took = result.seconds
    return None if took is None else SecondsTaken(took.median, took.p90, took.n, took.estimate)


def _score(found: Survey, score: Score) -> SurveyScore:
    index, sure = score.index, score.reliability
    return SurveyScore(
        survey=found.ref,
        population=found.population,
        way=score.way,
        channels=list(score.channels),
        group=score.group,
        measure="overall" if score.factor is None else "factor",
        factor=score.factor or "",
        n=None if score.hidden else 0 if index is None else index.n,
        value=None if index is None else index.value,
        low=None if index is None else index.low,
        high=None if index is None else index.high,
        alpha=None if sure is None else sure.alpha,
        omega=None if sure is None else sure.omega,
        reliability_n=None if sure is None else sure.n,
        hidden=score.hidden,
    )


async def _drivers(call: Call, asked: Nothing) -> DriverAnswer:
    del asked
    found = await _found(call)
    answers = await answering.answered(call.connection, found)
    one_time = [each.answers for each in answers if each.channel.one_time]
    result = await asyncio.to_thread(drivers, found.battery, one_time, seed=found.id)
    return DriverAnswer(
        [GainRecord(each.factor, each.gain, each.low, each.high) for each in result.gains],
        *(found.ref, found.population, result.n, result.penalty, result.refused),
    )


async def _words(call: Call, asked: Listing) -> Page[WordsRecord]:
    found, before = await _found(call), None
    if asked.cursor is not None:
        name, at_s = read_cursor(asked)
        if not (str(name).isascii() and str(name).isdecimal() and len(str(name)) < 19):
            raise ParameterError("cursor", "this is not a cursor of ours", code="bad_cursor")
        before = datetime.fromtimestamp(int(at_s), UTC), int(name)
    rows = await answering.written(call.connection, found, before=before, limit=asked.limit + 1)
    shown = rows[: asked.limit]
    following = None
    if len(rows) > len(shown):
        id_, last = shown[-1]
        following = write_cursor(asked, (str(id_), int(last.at.timestamp())))
    return Page([row for _, row in shown], following)


async def _change(call: Call, asked: Nothing) -> ChangeAnswer:
    del asked
    organisation, ref = await call.organisation(), call.path["ref"]
    known = {each.ref: each for each in await surveys.rounds(call.connection, organisation)}
    if ref not in known or (follows := known[ref].follows) is None:
        raise NotFoundError(f"no round {ref[:40]!r} that follows another")
    found = await surveys.find(call.connection, organisation, known[ref].survey)
    both = [
        [
            each.answers
            for each in await answering.answered(call.connection, found, round_=name)
            if each.channel.one_time
        ]
        for name in (follows, ref)
    ]
    moved = await asyncio.to_thread(changes, found.battery, *both)
    least = 1 if found.population is Population.VISITORS else LEAST_GROUP
    rows = [
        ChangeRecord(factor, None, None, None, len(both[0]), len(both[1]))
        if each is None or min(each.n_before, each.n_after) < least
        else ChangeRecord(factor, each.change, each.low, each.high, each.n_before, each.n_after)
        for factor, each in moved.items()
    ]
    return ChangeAnswer(rows, ref, follows, found.population)


async def _make(act: Act, body: NewSurvey) -> SurveyRecord:
    return _record(
        await surveys.make(
            act.connection,
            act.organisation,
            name=body.name,
            population=body.population,
            battery=body.content,
            **act.by,
        )
    )


async def _move(act: Act, body: SurveyMove) -> SurveyRecord:
    return _record(
        await surveys.move(act.connection, act.organisation, act.ref, to=body.state, **act.by)
    )


async def _mint(act: Act, body: NewTokens) -> TokenBatch:
    if act.seal is None:
        raise UnavailableError("nothing is signed here")
    if body.qr and body.count > _MOST_QR:
        raise FieldError("count", f"with pictures at most {_MOST_QR} at once")
    try:
        life = timedelta(days=body.days)
    except (OverflowError, ValueError):
        life = timedelta(0)
    bound, made = await handing_out.mint(
        act.connection,
        act.organisation,
        key=act.seal.sign(PURPOSE, b""),
        survey=body.survey,
        site=body.site,
        channel=body.channel,
        touchpoint=body.touchpoint,
        delay=body.delay,
        life=life,
        count=body.count,
        round_=body.round,
        random=secrets.token_bytes,
        **act.by,
    )
    rows = [
        TokenRecord(url, each.typed, svg(url) if body.qr else "")
        for each in made
        for url in (f"{act.base}/s/{each.text}",)
    ]
    return TokenBatch(
        *(bound.survey, bound.site, bound.channel, bound.touchpoint, bound.delay),
        *(bound.expires_at, f"{act.base}/s", rows),
    )


async def _begin(act: Act, body: NewRound) -> RoundRecord:
    return _round(
        await surveys.begin_round(
            act.connection, act.organisation, **msgspec.structs.asdict(body), **act.by
        )
    )


async def _end(act: Act) -> RoundRecord:
    return _round(await surveys.end_round(act.connection, act.organisation, act.ref, **act.by))


ROUTES = (
    Route(
        *("/surveys", "Surveys on one's own phone, by reference", Listing, Page[SurveyRecord]),
        *(SurveyRecord, _list),
    ),
    Route("/surveys/{ref}", "One survey, and what it asks", Nothing, SurveyDetail, None, _one),
    Route(
        *("/surveys/{ref}/results", "Scores by factor, with interval and n", ResultParameters),
        *(SurveyResults, SurveyScore, _results),
    ),
    Route(
        *("/surveys/{ref}/drivers", "What moves the overall score", Nothing, DriverAnswer),
        *(GainRecord, _drivers),
    ),
    Route(
        *("/surveys/{ref}/words", "What visitors wrote, masked", Listing, Page[WordsRecord]),
        *(WordsRecord, _words),
    ),
    Route(
        *("/rounds", "Surveys asked again", Listing, Page[RoundRecord], RoundRecord, _rounds),
    ),
    Route(
        *("/rounds/{ref}/change", "A round against the one before", Nothing, ChangeAnswer),
        *(ChangeRecord, _change),
    ),
)
ACTS = written(
    WRITE,
    ActRoute("POST", "/surveys", "Make a version of a survey", SurveyRecord, _make, NewSurvey),
    ActRoute("PATCH", "/surveys/{ref}", "Publish or close it", SurveyRecord, _move, SurveyMove),
    ActRoute(
        *("POST", "/survey-tokens", "Make one-time tokens, or a poster's", TokenBatch),
        *(_mint, NewTokens),
        shown_once=True,
    ),
    ActRoute("POST", "/rounds", "Begin a round", RoundRecord, _begin, NewRound),
    ActRoute("DELETE", "/rounds/{ref}", "End a round", RoundRecord, _end),
)
