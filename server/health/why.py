"""Why a device is called what it is called: one sentence from what is kept of it. Pure."""

from datetime import datetime, timedelta
from typing import assert_never

from server.health.platform import Cause
from server.health.presence import Presence, Session, State, planned_until

_CAUSES = {
    Cause.BEHIND: "the server has not heard itself since {since}",
    Cause.BROKER: "the broker was started again at {since}, and devices are coming back",
    Cause.UPLINK: "so many devices vanished together at {since} that it must be our own link",
}


def why(presence: Presence, *, now: datetime, unknown: tuple[Cause, datetime] | None = None) -> str:
    """Return the sentence; `unknown`: why and since when nobody can tell, if so."""
    sentence = _sentence(presence, now)
    if unknown is None:
        return sentence
    cause, since = unknown
    known = _CAUSES[cause].format(since=_at(since))
    return f"Nobody can tell just now: {known}. When it was last known: {sentence}"


def _sentence(presence: Presence, now: datetime) -> str:
    state, reason = presence.state, presence.reason
    session_at = presence.session_at or presence.since
    match state:
        case State.NEVER_SEEN:
            return f"It was registered at {_at(presence.since)} and has never connected."
        case State.HEALTHY:
            return f"Connected since {_at(session_at)}; {_signals(presence, now)}."
        case State.NO_HEARTBEAT:
            limit = _span(presence.limits.heartbeat)
            return (
                f"Its connection stands since {_at(session_at)}, but no health frame has come for "
                f"{_span(now - presence.since)}; {limit} is the limit."
            )
        case State.NO_DATA:
            limit = _span(presence.limits.data)
            return (
                f"Its connection stands, but nothing that it counted has come since "
                f"{_at(presence.since)}; {limit} of opening time is the limit."
            )
        case State.PLANNED:
            said = f" ({reason})" if reason else ""
            end = planned_until(presence)
            return f"It said goodbye at {_at(session_at)}{said}; it is missed from {_at(end)} on."
        case State.OFFLINE:
            if presence.session is Session.OPEN:
                return (
                    "It was connected to the broker until that was started again at "
                    f"{_at(presence.since)}, and has not come back."
                )
            if presence.session is Session.LEFT:
                return f"It said goodbye at {_at(session_at)} and has not come back in time."
            if reason == "not admitted":
                return f"It was thrown out at {_at(session_at)}: it is not admitted."
            if reason:
                return f"Its agent ended by a fault at {_at(session_at)} and has not come back."
            return f"Its connection was lost at {_at(session_at)} without a goodbye."
        case _ as never:
            assert_never(never)


def _signals(presence: Presence, now: datetime) -> str:
    beat, data = presence.heartbeat_at, presence.data_at
    said = "no heartbeat yet" if beat is None else f"heartbeat {_span(now - beat)} ago"
    counted = "nothing counted yet" if data is None else f"counts up to {_at(data)}"
    return f"{said}, {counted}"


def _at(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _span(span: timedelta) -> str:
    seconds = max(0, round(span.total_seconds()))
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}s"
    return "1 second" if seconds == 1 else f"{seconds} seconds"
