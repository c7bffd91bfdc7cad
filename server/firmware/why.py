"""Why a device does not run what a rollout brings it: what holds it back, and until when. Pure.

Decided here:
- All that holds a device back is said, in the order in which `granting` asks; the first is why it
  is not offered anything, or where it has got to. Those after it would hold it back next.
- A reason has a key, the time at which it ends by itself (None: not by itself), what it is about,
  and a sentence. Pages have sentences of their own under the same keys.
- Windows and freezes hold back installing, not fetching: they are said of whoever has not begun.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from server.firmware.joiners import Outlook
from server.firmware.life import FLYING, OPEN, REVOCABLE, Execution
from server.firmware.life import State as Stage
from server.firmware.policy import Policy
from server.firmware.waves import (
    ACTIVE,
    BEHIND,
    PREPARING,
    Payload,
    State,
    Wave,
    WaveKind,
    WaveState,
)
from server.firmware.windows import Night


class Reason(StrEnum):
    """What holds a device back, or how far it is."""

    NOT_IN_IT = "not_in_it"
    JOINS = "joins"
    EXCLUDED = "excluded"
    CONFIRMED = "confirmed"
    ENDED = "ended"
    NOT_APPROVED = "not_approved"
    SCHEDULED = "scheduled"
    PAUSED = "paused"
    HALTED = "halted"
    WITHDRAWN = "withdrawn"
    WAVE = "wave"
    RETRY = "retry"
    DEFERRED = "deferred"
    LAPSED = "lapsed"
    AWAY = "away"
    NEVER_HERE = "never_here"
    RATE = "rate"
    IN_FLIGHT = "in_flight"
    DOOR = "door"
    SITE = "site"
    REGION = "region"
    NEXT = "next"
    OFFERED = "offered"
    FETCHING = "fetching"
    READY = "ready"
    FROZEN = "frozen"
    WINDOW = "window"
    NO_WINDOW = "no_window"
    IDLE = "idle"
    INSTALLING = "installing"
    TRIAL = "trial"


Value = str | int


@dataclass(frozen=True, slots=True)
class Why:
    """One reason: its key, until when it holds if that is known, what it is about, a sentence."""

    reason: Reason
    text: str
    until: datetime | None = None
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Freeze:
    """A freeze that is on at the site, and its end."""

    ref: str
    name: str
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a device and of a rollout, now.

    `wave`: where it was planned; None: nowhere. `left_out`: why it is not in it, if so. `current`:
    the wave that must pass next. `offers`, `flying`: what the ramp has left, who is on the way.
    `at_door`, `at_site`: devices on their way there, of whatever rollout; `in_region`: how many of
    this one. `night`: the site's windows, None where it may install at any time, or stands nowhere.
    `outlook`: of one that takes no part in what is under way, whether it joins the tail by itself.
    """

    now: datetime
    rollout: State
    since: datetime
    policy: Policy
    said: str = ""
    starts_at: datetime | None = None
    execution: Execution | None = None
    wave: int | None = None
    waves: tuple[Wave, ...] = ()
    current: Wave | None = None
    left_out: str = ""
    payload: Payload = Payload.BUNDLE
    bytes: int = 0
    here: bool = True
    away_since: datetime | None = None
    offers: int = 1
    flying: int = 0
    at_door: tuple[str, ...] = ()
    at_site: tuple[str, ...] = ()
    in_region: int | None = None
    night: Night | None = None
    frozen: Freeze | None = None
    outlook: Outlook | None = None


def why(facts: Facts) -> tuple[Why, ...]:
    """Return what holds a device back, the first first; never nothing."""
    execution = facts.execution
    left_out = facts.left_out or (execution is not None and execution.state is Stage.EXCLUDED)
    none = execution is None and facts.wave is None
    if facts.outlook is not None and facts.outlook.joins and (left_out or none):
        return (_joins(facts), *_contact(facts))
    if left_out:
        said = facts.left_out or (execution.code if execution else "")
        said = facts.outlook.text if facts.outlook is not None else said
        return (Why(Reason.EXCLUDED, f"It is left out: {said}.", values={"why": said}),)
    if execution is not None and execution.state not in OPEN:
        return (_ended(execution),)
    if none:
        said = f": {facts.outlook.text}" if facts.outlook is not None else ""
        return (Why(Reason.NOT_IN_IT, f"It is not in this rollout{said}."),)
    if execution is not None and execution.state in FLYING:
        return (_step(execution, facts), *_contact(facts), *_night(execution, facts))
    found = (*_rollout(facts), *_turn(facts), *_contact(facts), *_room(facts))
    if not found and not _shut(facts):
        found = (Why(Reason.NEXT, "Nothing holds it back: it is offered at the next look."),)
    return (*found, *_night(execution, facts))


