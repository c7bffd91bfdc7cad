"""Layers of settings: what a device gets, why, and what became of it, against a slow model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.settings import TABLE, Code, Setting, SettingError, Value, checked
from protocol.state import Report
from server.desired.layers import (
    ORDER,
    Entry,
    Layer,
    Scope,
    Standing,
    checked_edit,
    delta,
    merged,
    states,
    wanted,
)

ADDRESSES = ["", "a.example:8883", "10.0.0.1:1", "b-c.example:65535"]


def values_of(setting: Setting) -> st.SearchStrategy[Value]:
    if setting.choices:
        return st.sampled_from(setting.choices)
    if isinstance(setting.default, str):
        return st.sampled_from(ADDRESSES)
    return st.integers(setting.low, setting.high)


VALUES = st.sampled_from(sorted(TABLE)).flatmap(
    lambda key: st.tuples(st.just(key), values_of(TABLE[key]))
)
SETTINGS = st.lists(VALUES, max_size=6).map(dict)
STACKS = st.dictionaries(st.sampled_from(ORDER[1:]), SETTINGS)


def layers_of(stack: dict[Scope, dict[str, Value]]) -> list[Layer]:
    return [
        Layer(scope, scope.value, {key: Entry(v, 10 + n, 0.0, "x") for key, v in said.items()})
        for n, (scope, said) in enumerate(stack.items())
    ]


def slow_model(stack: dict[Scope, dict[str, Value]], key: str) -> list[tuple[Value, str]]:
    """All that is said of a setting, the nearest to the device first, by hand."""
    said = []
    for scope in ("device", "site", "organisation", "model"):
        for each, values in stack.items():
            if each.value == scope and key in values:
                said.append((values[key], scope))
    return [*said, (TABLE[key].default, "default")]


@given(STACKS, st.randoms(use_true_random=False))
def test_the_nearest_layer_counts_and_the_next_is_what_it_would_be_without(
    stack: dict[Scope, dict[str, Value]], rng: Any
) -> None:
    layers = layers_of(stack)
    found = merged(layers, kind="counter")
    rng.shuffle(layers)
    assert merged(layers, kind="counter") == found
    assert list(found) == list(TABLE)
    for key, each in found.items():
        said = slow_model(stack, key)
        assert (each.here.value, each.here.scope.value) == said[0]
        without = said[1] if len(said) > 1 else said[0]
        assert (each.without.value, each.without.scope.value) == without
        assert (each.wanted is None) == (len(said) == 1)
        assert each.here.of == ("" if len(said) == 1 else said[0][1])


@given(SETTINGS, SETTINGS)
def test_who_takes_the_whole_delta_has_what_is_wanted_and_nothing_less_does(
    want: dict[str, Value], has: dict[str, Value]
) -> None:
    found = delta(want, has)
    assert {**has, **found} == {**has, **want}
    for key in found:
        less = {k: v for k, v in found.items() if k != key}
        assert {**has, **less} != {**has, **want}


@given(STACKS)
def test_a_device_that_has_all_it_is_told_is_in_sync(stack: dict[Scope, dict[str, Value]]) -> None:
    found = merged(layers_of(stack), kind="counter")
    told = {key: value for key, (value, _) in wanted(found).items()}
    has = {key: TABLE[key].default for key in TABLE} | told
    report = Report("0.2", "", 1, tuple(TABLE), has)
    after = states(found, report, dealt_with=True)
    assert {each.standing for each in after.values()} == {Standing.IN_SYNC}
    before = states(found, None, dealt_with=False)
    assert {each.standing for each in before.values()} == {Standing.PENDING}


ONE = [Layer(Scope.SITE, "s", {"health_s": Entry(600, 7, 0.0, "x")})]
KNOWN = tuple(TABLE)


@pytest.mark.parametrize(
    ("report", "dealt_with", "standing", "code"),
    [
        (Report("", "", 1, KNOWN, {"health_s": 900}), False, Standing.PENDING, ""),
        (Report("", "", 1, KNOWN, {"health_s": 900}), True, Standing.DRIFTED, ""),
        (Report("", "", 1, KNOWN, {"health_s": 600}), False, Standing.IN_SYNC, ""),
        (Report("", "", 1, (), {}), True, Standing.UNSUPPORTED, ""),
        (
            Report("", "", 1, KNOWN, {"health_s": 900}, {"health_s": (7, "does_not_fit")}),
            True,
            Standing.REFUSED,
            "does_not_fit",
        ),
        (  # refused, but another writing of it: it is tried again
            Report("", "", 1, KNOWN, {"health_s": 900}, {"health_s": (6, "does_not_fit")}),
            False,
            Standing.PENDING,
            "",
        ),
    ],
)
def test_what_became_of_a_setting_follows_from_the_last_report(
    report: Report, dealt_with: bool, standing: Standing, code: str
) -> None:
    state = states(merged(ONE, kind="kiosk"), report, dealt_with=dealt_with)["health_s"]
    assert (state.standing, state.code) == (standing, code)
    assert state.reported == report.values.get("health_s")


def test_what_nobody_has_set_is_the_devices_own_and_shows_where_it_differs() -> None:
    found = merged([], kind="counter")
    own = Report("", "", 1, KNOWN, {"health_s": 300, "frame_s": 300})
    assert states(found, own, dealt_with=True)["health_s"].standing is Standing.DRIFTED
    assert states(found, own, dealt_with=True)["frame_s"].standing is Standing.IN_SYNC


# -- edits ---------------------------------------------------------------------------------------


@given(SETTINGS, SETTINGS, st.booleans())
def test_an_edit_ends_in_what_it_says(
    before: dict[str, Value], after: dict[str, Value], whole: bool
) -> None:
    first = checked_edit({}, before, whole=True, kind=None, by="a", at=1.0).entries
    second = checked_edit(first, after, whole=whole, kind=None, by="b", at=1.0)
    assert {key: each.value for key, each in second.entries.items()} == (
        after if whole else {**before, **after}
    )
    for key, (was, now) in second.changes.items():
        assert was == before.get(key)
        assert now == (after.get(key) if whole else {**before, **after}.get(key))
    for key, entry in second.entries.items():
        if whole and before.get(key) == entry.value:
            assert entry == first[key]  # not written anew: nothing is tried again for it
        elif key in after:
            assert entry.by == "b"
            assert entry.number > max((e.number for e in first.values()), default=0)


def test_what_is_given_again_is_written_anew_and_null_takes_it_out() -> None:
    first = checked_edit({}, {"broker": "a:1"}, whole=False, kind=None, by="a", at=1.0).entries
    again = checked_edit(first, {"broker": "a:1"}, whole=False, kind=None, by="a", at=1.0).entries
    assert again["broker"].number == first["broker"].number + 1
    assert not checked_edit(again, {"broker": None}, whole=False, kind=None, by="", at=1.0).entries


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("colour", 1, Code.UNKNOWN),
        ("colour", None, Code.UNKNOWN),
        ("health_s", 59, Code.BAD_VALUE),
        ("health_s", 1_201, Code.BAD_VALUE),
        ("health_s", True, Code.BAD_VALUE),
        ("health_s", 60.0, Code.BAD_VALUE),
        ("health_s", "60", Code.BAD_VALUE),
        ("frame_s", 61, Code.BAD_VALUE),
        ("log_level", "loud", Code.BAD_VALUE),
        ("log_level", 1, Code.BAD_VALUE),
        ("broker", "nowhere", Code.BAD_VALUE),
        ("broker", "a..b:1", Code.BAD_VALUE),
        ("broker", "a:0", Code.BAD_VALUE),
        ("broker", "a:65536", Code.BAD_VALUE),
        ("broker", "a" * 300 + ":1", Code.BAD_VALUE),
    ],
)
def test_what_no_device_could_take_is_refused_when_it_is_written(
    key: str, value: object, code: Code
) -> None:
    with pytest.raises(SettingError) as error:
        checked_edit({}, {key: value}, whole=False, kind=None, by="", at=0.0)
    assert error.value.code is code


@given(SETTINGS)
def test_every_combination_that_layers_can_make_is_one_that_an_agent_can_frame(
    values: dict[str, Value],
) -> None:
    whole = {key: TABLE[key].default for key in TABLE} | values
    frame, quiet = whole["frame_s"], whole["quiet_frame_s"]
    assert isinstance(frame, int)
    assert isinstance(quiet, int)
    assert quiet % frame == 0
    assert frame % 60 == 0


def test_every_default_is_a_value_of_its_setting() -> None:
    for key, setting in TABLE.items():
        assert checked(key, setting.default, kind="kiosk") == setting.default
