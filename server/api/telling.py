"""The routes of /v1 about who is told of incidents: windows, contacts, rules, and the mail."""

from datetime import datetime
from typing import Annotated

import msgspec

from server.api.acts import Act, ActRoute, written
from server.api.incidents import WRITE, Instant, Limit
from server.api.pages import following, page_of
from server.api.parameters import Listing, Nothing, read_cursor, write_cursor
from server.api.reads import Call, Route
from server.api.types import Page
from server.health import contacts, notices, rulebook, windows
from server.health.contacts import EVERY_DAY, Contact
from server.health.judgement import Condition, Severity
from server.health.rules import DEFAULTS, Channel, Rule, RuleChange, Rules, channels_of, rule_of
from server.health.windows import Kind, Wanted

_Cursor = Annotated[str | None, msgspec.Meta(description="`next` of the page before.")]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class NewWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Silence from `starts_at` (now) to `ends_at`, at most 30 days from now.

    Of a region, a site or a device; of none of these: of everything of the organisation.
    """

    kind: Kind
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
    ends_at: Instant
    starts_at: Instant | None = None
    region: str | None = None
    site: str | None = None
    device: str | None = None

    def wanted(self) -> Wanted:
        return Wanted(
            *(self.kind, self.reason, self.starts_at, self.ends_at),
            *(self.region, self.site, self.device),
        )


class WindowRow(msgspec.Struct, frozen=True):
    """A window of silence, who began it and why."""

    window: str
    kind: Kind
    reason: str
    author: str
    region: str | None
    site: str | None
    device: str | None
    starts_at: datetime
    ends_at: datetime
    ended_at: datetime | None
    ended_by: str


class WindowListing(Listing, frozen=True, forbid_unknown_fields=True):
    """Windows that silence or will; with `past` those that are over, too."""

    past: bool = False


class Silenced(msgspec.Struct, frozen=True):
    """What a window would silence: sites and devices, and what of theirs is open now."""

    sites: int
    devices: int
    episodes: int
    incidents: int


class NewContact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who is told of what is as bad as `severity`, or worse; weekday 0 is Monday.

    From `since` to `until` by the wall clock of `time_zone`; both empty: always.
    """

    name: _Name
    email: Annotated[str, msgspec.Meta(min_length=3, max_length=254)]
    severity: Severity = Severity.MAJOR
    time_zone: str = "UTC"
    weekdays: tuple[Annotated[int, msgspec.Meta(ge=0, le=6)], ...] = EVERY_DAY
    since: str = ""
    until: str = ""
    digest: bool = False


class ContactRow(msgspec.Struct, frozen=True):
    """Somebody who is told by mail."""

    contact: str
    name: str
    email: str
    severity: Severity
    time_zone: str
    weekdays: tuple[int, ...]
    since: str
    until: str
    digest: bool


class RuleRow(msgspec.Struct, frozen=True):
    """How a condition is dealt with, in seconds; `changed` fields are not the default."""

    condition: str
    rule: Rule
    changed: list[str]


class RulesAnswer(msgspec.Struct, frozen=True):
    """The rules that hold: their version, 0 for the defaults alone."""

    version: int
    made_at: datetime | None
    made_by: str
    channels: dict[Severity, list[Channel]]
    data: list[RuleRow]


class RulesWrite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is to differ from the defaults; `seen`: the version that this was made from."""

    conditions: dict[Condition, RuleChange] = {}
    channels: dict[Severity, list[Channel]] = {}
    seen: int | None = None


class NoticeListing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mail about incidents, latest first; `dead`: what was given up alone."""

    dead: bool = False
    limit: Limit = 100
    cursor: _Cursor = None


class NoticeRow(msgspec.Struct, frozen=True):
    """A message: what became of it, and what went wrong last."""

    notice: int
    incident: str | None
    contact: str
    subject: str
    state: str
    tries: int
    trouble: str
    queued_at: datetime
    next_at: datetime | None
    sent_at: datetime | None


# -- reading ---------------------------------------------------------------------------------------


async def _windows(call: Call, asked: WindowListing) -> Page[WindowRow]:
    found = await windows.listed(
        call.connection,
        await call.organisation(),
        now=call.now,
        past=asked.past,
        **following(asked),
    )
    return page_of(asked, [_window_row(each) for each in found], lambda row: row.window)


