"""Rollouts as tables and sentences for a terminal."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from server.firmware.change import SettingsChange
from server.firmware.drafting import Told
from server.firmware.freezes import Freeze
from server.firmware.life import Counters
from server.firmware.members import Explained, Member
from server.firmware.reads import Bundle, CountedWave, Failure, Happened, Line, One, WaveNow
from server.firmware.standing import Standing
from server.firmware.waves import State, WaveKind

_COLOURS = {
    State.RUNNING: "cyan",
    State.COMPLETED: "green",
    State.COMPLETED_WITH_STRAGGLERS: "green",
    State.PAUSED: "yellow",
    State.HALTED: "red",
    State.REVERTING: "red",
    State.REVERTED: "red",
}
MOST_SITES = 10


def said_of(change: SettingsChange | None, questionnaire: str | None) -> str:
    """Return what a rollout brings that is no bundle; of nothing, that it is a way back."""
    if change is None:
        return questionnaire or "way back"
    values = ", ".join(f"{key} {value}" for key, value in change.values.items())
    where = f"{change.scope} {change.of}".strip()
    return f"{values} ({where})"


def _number(number: int, thing: str) -> str:
    """Return a number of things: `1 device`, `2 devices`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def plan(told: Told, bundle: Bundle | None, change: SettingsChange | None) -> RenderableType:
    """Return a plan: who, when, who not and why, and what it takes."""
    return Group(
        *_payload(bundle, change),
        Text(f"{_number(told.devices, 'device')} at {_number(told.sites, 'site')}, "
             f"{_size(told.bytes)} in all; done at the soonest {_when(told.done_at)}",
             style="bold"),
        _table(
            "waves",
            ("wave", "devices", "fetched", "opens at the soonest", "done at the soonest"),
            [
                (w.number, w.devices, _size(w.bytes), _when(w.opens_at), _when(w.done_at))
                for w in told.waves
            ],
        ),
        *_left_out(told),
        *_beside(told),
        Text(_detects(told)),
        *(Text(f"its author may not approve it: {why}") for why in told.second_person),
    )  # fmt: skip


def _payload(bundle: Bundle | None, change: SettingsChange | None) -> Iterator[Text]:
    if change is not None:
        yield Text(f"settings: {said_of(change, None)}")
    for part in () if bundle is None else bundle.parts:
        since = f", from {part.requires} on" if part.requires else ""
        yield Text(f"{part.component} {part.version}{since}, {_size(part.bytes)}, "
                   f"never below {part.floor} after it")  # fmt: skip


def _left_out(told: Told) -> Iterator[RenderableType]:
    if told.reasons:
        named = [(each.device, each.why, each.text) for each in told.excluded]
        yield _table("left out", ("why", "devices"), told.reasons.items())
        yield _table("left out, by name", ("device", "why", "that is"), named)


def _beside(told: Told) -> Iterator[Text]:
    """What comes first, what cannot be taken back, and which rollouts are in the way."""
    for leg in told.legs:
        yield Text(
            f"comes first, for {_number(leg.devices, 'device')}: {leg.component} {leg.version}"
        )
    for way in told.one_way:
        yield Text(f"no way back for {_number(way.devices, 'device')} that "
                   f"run{'s' if way.devices == 1 else ''} {way.component} "
                   f"{', '.join(way.versions)}: {way.version} raises the floor to {way.floor}",
                   style="red")  # fmt: skip
    for held in told.conflicts:
        yield Text(f"{held.rollout} has devices in hand: {held.left_out} left out here, "
                   f"{held.taken} taken from it")  # fmt: skip
    for wants in told.pending:
        yield Text(f"{wants.rollout} waits to start, and wants {wants.devices} of these devices")


def _detects(told: Told) -> str:
    found = told.detects
    if found is None:
        return f"the counts guard would find no loss: {told.detects_nothing}"
    return (
        f"within {found.looks} days the counts guard finds a loss of {found.loss_90:.1%} in 90 % "
        f"of rollouts such as this, {found.loss_80:.1%} in 80 % ({found.updated} updated doors "
        f"beside {found.control})"
    )


def bundles(found: Sequence[Bundle]) -> RenderableType:
    """Return bundles, one a row."""
    rows = [
        (
            *(each.ref, each.name, ", ".join(f"{p.component} {p.version}" for p in each.parts)),
            *(_size(each.bytes), _when(each.created_at), "" if each.fit else "withdrawn"),
        )
        for each in found
    ]
    return _table("bundles", ("bundle", "name", "releases", "size", "made", ""), rows)


