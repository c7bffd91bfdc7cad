"""Why a device is said to be as it is, in the words of the catalogues. Pure.

The same facts as the API's sentence (`server.health.why`), as keys and values, so that a page says
them in its reader's language.
"""

from datetime import datetime

from server.health.presence import Presence, Session, State

Sentence = tuple[str, dict[str, object]]


def presence(known: Presence, *, judged_at: datetime | None) -> list[Sentence]:
    """Return the sentences that explain a presence, in the order of what decides."""
    if known.state is State.NEVER_SEEN or known.session_at is None:
        return [("ex_never", {})]
    found: list[Sentence] = []
    at = {"at": _at(known.session_at)}
    if known.session is Session.LOST:
        found.append(("ex_lost", dict(at)))
    elif known.session is Session.LEFT:
        found.append(("ex_left", {**at, "reason": known.reason or "–"}))
        if known.until is not None:
            found.append(("ex_left_until", {"at": _at(known.until)}))
    else:
        found.append(("ex_open", dict(at)))
    for moment, limit, said, silent in (
        (known.heartbeat_at, known.limits.heartbeat, "ex_beat", "ex_no_beat"),
        (known.data_at, known.limits.data, "ex_data", "ex_no_data"),
    ):
        if moment is None:
            found.append((silent, {}))
        else:
            minutes = round(limit.total_seconds() / 60)
            found.append((said, {"at": _at(moment), "minutes": minutes}))
    if judged_at is not None:
        found.append(("ex_judged", {"at": _at(judged_at)}))
    return found


def _at(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")
