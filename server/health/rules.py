"""How long what must last, and who hears of it: rules as data, checked. Pure.

`DEFAULTS` are everyone's. An organisation's `Rules` say what differs, by condition; what they do
not name is as in the defaults. They are versioned: a change is another version, none is edited.
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from server.errors import RefusedError
from server.health.episodes import Pace
from server.health.judgement import Condition, Severity

_DAY_S = 86_400
_Span = Annotated[int, msgspec.Meta(ge=0, le=7 * _DAY_S)]
_Slow = Annotated[int, msgspec.Meta(ge=60, le=30 * _DAY_S)]
_Often = Annotated[int, msgspec.Meta(ge=2, le=100)]


class Hours(StrEnum):
    """When a message may be sent: while the site is open, or always."""

    OPEN = "open"
    ALWAYS = "always"


class Channel(StrEnum):
    """How somebody hears of an incident."""

    MAIL = "mail"  # at once, to contacts
    FEED = "feed"  # the feed of changes, and webhooks with it
    DIGEST = "digest"  # once a day, to contacts who want it


class RuleError(RefusedError):
    """Rules that contradict themselves."""

    def __init__(self, parameter: str, message: str) -> None:
        self.parameter = parameter
        super().__init__("bad_value", message)


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How one condition is dealt with; all in seconds.

    An episode opens once it has fired for `opens_after_s`, and resolves once clear for
    `clears_after_s`; it flaps once it fired `flap_times` within `flap_window_s`, until quiet for
    `flap_quiet_s`. Its incident's first message waits `wait_s`, changes are told `interval_s`
    apart, and what does not change again after `repeat_s`.
    """

    opens_after_s: int = 0
    clears_after_s: int = 60
    flap_times: int = 4
    flap_window_s: int = 3600
    flap_quiet_s: int = 1800
    wait_s: int = 120
    interval_s: int = 600
    repeat_s: int = 4 * 3600
    hours: Hours = Hours.OPEN
    severity: Severity = Severity.MAJOR

    @property
    def pace(self) -> Pace:
        """What episodes go by."""
        return Pace(
            timedelta(seconds=self.opens_after_s),
            timedelta(seconds=self.clears_after_s),
            self.flap_times,
            timedelta(seconds=self.flap_window_s),
            timedelta(seconds=self.flap_quiet_s),
        )

    @property
    def wait(self) -> timedelta:
        return timedelta(seconds=self.wait_s)

    @property
    def interval(self) -> timedelta:
        return timedelta(seconds=self.interval_s)

    @property
    def repeat(self) -> timedelta:
        return timedelta(seconds=self.repeat_s)


class RuleChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
                 omit_defaults=True):  # fmt: skip
    """What of one condition's rule differs from the default."""

    opens_after_s: _Span | UnsetType = UNSET
    clears_after_s: _Span | UnsetType = UNSET
    flap_times: _Often | UnsetType = UNSET
    flap_window_s: _Slow | UnsetType = UNSET
    flap_quiet_s: _Slow | UnsetType = UNSET
    wait_s: _Span | UnsetType = UNSET
    interval_s: _Slow | UnsetType = UNSET
    repeat_s: _Slow | UnsetType = UNSET
    hours: Hours | UnsetType = UNSET
    severity: Severity | UnsetType = UNSET


class Rules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an organisation wants otherwise: by condition, and how each severity is told."""

    conditions: dict[Condition, RuleChange] = {}
    channels: dict[Severity, list[Channel]] = {}


def _rule(condition: Condition, **values: int | Hours) -> Rule:
    return Rule(severity=condition.meaning.severity, **values)  # type: ignore[arg-type]


_GONE = {"opens_after_s": 120, "clears_after_s": 120}
_SLOW: Mapping[str, int] = {"clears_after_s": 0, "wait_s": 300, "repeat_s": _DAY_S}
DEFAULTS: Mapping[Condition, Rule] = MappingProxyType(
    {
        **{each: _rule(each, **_SLOW) for each in Condition},
        Condition.PLATFORM_UNKNOWN: _rule(
            Condition.PLATFORM_UNKNOWN,
            opens_after_s=30,
            clears_after_s=0,
            wait_s=30,
            repeat_s=3600,
            hours=Hours.ALWAYS,
        ),
        Condition.SITE_OFFLINE: _rule(
            Condition.SITE_OFFLINE, opens_after_s=60, clears_after_s=120, wait_s=60
        ),
        Condition.OFFLINE: _rule(Condition.OFFLINE, **_GONE, wait_s=180),
        Condition.NO_DATA: _rule(Condition.NO_DATA, **_GONE),
        Condition.NO_HEARTBEAT: _rule(Condition.NO_HEARTBEAT, **_GONE),
        Condition.DUPLICATE_IDENTITY: _rule(
            Condition.DUPLICATE_IDENTITY, wait_s=0, hours=Hours.ALWAYS
        ),
    }
)
"""What is gone counts after two minutes (a router starts anew in less), and its message waits for
three more, in which what it is part of becomes known. What is judged over hours waits for none."""

CHANNELS: Mapping[Severity, tuple[Channel, ...]] = MappingProxyType(
    {
        Severity.CRITICAL: (Channel.MAIL, Channel.FEED, Channel.DIGEST),
        Severity.MAJOR: (Channel.MAIL, Channel.FEED, Channel.DIGEST),
        Severity.MINOR: (Channel.FEED, Channel.DIGEST),
        Severity.INFO: (),
    }
)


def checked(rules: Rules) -> Rules:
    """Return rules that hold together. Raises RuleError, which names what does not."""
    for condition in rules.conditions:
        rule = rule_of(rules, condition)
        where = f"conditions.{condition}"
        if rule.repeat_s < rule.interval_s:
            raise RuleError(
                f"{where}.repeat_s",
                f"what does not change is told again after {rule.repeat_s} s, "
                f"sooner than what does ({rule.interval_s} s)",
            )
        if rule.flap_quiet_s < rule.clears_after_s:
            raise RuleError(
                f"{where}.flap_quiet_s",
                f"what flaps must be quiet for longer than {rule.clears_after_s} s",
            )
        if condition is Condition.PLATFORM_UNKNOWN:
            raise RuleError(where, "the platform is its operator's")
    for severity, channels in rules.channels.items():
        if len(set(channels)) < len(channels):
            raise RuleError(f"channels.{severity}", "a channel is named twice")
    return rules


def rule_of(rules: Rules, condition: Condition) -> Rule:
    """Return how an organisation deals with a condition."""
    default, change = DEFAULTS[condition], rules.conditions.get(condition)
    if change is None:
        return default
    wanted = {
        name: value
        for name in change.__struct_fields__
        if (value := getattr(change, name)) is not UNSET
    }
    return msgspec.structs.replace(default, **wanted)


def channels_of(rules: Rules, severity: Severity) -> tuple[Channel, ...]:
    """Return how a severity is told."""
    found = rules.channels.get(severity)
    return CHANNELS[severity] if found is None else tuple(found)
