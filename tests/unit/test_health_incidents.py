"""What explains what, when a site is gone, and when an incident tells somebody."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.health.incidents import (
    Heard,
    Open,
    Place,
    Step,
    Suppression,
    Tell,
    Timers,
    Why,
    explains,
    key_of,
    next_step,
    outage,
    root_of,
)
from server.health.judgement import PLATFORM, Condition, Severity, Standing, Subject, SubjectKind
from server.health.rules import (
    CHANNELS,
    DEFAULTS,
    Channel,
    Hours,
    Rule,
    RuleChange,
    RuleError,
    Rules,
    channels_of,
    checked,
    rule_of,
)

NOW = datetime(2026, 4, 2, 9, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RULE = Rule(wait_s=120, interval_s=600, repeat_s=3600)


def opened(number: int, kind: str, condition: Condition, *, site: int = 1, device: int = 1) -> Open:
    device += 10 * site  # a device stands at one site
    place = {
        "platform": Place(),
        "site": Place(1, site),
        "device": Place(1, site, device),
        "spot": Place(1, site, device, device),
    }[kind]
    row = {"platform": 0, "site": site, "device": device, "spot": device}[kind]
    return Open(number, Subject(SubjectKind(kind), row), condition, place)


anything = st.builds(
    opened,
    st.integers(1, 50),
    st.sampled_from([kind.value for kind in SubjectKind]),
    st.sampled_from(Condition),
    site=st.integers(1, 2),
    device=st.integers(1, 2),
)


@given(st.lists(anything, max_size=12, unique_by=lambda each: each.id))
def test_nothing_explains_itself_not_even_through_others(found: list[Open]) -> None:
    for first in found:
        assert not explains(first, first)
        here: Open = first
        seen: set[int] = set()
        while (parent := root_of(here, found)) is not None:
            assert parent.id not in seen | {first.id}
            seen.add(parent.id)
            here = parent


@given(anything, anything)
def test_what_lies_below_or_elsewhere_explains_nothing(one: Open, other: Open) -> None:
    levels = list(SubjectKind)
    if levels.index(one.subject.kind) > levels.index(other.subject.kind):
        assert not explains(one, other)
    if one.place.site is not None and one.place.site != other.place.site:
        assert not explains(one, other)


def test_the_highest_explains_first() -> None:
    platform = opened(1, "platform", Condition.PLATFORM_UNKNOWN)
    site = opened(2, "site", Condition.SITE_OFFLINE)
    device = opened(3, "device", Condition.OFFLINE)
    counter = opened(4, "spot", Condition.FLATLINE)
    worn = opened(5, "device", Condition.CERTIFICATE)
    assert root_of(counter, [counter, device, site, platform]) == platform
    assert root_of(counter, [counter, device, site]) == site
    assert root_of(counter, [counter, device]) == device
    assert root_of(device, [counter, device, site]) == site
    assert root_of(worn, [worn, site, device]) is None
    assert root_of(counter, [counter, opened(6, "device", Condition.OFFLINE, device=2)]) is None


def test_one_condition_at_one_site_is_one_incident() -> None:
    one, other = (opened(n, "device", Condition.OFFLINE, device=n) for n in (1, 2))
    keys = {key_of(each.subject, each.condition, each.place) for each in (one, other)}
    assert len(keys) == 1
    assert key_of(PLATFORM, Condition.PLATFORM_UNKNOWN, Place()) == "platform 0 platform_unknown"
    assert key_of(Subject(SubjectKind.DEVICE, 7), Condition.OFFLINE, Place(1, None, 7)) == (
        "device 7 offline"
    )


@given(
    st.integers(1, 40),
    st.lists(st.integers(0, 1_000), max_size=40),
)
def test_a_site_is_gone_when_most_went_within_minutes(devices: int, seconds: list[int]) -> None:
    gone = [NOW + timedelta(seconds=each) for each in seconds[:devices]]
    found = outage(1, devices=devices, gone=gone, stands=False, now=NOW)
    wanted = max(2, -(-devices * 4 // 5))
    together = any(
        sum(first <= each <= first + 5 * MINUTE for each in gone) >= wanted for first in gone
    )
    assert (found is not None) == together
    if found is not None:
        assert (found.standing, found.since in gone) == (Standing.FIRING, True)
        assert found.evidence == {"devices": float(devices), "gone": float(len(gone))}


def test_a_site_that_was_gone_is_back_with_half_of_its_devices() -> None:
    late = [NOW - timedelta(hours=each) for each in range(10)]
    stays = outage(1, devices=10, gone=late[:6], stands=True, now=NOW)
    assert stays is not None
    assert (stays.standing, stays.evidence["gone"]) == (Standing.FIRING, 6)
    back = outage(1, devices=10, gone=late[:5], stands=True, now=NOW)
    assert back is not None
    assert back.standing is Standing.CLEAR
    assert outage(1, devices=10, gone=late, stands=False, now=NOW) is None  # one after the other


# -- who is told, and when -------------------------------------------------------------------------


def step(
    *episodes: Heard, timers: Timers | None = None, rule: Rule = RULE, known: bool = True,
    opens_at: datetime | None = NOW, at: datetime = NOW,
) -> Step:  # fmt: skip
    timers = timers or Timers(NOW)
    return next_step(timers, episodes, rule, now=at, opens_at=opens_at, known=known)


def test_the_first_message_waits_and_what_clears_meanwhile_tells_nobody() -> None:
    waiting = Timers(NOW + 2 * MINUTE)
    assert step(Heard(1), timers=waiting) == Step(None, Why.WAIT, NOW + 2 * MINUTE)
    over = step(timers=waiting)
    assert (over, over.ends) == (Step(None, Why.CLEARED_UNTOLD), True)
    assert step(Heard(1), timers=waiting, at=NOW + 2 * MINUTE) == Step(Tell.OPENED, Why.NEW)


def test_changes_are_told_apart_and_what_does_not_change_again_later() -> None:
    told = Timers(NOW, NOW, frozenset({1}))
    assert step(Heard(1), timers=told) == Step(None, Why.REPEAT, NOW + 60 * MINUTE)
    more = (Heard(1), Heard(2))
    assert step(*more, timers=told) == Step(None, Why.INTERVAL, NOW + 10 * MINUTE)
    later = NOW + 10 * MINUTE
    assert step(*more, timers=told, at=later) == Step(Tell.UPDATED, Why.CHANGED)
    assert step(Heard(1), timers=told, at=NOW + 60 * MINUTE) == Step(Tell.REPEATED, Why.STILL_OPEN)
    assert step(timers=told) == Step(Tell.RESOLVED, Why.ALL_CLEAR)


def test_each_reason_to_say_nothing_is_given_with_its_end() -> None:
    later = NOW + 60 * MINUTE
    inhibited = Heard(1, Suppression.INHIBITED)
    served = Heard(2, Suppression.MAINTENANCE, later)
    visited = Heard(2, Suppression.VISIT, later)
    seen = Heard(3, seen_to=True, due_at=later)
    assert step(Heard(1), known=False) == Step(None, Why.PLATFORM_UNKNOWN)
    assert step(inhibited) == Step(None, Why.INHIBITED)
    assert step(Heard(1), opens_at=later) == Step(None, Why.CLOSED, later)
    assert step(Heard(1), opens_at=None) == Step(None, Why.CLOSED)
    always = msgspec.structs.replace(RULE, hours=Hours.ALWAYS)
    assert step(Heard(1), opens_at=later, rule=always) == Step(Tell.OPENED, Why.NEW)
    assert step(inhibited, served) == Step(None, Why.MAINTENANCE, later)
    assert step(inhibited, visited) == Step(None, Why.VISIT, later)
    assert step(seen) == Step(None, Why.ACKNOWLEDGED, later)
    assert step(seen, Heard(4)) == Step(Tell.OPENED, Why.NEW)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.sampled_from(Suppression),
            st.booleans(),
        ),
        max_size=4,
        unique_by=lambda each: each[0],
    ),
    st.integers(0, 200),
    st.one_of(st.none(), st.integers(0, 200)),
    st.booleans(),
    st.booleans(),
)
def test_nobody_is_told_of_what_is_suppressed_or_seen_to(
    found: list[tuple[int, Suppression, bool]],
    ready: int,
    told: int | None,
    open_: bool,
    known: bool,
) -> None:
    heard = [Heard(number, why, seen_to=seen) for number, why, seen in found]
    timers = Timers(
        NOW + ready * MINUTE, None if told is None else NOW + told * MINUTE, frozenset({1})
    )
    at = NOW + 100 * MINUTE
    opens_at = NOW if open_ else at + MINUTE
    made = next_step(timers, heard, RULE, now=at, opens_at=opens_at, known=known)
    loud = [each for each in heard if each.suppression is Suppression.NONE and not each.seen_to]
    if made.tell is not None and made.tell is not Tell.RESOLVED:
        assert loud
        assert open_
        assert known
        assert told is not None or ready <= 100
    assert made.until is None or made.until > at
    assert made.ends == (not heard)


# -- rules -----------------------------------------------------------------------------------------


def test_every_condition_has_a_rule_and_every_severity_says_how_it_is_told() -> None:
    assert set(DEFAULTS) == set(Condition)
    assert set(CHANNELS) == set(Severity)
    for condition, rule in DEFAULTS.items():
        assert rule.severity is condition.meaning.severity
        if condition is not Condition.PLATFORM_UNKNOWN:
            checked(Rules({condition: RuleChange(wait_s=rule.wait_s)}))


def test_an_organisations_rules_lie_over_the_defaults() -> None:
    mine = checked(
        Rules(
            {Condition.OFFLINE: RuleChange(opens_after_s=600, severity=Severity.MINOR)},
            {Severity.MINOR: []},
        )
    )
    rule = rule_of(mine, Condition.OFFLINE)
    assert rule == msgspec.structs.replace(
        DEFAULTS[Condition.OFFLINE], opens_after_s=600, severity=Severity.MINOR
    )
    assert rule.pace == replace(DEFAULTS[Condition.OFFLINE].pace, opens_after=10 * MINUTE)
    assert rule_of(mine, Condition.NO_DATA) == DEFAULTS[Condition.NO_DATA]
    assert channels_of(mine, Severity.MINOR) == ()
    assert Channel.MAIL in channels_of(mine, Severity.CRITICAL)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"conditions": {"nonsense": {}}}, "nonsense"),
        ({"conditions": {"offline": {"opens_after_s": -1}}}, "opens_after_s"),
        ({"conditions": {"offline": {"flap_times": 1}}}, "flap_times"),
        ({"conditions": {"offline": {"wait": 1}}}, "wait"),
        ({"conditions": {"offline": {"severity": "dreadful"}}}, "dreadful"),
        ({"conditions": {"offline": {"interval_s": 7200, "repeat_s": 3600}}}, "repeat_s"),
        ({"conditions": {"offline": {"flap_quiet_s": 60}}}, "flap_quiet_s"),
        ({"conditions": {"platform_unknown": {"wait_s": 0}}}, "platform_unknown"),
        ({"channels": {"minor": ["mail", "mail"]}}, "channels.minor"),
        ({"channels": {"minor": ["pigeon"]}}, "pigeon"),
        ({"routes": {}}, "routes"),
    ],
)
def test_rules_that_make_no_sense_are_refused_by_name(wrong: object, where: str) -> None:
    with pytest.raises((RuleError, msgspec.ValidationError)) as refused:
        checked(msgspec.convert(wrong, Rules))
    told = str(refused.value) + getattr(refused.value, "parameter", "")
    assert where in told