def lines(found: Sequence[Line]) -> RenderableType:
    """Return rollouts, one a row."""
    table = _table(
        "rollouts",
        (
            "rollout",
            "name",
            "state",
            "since",
            "wave",
            "devices",
            "confirmed",
            "failed",
            "rejected",
            "by",
        ),
        (),
    )
    for line in found:
        totals = line.totals
        wave = "" if line.wave is None else f"{line.wave} of {line.waves}"
        table.add_row(
            *(line.ref, line.name, _state(line.state), _when(line.since), wave),
            *(str(line.devices), str(totals.confirmed), str(totals.failed + totals.lost)),
            *(str(totals.rejected), line.author),
        )
    return table


def one(found: One, *, now: datetime) -> RenderableType:
    """Return a rollout as it stands."""
    line = found.line
    head = Text(f"{line.ref} {line.name}: ", style="bold")
    head.append(_state(line.state))
    head.append(f" since {_when(line.since)}{f', {line.reason}' if line.reason else ''}")
    people = f"by {line.author}, approved by {line.approver}" if line.approver else line.author
    parts: list[RenderableType] = [head]
    parts.append(Text(f"{line.bundle_name or said_of(line.settings, line.questionnaire)} {people}"))
    for said, other in (("takes back", line.reverses), ("taken back by", line.reversed_by)):
        if other is not None:
            parts.append(Text(f"{said} {other}"))
    if found.waves:
        parts.append(_waves(found.waves))
    if found.funnel:
        funnel = ", ".join(f"{number} {state.value}" for state, number in found.funnel.items())
        parts.append(Text(f"devices: {funnel}"))
    if found.guards:
        parts.append(_guards(found.guards))
    parts += [Text(_counted(each, found.counted_at)) for each in found.counted]
    if found.failures:
        parts.append(_failures(found.failures))
    parts += _sites(found)
    if found.next_window is not None:
        parts.append(Text(_window(found, now=now)))
    if found.acts:
        parts.append(Text(f"may follow: {', '.join(act.value for act in found.acts)}"))
    return Group(*parts)


def sentence(found: One, *, now: datetime) -> Text:
    """Return how a rollout stands in one line."""
    line, totals = found.line, found.line.totals
    said = Text(f"{now:%F %T} {line.ref} ")
    said.append(_state(line.state))
    if line.wave is not None:
        said.append(f", wave {line.wave} of {line.waves}")
    said.append(
        f": {totals.confirmed} of {line.devices} confirmed, {totals.flying} under way, "
        f"{totals.failed} failed, {totals.lost} lost, {totals.rejected} rejected"
    )
    if line.reason:
        said.append(f" ({line.reason})")
    return said


def ending(found: One) -> Text:
    """Return what is to be done about how it ended, if anything."""
    line = found.line
    match line.state:
        case State.HALTED:
            said = f"halted: vestibule rollout resume|revert|cancel {line.ref} --reason …"
        case State.COMPLETED_WITH_STRAGGLERS:
            said = _unmet(line.totals)
        case _:
            said = f"{line.state.value} at {_when(line.since)}"
    return Text(said, style=_COLOURS.get(line.state, ""))


def _unmet(totals: Counters) -> str:
    """Return why a rollout that has completed did not reach everybody."""
    parts = [
        f"{_number(number, 'device')} {said}"
        for number, said in (
            (totals.unreachable, "never appeared"),
            (totals.rejected, "rejected it"),
        )
        if number
    ]
    if not totals.confirmed:
        parts.append("nobody has confirmed it")
    return ", ".join(parts)


def _waves(waves: Iterable[WaveNow]) -> Table:
    rows = []
    for each in waves:
        wave, total, gate = each.wave, each.wave.total, each.passing
        if wave.kind is not WaveKind.WAVE and not wave.size:
            continue
        name = str(wave.number) if wave.kind is WaveKind.WAVE else wave.kind.value
        passes = ""
        if gate is not None:
            share = "-" if gate.share is None else f"{gate.share:g}"
            passes = f"{share} of {gate.share_needed:g} %, {gate.sample} of {gate.sample_needed}"
        soaks = "" if gate is None or gate.soaked_at is None else _when(gate.soaked_at)
        rows.append(
            (
                *(name, wave.state.value, wave.size, total.attempted, total.flying),
                *(total.confirmed, total.failed, total.lost, wave.remaining, passes, soaks),
            )
        )
    columns = (
        *("wave", "state", "devices", "attempted", "under way", "confirmed", "failed", "lost"),
        *("left", "gate", "soaked at"),
    )
    return _table("waves", columns, rows)


