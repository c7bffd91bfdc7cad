"""Layers of settings: which value a device gets, why this one, and what became of it. Pure.

Of several layers that say something of a setting the nearest to the device counts: the device's
own, then its site's, its organisation's, its model's, then the default. A value that is refused
never enters a layer (`checked_edit`), so a merge cannot fail.

Invariants:
- `merged` depends on the layers alone, not on the order in which they come.
- A device that has all of `delta` put into force has what is wanted.
- An overlay is what a rollout lays over a layer for one device: there the later writing counts.
- Of a setting's states `pending` and `in sync` follow from the device's last report; nothing here
  is taken back because time has passed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.settings import TABLE, Value, checked
from protocol.state import Report


class Scope(StrEnum):
    """Whose a layer is; a later one counts before an earlier."""

    DEFAULT = "default"
    MODEL = "model"
    ORGANISATION = "organisation"
    SITE = "site"
    DEVICE = "device"


ORDER = tuple(Scope)


class Standing(StrEnum):
    """What became of a setting at its device."""

    IN_SYNC = "in sync"
    PENDING = "pending"
    REFUSED = "refused"
    UNSUPPORTED = "unsupported"
    DRIFTED = "drifted"


@dataclass(frozen=True, slots=True)
class Entry:
    """A value in a layer; `number` is its writing's, `at` in seconds of UTC."""

    value: Value
    number: int
    at: float
    by: str


@dataclass(frozen=True, slots=True)
class Layer:
    """What one place says; `of` names it: a model, an organisation, a site, a device."""

    scope: Scope
    of: str
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Overlay:
    """What a rollout makes a layer say for one device, before it says so for all."""

    scope: Scope
    of: str
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Source:
    """A value, and where it comes from; the default has no entry."""

    value: Value
    scope: Scope
    of: str = ""
    entry: Entry | None = None


@dataclass(frozen=True, slots=True)
class Merged:
    """A setting's value for one device; `without`: what it would be without this layer."""

    key: str
    here: Source
    without: Source

    @property
    def wanted(self) -> tuple[Value, int] | None:
        """What the device is told: value and number; None where nobody has set it."""
        return None if self.here.entry is None else (self.here.value, self.here.entry.number)


@dataclass(frozen=True, slots=True)
class State:
    """A setting of a device: what is wanted and why, what the device has, and what became of it."""

    merged: Merged
    standing: Standing
    reported: Value | None
    code: str = ""


def overlaid(layers: Iterable[Layer], overlays: Iterable[Overlay]) -> list[Layer]:
    """Return a device's layers as they are for it; of two writings of a key the later counts."""
    found = {(layer.scope, layer.of): layer for layer in layers}
    for each in overlays:
        place = each.scope, each.of
        before = found[place].entries if place in found else {}
        later = {
            key: entry
            for key, entry in each.entries.items()
            if key not in before or before[key].number <= entry.number
        }
        found[place] = Layer(each.scope, each.of, {**before, **later})
    return list(found.values())


def merged(layers: Iterable[Layer], *, kind: str) -> dict[str, Merged]:
    """Return each setting that a `kind` of device has, by key, in the table's order."""
    ranked = sorted(layers, key=lambda layer: ORDER.index(layer.scope), reverse=True)
    found = {}
    for key, setting in TABLE.items():
        if kind not in setting.devices:
            continue
        sources = [
            Source(layer.entries[key].value, layer.scope, layer.of, layer.entries[key])
            for layer in ranked
            if key in layer.entries
        ]
        sources.append(Source(setting.default, Scope.DEFAULT))
        found[key] = Merged(key, sources[0], sources[min(1, len(sources) - 1)])
    return found


def wanted(settings: Mapping[str, Merged]) -> dict[str, tuple[Value, int]]:
    """Return what a device is told: all that somebody has set."""
    told = ((key, each.wanted) for key, each in settings.items())
    return {key: pair for key, pair in told if pair is not None}


def delta(wanted: Mapping[str, Value], reported: Mapping[str, Value]) -> dict[str, Value]:
    """Return what of `wanted` differs in, or is missing from, what a device reported."""
    return {
        key: value for key, value in wanted.items() if key not in reported or reported[key] != value
    }


def states(
    settings: Mapping[str, Merged], report: Report | None, *, dealt_with: bool
) -> dict[str, State]:
    """Return what became of each setting; `dealt_with`: the report answers what is wanted now."""
    return {key: _state(each, report, dealt_with) for key, each in settings.items()}


def _state(each: Merged, report: Report | None, dealt_with: bool) -> State:
    if report is None:
        return State(each, Standing.PENDING, None)
    told, has = each.wanted, report.values.get(each.key)
    if each.key not in report.known:
        unsupported = told is not None
        return State(each, Standing.UNSUPPORTED if unsupported else Standing.IN_SYNC, None)
    if told is None:  # its own settings file may say something else
        own = has is not None and has != each.here.value
        if not own:
            return State(each, Standing.IN_SYNC, has)
        return State(each, Standing.DRIFTED if dealt_with else Standing.PENDING, has)
    if has == told[0]:
        return State(each, Standing.IN_SYNC, has)
    number, code = report.refused.get(each.key, (-1, ""))
    if number == told[1]:
        return State(each, Standing.REFUSED, has, code)
    return State(each, Standing.DRIFTED if dealt_with else Standing.PENDING, has)


@dataclass(frozen=True, slots=True)
class Edit:
    """A layer's entries after an edit, and what it changed: key to what was and what is."""

    entries: dict[str, Entry]
    changes: dict[str, tuple[Value | None, Value | None]] = field(default_factory=dict)


def checked_edit(
    before: Mapping[str, Entry],
    values: Mapping[str, object],
    *,
    whole: bool,
    kind: str | None,
    by: str,
    at: float,
) -> Edit:
    """Return a layer's entries with `values` in them; None takes one out. Raises SettingError.

    `whole`: what is not among `values` is taken out; else a value that is given anew counts as
    written anew, so that a device that refused it tries again. `kind`: of a device's own layer.
    """
    number = max([round(at * 1000), *(entry.number + 1 for entry in before.values())])
    after = dict(before)
    for key in [key for key in before if whole and key not in values]:
        del after[key]
    for key, value in values.items():
        if value is None:
            if key not in TABLE:
                checked(key, value)  # which says that it is unknown
            after.pop(key, None)
            continue
        good = checked(key, value, kind=kind)
        if whole and key in before and before[key].value == good:
            continue
        after[key] = Entry(good, number, at, by)
    changes = {
        key: (_value(before, key), _value(after, key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    }
    return Edit(after, changes)


def _value(entries: Mapping[str, Entry], key: str) -> Value | None:
    return entries[key].value if key in entries else None
