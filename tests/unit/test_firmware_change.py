"""What a device's own word makes of a change of settings."""

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.settings import TABLE, Code
from protocol.state import Report
from protocol.update import Class, Phase
from server.desired.layers import Entry, Layer, Merged, Overlay, Scope, merged, overlaid
from server.desired.settings import Device
from server.firmware import change, plan, reach
from server.firmware.change import Change, Outcome, SettingsChange, checked_change, judged
from server.firmware.plan import Why
from server.firmware.policy import Policy, WaveRule
from server.fleet.checks import FieldError

BY = "rollout-3fpn4k7m"
KEYS = ("health_s", "frame_s", "spread_s")
VALUES = {"health_s": 300, "frame_s": 60, "spread_s": 20}


def of(*keys: str, scope: Scope = Scope.ORGANISATION) -> Change:
    return Change(scope, "", {key: VALUES[key] for key in keys}, dict.fromkeys(keys))


def told(wanted: Change, *nearer: str) -> dict[str, Merged]:
    """Return what a device is told that was granted it; its site says `nearer` keys itself."""
    own = {key: Entry(TABLE[key].default, 9, 0, "user ada") for key in nearer}
    laid = Overlay(wanted.scope, wanted.of, wanted.entries(5, at=0, by=BY))
    return merged(overlaid([Layer(Scope.SITE, "north", own)], [laid]), kind="counter")


def word(
    has: dict[str, int], refused: dict[str, tuple[int, str]], unknown: tuple[str, ...] = ()
) -> Report:
    force = {key: each.default for key, each in TABLE.items()} | has
    known = tuple(key for key in TABLE if key not in unknown)
    return Report("0.2.0", "00", 1, known, force, refused)


@given(
    keys=st.sets(st.sampled_from(KEYS), min_size=1).map(sorted),
    nearer=st.sets(st.sampled_from(KEYS)),
    has=st.sets(st.sampled_from(KEYS)),
    refused=st.dictionaries(
        st.sampled_from(KEYS),
        st.tuples(st.sampled_from([4, 5]), st.sampled_from([Code.REVERTED, Code.DOES_NOT_FIT])),
    ),
)
def test_it_is_confirmed_by_all_values_in_force_and_ended_by_any_that_was_refused(
    keys: list[str],
    nearer: set[str],
    has: set[str],
    refused: dict[str, tuple[int, Code]],
) -> None:
    wanted = of(*keys)
    report = word(
        {key: VALUES[key] for key in has},
        {key: (number, code.value) for key, (number, code) in refused.items()},
    )
    found = judged(wanted, told(wanted, *nearer), report, by=BY)
    own = [key for key in keys if key not in nearer]
    bad = [key for key in own if key in refused and refused[key][0] == 5]
    if not own:
        assert found == Outcome(None, change.NOTHING_LEFT)
    elif bad:
        assert found is not None
        gone_back = {key for key in bad if refused[key][1] is Code.REVERTED}
        assert found.phase is (Phase.REVERTED if found.about in gone_back else Phase.FAILED)
        assert found.about in bad
    else:
        assert found == (Outcome(Phase.CONFIRMED) if set(own) <= has else None)


def test_an_agent_that_knows_no_such_setting_rejects_it() -> None:
    wanted = of("health_s")
    found = judged(wanted, told(wanted), word({}, {}, ("health_s",)), by=BY)
    assert found == Outcome(Phase.REJECTED, "unknown_setting", Class.REFUSED, "health_s")


def test_it_goes_back_to_what_its_layers_say_or_to_what_nobody_has_set() -> None:
    wanted, nothing = of("health_s"), merged([], kind="counter")
    assert judged(wanted, nothing, word({"health_s": 450}, {}), by="") == Outcome(Phase.CONFIRMED)
    layer = Layer(Scope.ORGANISATION, "", {"health_s": Entry(600, 3, 0, "user ada")})
    before = merged([layer], kind="counter")
    assert judged(wanted, before, word({"health_s": 300}, {}), by="") is None
    found = judged(wanted, before, word({}, {"health_s": (3, "reverted")}), by="")
    assert found == Outcome(Phase.REVERTED, "reverted", Class.TIMEOUT, "health_s")
    cut = Change(Scope.ORGANISATION, "", {"broker": "a.example:1"}, {"broker": None})
    found = judged(cut, nothing, word({}, {"broker": (0, "reverted")}), by="")
    assert found == Outcome(Phase.REVERTED, "reverted", Class.TIMEOUT, "broker")