def _window_row(each: windows.Window) -> WindowRow:
    return WindowRow(
        *(each.ref, each.kind, each.reason, each.author, each.region, each.site, each.device),
        *(each.starts_at, each.ends_at, each.ended_at, each.ended_by),
    )


async def _preview(call: Call, asked: NewWindow) -> Silenced:
    found = await windows.preview(
        call.connection, await call.organisation(), asked.wanted(), now=call.now
    )
    return Silenced(found.sites, found.devices, found.episodes, found.incidents)


async def _contacts(call: Call, asked: Nothing) -> Page[ContactRow]:
    found = await contacts.listed(call.connection, await call.organisation())
    return Page([_contact_row(each) for each in found])


def _contact_row(each: contacts.Known) -> ContactRow:
    known = each.contact
    return ContactRow(
        *(each.ref, known.name, known.email, known.severity, known.time_zone, known.weekdays),
        *(known.since, known.until, known.digest),
    )


async def _rules(call: Call, asked: Nothing) -> RulesAnswer:
    return _rules_answer(await rulebook.current(call.connection, await call.organisation()))


def _rules_answer(known: rulebook.Version) -> RulesAnswer:
    rows = []
    for condition, default in DEFAULTS.items():
        rule = rule_of(known.rules, condition)
        differs = [
            name for name in rule.__struct_fields__ if getattr(rule, name) != getattr(default, name)
        ]
        rows.append(RuleRow(condition.value, rule, differs))
    channels = {each: list(channels_of(known.rules, each)) for each in Severity}
    return RulesAnswer(known.number, known.made_at, known.made_by, channels, rows)


async def _notices(call: Call, asked: NoticeListing) -> Page[NoticeRow]:
    before = None if asked.cursor is None else int(read_cursor(asked)[1])
    rows = await notices.listed(
        call.connection, dead=asked.dead, before=before, limit=asked.limit + 1
    )
    more, rows = len(rows) > asked.limit, rows[: asked.limit]
    return Page(
        [NoticeRow(*row.values()) for row in rows],
        write_cursor(asked, ("", rows[-1]["id"])) if more else None,
    )


# -- acting ----------------------------------------------------------------------------------------


async def _add_window(act: Act, body: NewWindow) -> WindowRow:
    made = await windows.add(act.connection, act.organisation, body.wanted(), **act.by)
    return _window_row(made)


async def _end_window(act: Act) -> WindowRow:
    return _window_row(await windows.end(act.connection, act.organisation, act.ref, **act.by))


async def _add_contact(act: Act, body: NewContact) -> ContactRow:
    wanted = Contact(**msgspec.structs.asdict(body))
    return _contact_row(await contacts.add(act.connection, act.organisation, wanted, **act.by))


async def _remove_contact(act: Act) -> ContactRow:
    return _contact_row(await contacts.remove(act.connection, act.organisation, act.ref, **act.by))


async def _change_rules(act: Act, body: RulesWrite) -> RulesAnswer:
    wanted = Rules(body.conditions, body.channels)
    made = await rulebook.change(act.connection, act.organisation, wanted, seen=body.seen, **act.by)
    return _rules_answer(made)


ROUTES: tuple[Route, ...] = (
    Route(
        *("/health-windows", "Windows of silence", WindowListing, Page[WindowRow], WindowRow),
        _windows,
    ),
    Route(
        *("/health-windows:preview", "What a window would silence", Nothing, Silenced, None),
        _preview,
        method="POST",
        body=NewWindow,
    ),
    Route("/health-contacts", "Who is told by mail", Nothing, Page[ContactRow], None, _contacts),
    Route("/health-rules", "The rules that hold", Nothing, RulesAnswer, None, _rules),
    Route(
        *("/notices", "Mail about incidents", NoticeListing, Page[NoticeRow], NoticeRow, _notices)
    ),
)
ACTS: tuple[ActRoute, ...] = written(
    WRITE,
    ActRoute(
        "POST", "/health-windows", "Begin a window of silence", WindowRow, _add_window, NewWindow
    ),
    ActRoute("DELETE", "/health-windows/{ref}", "End a window", WindowRow, _end_window),
    ActRoute("POST", "/health-contacts", "Add a contact", ContactRow, _add_contact, NewContact),
    ActRoute("DELETE", "/health-contacts/{ref}", "Forget a contact", ContactRow, _remove_contact),
    ActRoute("PUT", "/health-rules", "Change the rules", RulesAnswer, _change_rules, RulesWrite),
)