def _guards(guards: Iterable[Standing]) -> Table:
    rows = [
        (
            *("all" if each.wave is None else each.wave, each.guard.value),
            *(f"{each.found:g}", f"{each.limit:g}"),
            "halts"
            if each.tripped
            else f"judged after {each.missing} more"
            if each.missing
            else "",
        )
        for each in guards
    ]
    return _table("guards", ("wave", "guard", "found", "halts at", ""), rows)


def _counted(each: CountedWave, at: datetime | None) -> str:
    said = f"counts of wave {each.wave}, looked at {_when(at)}: {each.verdict}"
    if each.effect is not None and each.low is not None and each.high is not None:
        said += (
            f", updated doors count {each.effect:+.1%} ({each.low:+.1%} to {each.high:+.1%}; "
            f"{each.updated} beside {each.control}, day {each.look})"
        )
    return f"{said}{f': {each.why}' if each.why else ''}"


def _failures(failures: Iterable[Failure]) -> Table:
    rows = [
        (
            "tried again" if each.state.value == "planned" else each.state.value,
            *(each.kind, each.code, each.number, _when(each.latest_at)),
            *(", ".join(each.devices), each.said),
        )
        for each in failures
    ]
    columns = ("how", "class", "code", "devices", "latest", "such as", "said")
    return _table("failures", columns, rows)


def _sites(found: One) -> list[RenderableType]:
    affected = [each for each in found.sites if each.failed or each.flying][:MOST_SITES]
    if not affected:
        return []
    rows = [(s.ref, s.name, s.of, s.flying, s.confirmed, s.failed) for s in affected]
    columns = ("site", "name", "devices", "under way", "confirmed", "failed")
    return [_table(f"sites, {found.sites_in_all} in all", columns, rows)]


def _window(found: One, *, now: datetime) -> str:
    window = found.next_window
    assert window is not None
    never = f"; {window.never} have none" if window.never else ""
    if window.open_now:
        return f"{window.open_now} of {window.sites} sites may install now{never}"
    if window.opens is None:
        return f"none of {window.sites} sites has a window"
    minutes = round((window.opens - now).total_seconds() / 60)
    wait = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    return f"the next window opens in {wait}, {_when(window.opens)} to {_when(window.until)}{never}"


def why(found: Explained) -> RenderableType:
    """Return why a device waits, the nearest reason first."""
    rows = [
        (each.reason.value, each.text, "" if each.until is None else _when(each.until))
        for each in found.reasons
    ]
    return _table(f"{found.device} in {found.rollout}", ("reason", "that is", "until"), rows)


def devices(found: Sequence[Member]) -> RenderableType:
    """Return devices of a rollout, one a row."""
    rows = [
        (
            *(each.device, each.site_name or "", each.wave, each.state.value, each.attempt),
            " ".join(part for part in (each.kind, each.code, each.excluded) if part),
            *(_when(each.phase_at or each.offered_at), _when(each.ended_at)),
        )
        for each in found
    ]
    columns = ("device", "site", "wave", "state", "attempt", "why", "since", "ended")
    return _table("devices", columns, rows)


def history(found: Sequence[Happened]) -> RenderableType:
    """Return what happened, the latest first."""
    rows = [
        (
            *(_when(each.at), each.event, each.actor, each.reason),
            ", ".join(f"{name} {value}" for name, value in each.detail.items() if value != []),
        )
        for each in found
    ]
    return _table("history", ("at", "what", "by", "why", "that is"), rows)


def freezes(found: Sequence[Freeze]) -> RenderableType:
    """Return freezes, one a row."""
    rows = [
        (
            *(each.ref, each.name, _when(each.starts_at), _when(each.ends_at)),
            *(each.sites or "everywhere", each.reason, each.author),
            "" if each.ended_at is None else f"{_when(each.ended_at)} by {each.ended_by}",
        )
        for each in found
    ]
    columns = ("freeze", "name", "from", "until", "sites", "why", "by", "ended early")
    return _table("freezes", columns, rows)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    return table


def _state(state: State) -> Text:
    return Text(state.value, style=_COLOURS.get(state, ""))


def _when(at: datetime | None) -> str:
    return "-" if at is None else f"{at.astimezone(UTC):%F %R} UTC"


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError
