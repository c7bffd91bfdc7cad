"""The routes of /v1 about what kiosks ask: versions of questionnaires, and where they are shown."""

from datetime import date, datetime

import msgspec

from protocol.questionnaire import Kind
from server.api.acts import Act, ActRoute, written
from server.api.pages import after, page_of
from server.api.parameters import Listing, Nothing, SpotListing
from server.api.reads import Call, Route
from server.api.types import Page
from server.feedback import questionnaires
from server.feedback.questionnaires import Publication, Schedule, Version
from server.rollup.places import load_sites

WRITE = "opinions:write"


class AfterBody(msgspec.Struct, forbid_unknown_fields=True):
    """Ask only who gave one of `answers` to an earlier question."""

    question: int
    answers: list[int]


class QuestionBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One question; texts are ICU messages by language. `options` are a choice's alone."""

    kind: Kind
    text: dict[str, str]
    options: list[dict[str, str]] | None = None
    low: dict[str, str] | None = None
    high: dict[str, str] | None = None
    after: AfterBody | None = None


class ContentBody(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What is asked, in each of `languages`; the first is the one that a screen begins with."""

    languages: list[str]
    title: dict[str, str]
    questions: list[QuestionBody]
    welcome: dict[str, str] | None = None
    thanks: dict[str, str] | None = None


class NewQuestionnaire(msgspec.Struct, forbid_unknown_fields=True):
    """A version to be made; versions of one `name` follow each other."""

    name: str
    content: ContentBody


class QuestionnaireRecord(msgspec.Struct, frozen=True):
    """A version, which is never edited. `hash` is what presses bear."""

    questionnaire: str
    name: str
    version: int
    hash: str
    made_at: datetime
    retired_at: datetime | None


class QuestionnaireDetail(msgspec.Struct, frozen=True):
    """A version with what it asks; null where only its hash is known."""

    questionnaire: str
    name: str
    version: int
    hash: str
    made_at: datetime
    retired_at: datetime | None
    content: ContentBody | None


class NewPublication(msgspec.Struct, forbid_unknown_fields=True):
    """Show a version at all of a site's kiosks, or at one spot; days and hours are the site's own.

    `until` is included; `weekdays` are 1 (Monday) to 7; hours are minutes of the day, and end on
    the next day where `closes` is before `opens`.
    """

    questionnaire: str
    site: str
    spot: str | None = None
    since: date | None = msgspec.field(name="from", default=None)
    until: date | None = None
    weekdays: list[int] = []
    opens: int | None = None
    closes: int | None = None


class PublicationRecord(msgspec.Struct, frozen=True):
    """Where a version is shown, and when."""

    publication: str
    questionnaire: str
    site: str
    spot: str | None
    since: date | None = msgspec.field(name="from")
    until: date | None
    weekdays: list[int]
    opens: int | None
    closes: int | None
    published_at: datetime
    ended_at: datetime | None


def _record(version: Version) -> QuestionnaireRecord:
    return QuestionnaireRecord(
        version.ref, version.name, version.version, version.hex, version.made_at, version.retired_at
    )


def _published(made: Publication) -> PublicationRecord:
    when = made.schedule
    opens, closes = when.hours or (None, None)
    return PublicationRecord(
        *(made.ref, made.questionnaire, made.site, made.spot, when.since, when.until),
        *(list(when.weekdays), opens, closes, made.published_at, made.ended_at),
    )


async def _list(call: Call, asked: Listing) -> Page[QuestionnaireRecord]:
    found = await questionnaires.listed(
        call.connection, await call.organisation(), after=after(asked), limit=asked.limit + 1
    )
    return page_of(asked, [_record(version) for version in found], lambda row: row.questionnaire)


async def _one(call: Call, asked: Nothing) -> QuestionnaireDetail:
    del asked
    version = await questionnaires.find(
        call.connection, await call.organisation(), call.path["ref"]
    )
    content = None
    if version.content is not None:
        fields = msgspec.json.decode(version.content)
        del fields["format"]
        content = msgspec.convert(fields, ContentBody)
    record = _record(version)
    return QuestionnaireDetail(
        *(record.questionnaire, record.name, record.version, record.hash),
        *(record.made_at, record.retired_at, content),
    )


async def _publications(call: Call, asked: SpotListing) -> Page[PublicationRecord]:
    if asked.site:
        await load_sites(call.connection, asked.site)
    found = await questionnaires.publications(
        call.connection,
        await call.organisation(),
        sites=asked.site,
        after=after(asked),
        limit=asked.limit + 1,
    )
    return page_of(asked, [_published(each) for each in found], lambda row: row.publication)


async def _make(act: Act, body: NewQuestionnaire) -> QuestionnaireRecord:
    value = {"format": 1, **msgspec.to_builtins(body.content)}
    return _record(
        await questionnaires.make(
            act.connection, act.organisation, name=body.name, value=value, **act.by
        )
    )


async def _retire(act: Act) -> QuestionnaireRecord:
    return _record(await questionnaires.retire(act.connection, act.organisation, act.ref, **act.by))


async def _publish(act: Act, body: NewPublication) -> PublicationRecord:
    hours = None
    if body.opens is not None or body.closes is not None:
        hours = (-1 if body.opens is None else body.opens, body.closes or 0)
    return _published(
        await questionnaires.publish(
            act.connection,
            act.organisation,
            questionnaire=body.questionnaire,
            site=body.site,
            spot=body.spot,
            schedule=Schedule(body.since, body.until, tuple(body.weekdays), hours),
            **act.by,
        )
    )


async def _end(act: Act) -> PublicationRecord:
    return _published(await questionnaires.end(act.connection, act.organisation, act.ref, **act.by))


ROUTES = (
    Route(
        "/questionnaires",
        "Versions of questionnaires, by reference",
        Listing,
        Page[QuestionnaireRecord],
        QuestionnaireRecord,
        _list,
    ),
    Route(
        "/questionnaires/{ref}",
        "One version, and what it asks",
        Nothing,
        QuestionnaireDetail,
        None,
        _one,
    ),
    Route(
        "/publications",
        "Where questionnaires are shown, and when",
        SpotListing,
        Page[PublicationRecord],
        PublicationRecord,
        _publications,
    ),
)
ACTS = written(
    WRITE,
    ActRoute(
        *("POST", "/questionnaires", "Make a version of a questionnaire", QuestionnaireRecord),
        *(_make, NewQuestionnaire),
    ),
    ActRoute(
        *("DELETE", "/questionnaires/{ref}", "Retire a version: it is shown nowhere any more"),
        *(QuestionnaireRecord, _retire),
    ),
    ActRoute(
        *("POST", "/publications", "Show a version at a site or spot", PublicationRecord),
        *(_publish, NewPublication),
    ),
    ActRoute("DELETE", "/publications/{ref}", "Show it there no longer", PublicationRecord, _end),
)
