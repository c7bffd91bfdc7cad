"""What was set from afar: kept on disk, put into force, and tried first where it may cut us off.

`settings.json` holds all of it and is replaced whole: which version was dealt with, what is set
({key: [value, number]}), what was refused ({key: [number, code]}), and a trial. What is not set
is as the settings file has it. Over a power cut at any moment:

1. Nothing is put into force before it is on disk, refused values never.
2. A value that may cut us off (`protocol.settings`) is written down as a trial, beside the value
   before, which stays the one that a start takes.
3. Once the server was reached with it, one replacement makes it the value that is set.
4. A start that finds a trial ends it: the value before is in force, and the trial counts as
   reverted. So does one whose time is over. The same writing of a value is tried once.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from agent import identity
from protocol.settings import TABLE, Code, SettingError, Value, address_of, checked
from protocol.state import Answer

FILE = "settings.json"
UNSET = 0
"""The number of a trial of what nobody has set any more."""
Numbered = tuple[Value, int]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """A value that is tried, or None: our own again; and the number of its writing."""

    key: str
    value: Value | None
    number: int


@dataclass(frozen=True, slots=True)
class Kept:
    """The contents of the file."""

    version: int = 0
    set: Mapping[str, Numbered] = field(default_factory=dict)
    refused: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    trial: Trial | None = None

    def without(self, code: str) -> "Kept":
        """Return it after its trial has failed."""
        if self.trial is None:
            return self
        refused = {**self.refused, self.trial.key: (self.trial.number, code)}
        return replace(self, refused=refused, trial=None)

    def confirmed(self) -> "Kept":
        """Return it after its trial has succeeded."""
        if self.trial is None:
            return self
        now = {key: pair for key, pair in self.set.items() if key != self.trial.key}
        if self.trial.value is not None:
            now[self.trial.key] = (self.trial.value, self.trial.number)
        return replace(self, set=now, trial=None)


Fits = Callable[[Mapping[str, Value]], bool]


def taken(kept: Kept, answer: Answer, *, own: Mapping[str, Value], fits: Fits) -> Kept:
    """Return what is to be kept after an answer; a trial, if one is due, is in it.

    `fits`: whether these values, all together, can be in force on this device.
    """
    now: dict[str, Numbered] = {}
    refused: dict[str, tuple[int, str]] = {}
    trial = None
    for key in own:
        before, pair = kept.set.get(key), answer.settings.get(key)
        if TABLE[key].cuts and _value(before) != _value(pair):
            number = UNSET if pair is None else pair[1]
            if before is not None:
                now[key] = before
            if key in kept.refused and kept.refused[key][0] == number:
                refused[key] = kept.refused[key]
            elif code := _wrong(key, pair):
                refused[key] = (number, code)
            else:
                trial = trial or Trial(key, _value(pair), number)
        elif pair is not None:
            code = _wrong(key, pair)
            if not code and not fits(_values(own, now) | {key: pair[0]}):
                code = Code.DOES_NOT_FIT
            if not code:
                now[key] = pair
                continue
            refused[key] = (pair[1], code)
            if before is not None and fits(_values(own, now) | {key: before[0]}):
                now[key] = before
    return Kept(answer.version, now, refused, trial)


def _value(pair: Numbered | None) -> Value | None:
    return None if pair is None else pair[0]


def _wrong(key: str, pair: Numbered | None) -> str:
    """Return why a value can't be taken, empty if it can."""
    try:
        if pair is not None:
            checked(key, pair[0])
    except SettingError as error:
        return error.code.value
    return ""


def _values(own: Mapping[str, Value], now: Mapping[str, Numbered]) -> dict[str, Value]:
    return {**own, **{key: pair[0] for key, pair in now.items() if key in own}}


class Settings:
    """What is set for this device; `own` is what its settings file says of each."""

    def __init__(
        self,
        state: Path,
        *,
        own: Mapping[str, Value],
        fits: Fits,
        apply: Callable[[Mapping[str, Value]], None],
    ) -> None:
        """Take what was kept; `apply` puts values into force: those that differ."""
        self._path = state / FILE
        self._own = dict(own)
        self._fits = fits
        self._apply = apply
        kept = read(self._path)
        self.reverted = 0
        if kept.trial is not None:  # 4
            log.error("a trial did not end: the value before stays", setting=kept.trial.key)
            self.reverted += 1
            kept = kept.without(Code.REVERTED)
            self._write(kept)
        self.kept = kept
        self._in_force = dict(own)
        self._put_into_force()

    @property
    def in_force(self) -> Mapping[str, Value]:
        """Every setting's value that counts now; of a trial, the one before."""
        return self._in_force

    def take(self, answer: Answer) -> Trial | None:
        """Keep what an answer says and put it into force; return what is to be tried."""
        kept = taken(self.kept, answer, own=self._own, fits=self._fits)
        if kept != self.kept:
            self._write(kept)  # 1, 2
            self.kept = kept
            self._put_into_force()
        return kept.trial

    def confirm(self) -> None:
        """The server was reached with the value that is tried."""
        kept = self.kept.confirmed()
        self._write(kept)  # 3
        self.kept = kept
        self._put_into_force()

    def revert(self) -> None:
        """The trial's time is over."""
        self.kept = self.kept.without(Code.REVERTED)  # whatever becomes of the disk
        self.reverted += 1
        self._write(self.kept)  # 4

    def _put_into_force(self) -> None:
        values = _values(self._own, self.kept.set)
        differ = {key: value for key, value in values.items() if value != self._in_force[key]}
        if differ:
            self._in_force = values
            self._apply(differ)
            log.info("settings in force", **differ)

    def _write(self, kept: Kept) -> None:
        identity.put(self._path, written(kept))


def written(kept: Kept) -> bytes:
    """Return the file's contents."""
    trial = kept.trial
    return json.dumps(
        {
            "version": kept.version,
            "set": {key: list(pair) for key, pair in kept.set.items()},
            "refused": {key: list(pair) for key, pair in kept.refused.items()},
            "trial": None if trial is None else [trial.key, trial.value, trial.number],
        }
    ).encode()


def read(path: Path) -> Kept:
    """Return what the file holds; nothing if it is not there or can't be read."""
    try:
        said = json.loads(path.read_bytes())
        trial = said["trial"]
        return Kept(
            int(said["version"]),
            {
                key: (checked(key, pair[0]), int(pair[1]))
                for key, pair in said["set"].items()
                if key in TABLE
            },
            {key: (int(pair[0]), str(pair[1])) for key, pair in said["refused"].items()},
            None if trial is None else Trial(str(trial[0]), trial[1], int(trial[2])),
        )
    except FileNotFoundError:
        return Kept()
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        log.error("kept settings not read: they are asked for anew", error=str(error))
        return Kept()


def broker(state: Path) -> tuple[str, int] | None:
    """Return the broker's address that is set, None: the one that the device was enrolled with."""
    pair = read(state / FILE).set.get("broker")
    return None if pair is None else address_of("broker", str(pair[0]))