def _shut(facts: Facts) -> bool:
    """Whether its site has no window soon enough to be offered anything yet."""
    if facts.night is None:
        return facts.frozen is not None and not facts.policy.override_freezes
    ahead = timedelta(seconds=facts.policy.ahead_s if facts.payload is Payload.BUNDLE else 0)
    opens = _opens(facts)
    return not facts.night.windows or (opens is not None and opens - ahead > facts.now)


def _joins(facts: Facts) -> Why:
    when = "at the next look"
    if facts.rollout is not State.RUNNING:
        when = f"once the rollout, which is {facts.rollout.value}, goes on"
    return Why(Reason.JOINS, f"It fits by now: it joins the tail {when}.")


# -- how far it is ---------------------------------------------------------------------------------


def _ended(execution: Execution) -> Why:
    state, until = execution.state, execution.ended_at
    if state is Stage.CONFIRMED:
        return Why(Reason.CONFIRMED, f"It runs it, as it confirmed at {_at(until)}.")
    cause = " ".join(part for part in (execution.kind, execution.code) if part)
    values: dict[str, Value] = {
        "state": state.value,
        "class": execution.kind,
        "code": execution.code,
        "attempt": execution.attempt,
    }
    said = f"It ended as {state.value} at {_at(until)}"
    tried = f", in attempt {execution.attempt}" if execution.attempt > 1 else ""
    return Why(Reason.ENDED, f"{said}{tried}{f': {cause}' if cause else ''}.", values=values)


def _step(execution: Execution, facts: Facts) -> Why:
    since = execution.phase_at or execution.offered_at
    match execution.state:
        case Stage.OFFERED:
            text = f"It was offered at {_at(execution.offered_at)} and has not answered yet."
            return Why(Reason.OFFERED, text, execution.due_at)
        case Stage.ACCEPTED if facts.payload is not Payload.BUNDLE:
            text = f"It was told at {_at(since)} and has not said yet what became of it."
            return Why(Reason.OFFERED, text, execution.due_at)
        case Stage.ACCEPTED | Stage.DOWNLOADING:
            values: dict[str, Value] = {"bytes": execution.bytes, "of": facts.bytes}
            text = f"It fetches: {execution.bytes} of {facts.bytes} bytes at {_at(since)}."
            return Why(Reason.FETCHING, text, values=values)
        case Stage.READY:
            return Why(Reason.READY, f"It has fetched and checked everything by {_at(since)}.")
        case Stage.WAITING_WINDOW:
            opens = _opens(facts)
            text = "It waits for its site's next window"
            return Why(Reason.WINDOW, f"{text}{f', from {_at(opens)}' if opens else ''}.", opens)
        case Stage.WAITING_IDLE:
            limit = (since or facts.now) + timedelta(seconds=facts.policy.device.delay_s)
            if execution.deferred_at is not None:
                text = f"It asked to be left alone at {_at(execution.deferred_at)}"
                return Why(Reason.DEFERRED, f"{text}, at most until {_at(limit)}.", limit)
            text = f"It waits until nobody uses it, at most until {_at(limit)}."
            return Why(Reason.IDLE, text, limit)
        case Stage.INSTALLING | Stage.REBOOTING:
            return Why(Reason.INSTALLING, f"It installs, since {_at(since)}.")
        case Stage.TRIAL:
            return Why(Reason.TRIAL, f"It tries the new version, since {_at(since)}.")
        case _:
            raise ValueError(f"{execution.state.value} is not on its way")


# -- what holds it back ----------------------------------------------------------------------------


def _rollout(facts: Facts) -> Iterator[Why]:
    state, since = facts.rollout, _at(facts.since)
    said = f": {facts.said}" if facts.said else ""
    match state:
        case State.DRAFT | State.PLANNED | State.AWAITING_APPROVAL:
            yield Why(
                Reason.NOT_APPROVED,
                f"The rollout is {state.value}, since {since}: nobody has approved it.",
                values={"state": state.value},
            )
        case State.SCHEDULED:
            begins = _at(facts.starts_at) if facts.starts_at else "soon"
            yield Why(Reason.SCHEDULED, f"The rollout begins {begins}.", facts.starts_at)
        case State.PAUSED:
            yield Why(Reason.PAUSED, f"The rollout is paused, since {since}{said}.")
        case State.HALTED:
            yield Why(Reason.HALTED, f"The rollout has halted, at {since}{said}.")
        case State.RUNNING:
            return
        case _:
            yield Why(
                Reason.WITHDRAWN,
                f"The rollout is {state.value}, since {since}{said}.",
                values={"state": state.value},
            )


