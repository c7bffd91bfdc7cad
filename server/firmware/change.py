"""A change of settings as a rollout carries it, and what a device's own word makes of it. Pure.

Decided here:
- A change is of one layer (`server.desired.layers`): an organisation's, a model's, a site's, or, of
  whatever devices a filter finds, each device's own. It sets values; it takes none out.
- Nothing but what a device reports moves it on: that it has dealt with the version of its settings
  in which it was told so, and has these values in force. What it tried and went back from has
  reverted; what it refused has failed. All keys or none.
- A key of which a nearer layer says otherwise by now is none of the rollout's any more; with none
  left there is nothing to wait for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from protocol.settings import TABLE, Code, SettingError, Value, checked
from protocol.state import Report
from protocol.update import Class, Phase
from server.desired.layers import Entry, Merged, Scope
from server.firmware.waves import Payload
from server.fleet.checks import FieldError

NOTHING_LEFT = "nothing left"
_UNSET = 0  # the number that an agent gives to the trial of what nobody has set any more


class SettingsChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change of one layer of settings. `of` names the model or the site; else it is empty.

    Scope `device`: of each device that is found, its own layer.
    """

    values: dict[str, Value]
    scope: Literal["organisation", "model", "site", "device"] = "organisation"
    of: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that has been checked. `was`: what its layer said of each key when it was planned,
    value and number, None for nothing; of devices' own layers it is not known."""

    scope: Scope
    of: str
    values: Mapping[str, Value]
    was: Mapping[str, tuple[Value, int] | None]
    payload: Payload = Payload.SETTINGS

    def content(self) -> dict[str, object]:
        """Return what a rollout keeps."""
        return {
            "scope": self.scope.value,
            "of": self.of,
            "values": dict(self.values),
            "was": {key: None if pair is None else list(pair) for key, pair in self.was.items()},
        }

    def asked(self) -> SettingsChange:
        """Return it as it was asked for."""
        return msgspec.convert(
            {"values": dict(self.values), "scope": self.scope.value, "of": self.of}, SettingsChange
        )

    def number(self, began_ms: int, attempt: int) -> int:
        """Return the number of its writing: later than the layer's, and with each attempt."""
        before = [pair[1] + 1 for pair in self.was.values() if pair is not None]
        return max([began_ms, *before]) + attempt - 1

    def entries(self, number: int, *, at: float, by: str) -> dict[str, Entry]:
        """Return what it lays over its layer."""
        return {key: Entry(value, number, at, by) for key, value in self.values.items()}


def checked_change(asked: SettingsChange) -> Change:
    """Return a change whose layer nobody has looked at yet. Raises FieldError."""
    scope = Scope(asked.scope)
    if bool(asked.of) is not (scope in (Scope.MODEL, Scope.SITE)):
        raise FieldError("settings.of", "name the model or the site, and nothing else")
    if not asked.values:
        raise FieldError("settings.values", "name at least one setting")
    try:
        values = {key: checked(key, value) for key, value in asked.values.items()}
    except SettingError as error:
        raise FieldError(f"settings.values.{error.key}", str(error)) from error
    ordered = {key: values[key] for key in TABLE if key in values}
    return Change(scope, asked.of, ordered, {})


def read_settings(text: str | bytes) -> SettingsChange:
    """Return the change that JSON asks for. Raises FieldError."""
    try:
        return msgspec.json.decode(text, type=SettingsChange)
    except msgspec.DecodeError as error:  # ValidationError among them
        raise FieldError("settings", str(error)) from error


def read_change(content: Mapping[str, object]) -> Change:
    """Return the change that a rollout keeps."""
    kept = msgspec.convert(content, type=_Kept)
    return Change(kept.scope, kept.of, kept.values, kept.was)


class _Kept(msgspec.Struct):
    scope: Scope
    of: str
    values: dict[str, Value]
    was: dict[str, tuple[Value, int] | None]


# -- what a device makes of it ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended at a device: as a step says it, or that nothing of it is wanted there."""

    phase: Phase | None
    code: str = ""
    kind: Class | None = None
    about: str = ""


def decides(change: Change, settings: Mapping[str, Merged], by: str) -> list[str]:
    """Return the keys of which what `by` has written is what the device gets."""
    here = {key: settings[key].here.entry for key in change.values if key in settings}
    return [key for key, entry in here.items() if entry is not None and entry.by == by]


def judged(
    change: Change, settings: Mapping[str, Merged], report: Report, *, by: str
) -> Outcome | None:
    """Return how it ended at a device that has dealt with all that it was told; None: it has not.

    `settings`: what it was told; `by`: the rollout; empty: it goes back to what it had before.
    """
    keys = [key for key in change.values if key in settings]
    keys = decides(change, settings, by) if by else keys
    if not keys:
        return Outcome(None, NOTHING_LEFT)
    ended = [_of_key(key, settings[key], report) for key in keys]
    bad = [each for each in ended if each is not None and each.phase is not Phase.CONFIRMED]
    if bad:
        return bad[0]
    return None if None in ended else Outcome(Phase.CONFIRMED)


def _of_key(key: str, merged: Merged, report: Report) -> Outcome | None:
    wanted = merged.wanted
    if key not in report.known:
        if wanted is None:
            return Outcome(Phase.CONFIRMED)
        return Outcome(Phase.REJECTED, Code.UNKNOWN.value, Class.REFUSED, key)
    number, code = report.refused.get(key, (-1, ""))
    if number == (_UNSET if wanted is None else wanted[1]):
        if code == Code.REVERTED:
            return Outcome(Phase.REVERTED, code, Class.TIMEOUT, key)
        return Outcome(Phase.FAILED, code or Code.BAD_VALUE.value, Class.REFUSED, key)
    if wanted is None or report.values.get(key) == wanted[0]:
        return Outcome(Phase.CONFIRMED)
    return None