def test_a_later_writing_of_a_layer_counts_before_what_is_laid_over_it() -> None:
    wanted = of("health_s")
    for number, value in ((4, 300), (5, 300), (6, 600)):
        layer = Layer(Scope.ORGANISATION, "", {"health_s": Entry(600, number, 0, "user ada")})
        laid = Overlay(Scope.ORGANISATION, "", wanted.entries(5, at=0, by=BY))
        (found,) = overlaid([layer], [laid])
        assert found.entries["health_s"].value == value


def test_its_writing_is_later_than_the_layers_and_than_that_of_an_earlier_attempt() -> None:
    wanted = Change(Scope.ORGANISATION, "", {"health_s": 300}, {"health_s": (600, 1_000)})
    assert [wanted.number(began, 1) for began in (5, 999, 1_000, 2_000)] == [1_001] * 3 + [2_000]
    assert wanted.number(5, 3) == 1_003


def test_a_change_is_kept_as_it_was_checked() -> None:
    asked = SettingsChange({"frame_s": 60, "health_s": 300}, "site", "site-north")
    made = checked_change(asked)
    assert (made.scope, list(made.values)) == (Scope.SITE, ["health_s", "frame_s"])
    known = Change(made.scope, made.of, made.values, {"health_s": (600, 7), "frame_s": None})
    assert change.read_change(known.content()) == known
    assert known.asked() == SettingsChange(dict(made.values), "site", "site-north")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (SettingsChange({}), "settings.values"),
        (SettingsChange({"health_s": 3}), "settings.values.health_s"),
        (SettingsChange({"unheard_of": 3}), "settings.values.unheard_of"),
        (SettingsChange({"health_s": 300}, "site"), "settings.of"),
        (SettingsChange({"health_s": 300}, "device", "dc-1"), "settings.of"),
    ],
)
def test_what_is_asked_wrongly_names_its_field(asked: SettingsChange, field: str) -> None:
    with pytest.raises(FieldError) as caught:
        checked_change(asked)
    assert caught.value.parameter == field


def test_who_gets_nothing_by_a_change_is_left_out_by_name() -> None:
    wanted = of("health_s")
    devices = [Device(n, f"dc-{n}", "counter", "", None, "north", None, 1) for n in range(5)]
    site = Layer(Scope.SITE, "north", {"health_s": Entry(120, 1, 0, "user ada")})
    stacks = {n: [site] if n == 1 else [] for n in range(5)}
    known, values = list(TABLE), {key: each.default for key, each in TABLE.items()}
    reports = {
        n: {"agent": "0.2.0", "known": known, "values": values} for n in range(1, 5)
    }  # of device 0 nothing
    reports[2] = {**reports[2], "values": {**values, "health_s": 300}}
    reports[3] = {**reports[3], "known": ["frame_s"]}
    found = reach.left_out(wanted, devices, stacks, reports)
    assert {device: why for device, (why, _) in found.items()} == {
        0: Why.NEVER_REPORTED,
        1: Why.NEARER_LAYER,
        2: Why.ALREADY,
        3: Why.UNKNOWN_SETTING,
    }
    assert found[1][1] == "its site says otherwise, and is nearer"


def test_a_setting_that_a_kind_of_device_has_not_leaves_it_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kiosks = dataclasses.replace(TABLE["health_s"], devices=frozenset({"kiosk"}))
    monkeypatch.setitem(TABLE, "health_s", kiosks)
    device = Device(1, "dc-1", "counter", "", None, "north", None, 1)
    said = {"agent": "0.2.0", "known": list(TABLE), "values": {"frame_s": 60}}
    found = reach.left_out(of("health_s"), [device], {1: []}, {1: said})
    assert found == {1: (Why.UNKNOWN_SETTING, "a counter has no health_s")}
    found = reach.left_out(of("health_s", "frame_s"), [device], {1: []}, {1: said})
    assert found == {1: (Why.ALREADY, "it has these values")}


def test_who_gets_it_in_the_end_alone_counts_for_who_approves() -> None:
    policy = Policy(blast_radius=1, windows=None, waves=(WaveRule(),))
    device = plan.Device(1, "dc-1", "counter", "DC2", "in service")
    busy = [
        dataclasses.replace(device, id=n, name=f"dc-{n}", other=("rollout-2", 5)) for n in (2, 3)
    ]
    made = plan.plan([device, *busy], (), (), None, policy, seed="", given={})
    assert made.second_person(policy) == []
    shared, each = of("health_s"), of("health_s", scope=Scope.DEVICE)
    assert reach.second_person(shared, made, policy) == [
        "2 devices more get it in the end: above 1 with them"
    ]
    assert reach.second_person(each, made, policy) == []
    wide = msgspec.structs.replace(policy, blast_radius=3)
    assert reach.second_person(shared, made, wide) == []