def _turn(facts: Facts) -> Iterator[Why]:
    if facts.rollout not in PREPARING:
        yield from _wave(facts)
    execution = facts.execution
    due = None if execution is None else execution.due_at
    if execution is None or due is None or due <= facts.now:
        return
    values: dict[str, Value] = {"attempt": execution.attempt, "code": execution.code}
    if execution.kind:
        values["class"] = execution.kind
        cause = " ".join(part for part in (execution.kind, execution.code) if part)
        text = f"Attempt {execution.attempt - 1} failed ({cause}); the next is from {_at(due)} on."
        yield Why(Reason.RETRY, text, due, values)
    elif execution.offered_at is not None:
        text = f"It did not answer an offer; it is offered again from {_at(due)} on."
        yield Why(Reason.LAPSED, text, due, values)


def _wave(facts: Facts) -> Iterator[Why]:
    own = next((each for each in facts.waves if each.number == facts.wave), None)
    if own is None or own.state in ACTIVE or own.state in BEHIND:
        return
    name = "the tail" if own.kind is WaveKind.TAIL else f"wave {own.number}"
    values: dict[str, Value] = {"wave": own.number}
    now = facts.current
    if own.state is WaveState.FAILED:
        yield Why(Reason.WAVE, f"It is in {name}, which has failed.", values=values)
        return
    if now is None or now.number == own.number:
        yield Why(Reason.WAVE, f"It is in {name}, which opens next.", values=values)
        return
    values |= {"before": now.number, "state": now.state.value}
    ends = None
    if now.met_at is not None and now.state is WaveState.SOAKING:
        ends = now.met_at + timedelta(seconds=facts.policy.gate.soak_s)
    soaks = f" until {_at(ends)}" if ends else ""
    yield Why(
        Reason.WAVE,
        f"It is in {name}; wave {now.number} is {now.state.value}{soaks}.",
        ends if now.number == own.number - 1 else None,
        values,
    )


def _contact(facts: Facts) -> Iterator[Why]:
    if facts.here:
        return
    if facts.away_since is None:
        yield Why(Reason.NEVER_HERE, "It has never connected.")
    else:
        yield Why(Reason.AWAY, f"It is offline, last heard of at {_at(facts.away_since)}.")


def _room(facts: Facts) -> Iterator[Why]:
    if facts.rollout is not State.RUNNING:
        return
    caps = facts.policy.caps
    if facts.offers < 1:
        yield Why(Reason.RATE, "The ramp has no offer left just now; it fills by the minute.")
    if facts.flying >= caps.in_flight:
        text = f"{facts.flying} devices are on their way, {caps.in_flight} at once at most."
        yield Why(Reason.IN_FLIGHT, text, values={"flying": facts.flying, "limit": caps.in_flight})
    if facts.at_door:
        text = f"{facts.at_door[0]} at the same entrance is on its way."
        yield Why(Reason.DOOR, text, values={"device": facts.at_door[0]})
    if len(facts.at_site) >= caps.site:
        named = ", ".join(facts.at_site[:3])
        text = f"{named} at the same site: on the way, {caps.site} at once at most."
        yield Why(Reason.SITE, text, values={"device": named, "limit": caps.site})
    if caps.region is not None and (facts.in_region or 0) >= caps.region:
        text = f"{facts.in_region} devices in its region are on their way, {caps.region} at most."
        yield Why(Reason.REGION, text, values={"limit": caps.region})


def _night(execution: Execution | None, facts: Facts) -> Iterator[Why]:
    """Say what holds back installing, of whoever has not begun to."""
    if execution is not None and execution.state not in REVOCABLE | {Stage.PLANNED}:
        return
    frozen = facts.frozen
    if frozen is not None and not facts.policy.override_freezes:
        text = f"Nothing is installed before the end of {frozen.name!r} at {_at(frozen.until)}."
        yield Why(Reason.FROZEN, text, frozen.until, {"freeze": frozen.ref, "name": frozen.name})
    if facts.night is None:
        return
    if not facts.night.windows:
        said = "" if facts.night.why is None else facts.night.why.value
        yield Why(Reason.NO_WINDOW, f"Its site has no window: {said}.", values={"why": said})
    elif execution is None or execution.state is not Stage.WAITING_WINDOW:
        opens = _opens(facts)
        if opens is not None:
            yield Why(Reason.WINDOW, f"Its site's next window opens at {_at(opens)}.", opens)


def _opens(facts: Facts) -> datetime | None:
    """Return when the next window opens; None if one is open, or there is none."""
    if facts.night is None or not facts.night.windows:
        return None
    opens = datetime.fromtimestamp(facts.night.windows[0][0], UTC)
    return opens if opens > facts.now else None


def _at(at: datetime | None) -> str:
    return "an unknown time" if at is None else f"{at:%Y-%m-%d %H:%M} UTC"
