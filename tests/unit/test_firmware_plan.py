"""Plans of rollouts: everybody is in one wave or left out for a reason, and the lot is sealed."""

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.firmware.forecast import forecast
from server.firmware.plan import (
    Device,
    EmptyPlanError,
    Plan,
    Release,
    Why,
    demand_devices,
    next_hop,
    plan,
    spread,
)
from server.firmware.policy import Caps, Gate, Guards, Policy, WaveRule
from server.firmware.windows import Night, NoWindow

SEED = "5" * 64
NIGHT = {1: Night(((1_000, 30_000), (90_000, 120_000)))}
DC2 = frozenset({"DC2"})


def release(number: int, version: str = "1.2.0", **other: object) -> Release:
    wanted: dict[str, object] = {
        "id": number, "component": "agent", "version": version, "floor": "1.0.0",
        "requires": None, "hardware": DC2, "length": 1_000,
    }  # fmt: skip
    return Release(**{**wanted, **other})  # type: ignore[arg-type]


def device(number: int, runs: str = "1.1.0", **other: object) -> Device:
    wanted: dict[str, object] = {
        "id": number, "name": f"dc-{number:05}", "kind": "counter", "model": "DC2",
        "state": "in service", "site": 1, "spot": number, "reported": True,
        "running": {"agent": runs}, "site_name": "Lund",
    }  # fmt: skip
    return Device(**{**wanted, **other})  # type: ignore[arg-type]


TARGET = release(1)
ALL = Policy(waves=(WaveRule(),), controls=0)


def planned(devices: list[Device], policy: Policy = ALL, **other: object) -> Plan:
    wanted: dict[str, object] = {"seed": SEED, **other}
    bundle = wanted.pop("bundle", [TARGET])
    stones = wanted.pop("stones", bundle)
    nights = wanted.pop("nights", NIGHT)
    return plan(devices, bundle, stones, nights, policy, **wanted)  # type: ignore[arg-type]


# -- why not -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "why", "said"),
    [
        (device(1, state="suspended"), Why.NOT_WORKING, "suspended"),
        (device(1, reported=False), Why.NEVER_REPORTED, "never said"),
        (device(1, model="DC1"), Why.WRONG_HARDWARE, "approved for DC2, and this is DC1"),
        (device(1, "1.2.0"), Why.ALREADY, "runs all of it"),
        (device(1, "1.10.0"), Why.NEWER, "1.10.0"),
        (device(1, floors={"agent": "1.2.1"}), Why.BELOW_FLOOR, "below 1.2.1"),
        (device(1, other=("ro-1", 5)), Why.OTHER_ROLLOUT, "ro-1"),
        (device(1, site=None), Why.NOWHERE, "no site"),
        (device(1, site=2), Why.NO_WINDOW, "nothing is known"),
        (device(1, site=3), Why.NO_WINDOW, "no closing hours"),
        (device(1, site=4), Why.FROZEN, "freeze"),
    ],
)
def test_each_device_that_is_left_out_is_told_why(one: Device, why: Why, said: str) -> None:
    nights = {**NIGHT, 3: Night((), NoWindow.ALWAYS_OPEN), 4: Night((), NoWindow.FROZEN)}
    made = planned([one, device(2)], nights=nights)
    (out,) = made.excluded
    assert (out.device, out.why) == (one, why)
    assert said in out.text
    assert made.devices == 1
    with pytest.raises(EmptyPlanError, match=why.value):
        demand_devices(planned([one], nights=nights))


def test_where_it_may_be_at_any_time_a_place_without_windows_leaves_nobody_out() -> None:
    assert planned([device(1, site=None), device(2, site=9)], nights=None).devices == 2


def test_newer_devices_go_back_only_if_that_is_asked_for_and_never_below_their_floor() -> None:
    newer = [device(1, "1.3.0"), device(2, "1.3.0", floors={"agent": "1.3.0"})]
    assert planned(newer).reasons == {Why.NEWER: 2}
    back = planned(newer, back=True)
    assert back.reasons == {Why.BELOW_FLOOR: 1}
    assert back.devices == 1


def test_a_bundle_is_for_devices_that_can_take_all_of_it() -> None:
    screen = release(2, component="kiosk", version="3.0.0", hardware=frozenset({"FK1", "FK2"}))
    agent = release(1, hardware=frozenset({"FK1", "DC2"}))
    kiosk = device(1, model="FK1", kind="kiosk", running={"agent": "1.2.0", "kiosk": "2.0.0"})
    there = device(2, model="FK1", running={"agent": "1.2.0", "kiosk": "3.0.0"})
    made = planned([kiosk, there, device(3)], bundle=[agent, screen])
    assert [each.id for wave in made.waves for each in wave.devices] == [1]
    assert made.reasons == {Why.ALREADY: 1, Why.WRONG_HARDWARE: 1}
    assert made.bytes == 2_000


# -- stepping stones -----------------------------------------------------------------------------


def test_a_device_that_is_too_old_goes_over_a_stepping_stone_first_in_a_leg_of_its_own() -> None:
    target = release(9, "3.0.0", requires="2.0.0")
    stones = [target, release(5, "2.1.0", requires="1.5.0"), release(3, "1.6.0"),
              release(4, "1.5.0")]  # fmt: skip
    made = planned([device(1, "1.0.0"), device(2, "1.5.0"), device(3, "2.0.0")],
                   bundle=[target], stones=stones)  # fmt: skip
    helps = {each.device.id: each.helps and each.helps.version for each in made.excluded}
    assert helps == {1: "1.6.0", 2: "2.1.0"}
    assert [(leg.release.version, [d.id for d in leg.devices]) for leg in made.legs] == [
        ("1.6.0", [1]),
        ("2.1.0", [2]),
    ]
    stuck = planned([device(1, "1.0.0")], bundle=[target], stones=[target])
    assert stuck.excluded[0].helps is None
    assert "no release leads there" in stuck.excluded[0].text


versions = st.integers(1, 7).map(lambda n: f"1.{n}.0")


@settings(max_examples=150)
@given(
    st.lists(st.tuples(versions, st.none() | versions), max_size=5, unique_by=lambda p: p[0]),
    versions,
    versions,
)
def test_the_first_hop_is_of_a_shortest_way(
    stones: list[tuple[str, str | None]], own: str, needs: str
) -> None:
    target = release(99, "1.9.0", requires=needs)
    known = [release(n, version, requires=requires) for n, (version, requires) in enumerate(stones)]

    def leads(way: tuple[Release, ...]) -> bool:
        now = own
        for step in (*way, target):
            if not (step.requires is None or now >= step.requires) or step.version <= now:
                return False
            now = step.version
        return True

    lengths: dict[str, int] = {}
    for count in range(1, len(known) + 1):
        for way in permutations(known, count):
            if leads(way):
                lengths.setdefault(way[0].version, count)
        if lengths:
            break
    hop = next_hop(device(1, own), target, known)
    if own >= needs:
        return  # it needs none
    if not lengths:
        assert hop is None
    else:
        assert hop is not None
        assert hop.version in lengths


# -- waves, controls and the lot -----------------------------------------------------------------

rules = st.builds(
    lambda kind, number, stratified: WaveRule(
        count=number if kind == 0 else None,
        percent=float(number) if kind == 1 else None,
        filter="x" if kind == 2 else "",
        stratified=stratified and kind < 2,
    ),
    st.integers(0, 3),
    st.integers(1, 100),
    st.booleans(),
)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.booleans(), st.booleans()),
        max_size=60,
    ),
    st.lists(rules, min_size=1, max_size=4),
    st.integers(0, 30),
    st.text("0123456789abcdef", min_size=1, max_size=8),
)
def test_everybody_is_in_one_wave_or_left_out_and_the_same_lot_says_the_same(
    facts: list[tuple[str, str, bool, bool]], waves: list[WaveRule], controls: int, seed: str
) -> None:
    devices = [
        device(n, "1.2.0" if there else "1.1.0", network=network, format=form,
               kind="kiosk" if kiosk else "counter")
        for n, (network, form, kiosk, there) in enumerate(facts)
    ]  # fmt: skip
    policy = Policy(waves=tuple(waves), controls=controls)
    found_by = {"x": frozenset(range(0, 60, 2))}
    made = planned(devices, policy, seed=seed, found_by=found_by)
    seen = Counter(each.id for wave in made.waves for each in wave.devices)
    seen.update(each.device.id for each in made.excluded)
    assert seen == Counter(each.id for each in devices)
    assert [wave.number for wave in made.waves] == list(range(1, len(made.waves) + 1))
    assert planned(devices[::-1], policy, seed=seed, found_by=found_by) == made
    assert made.commitment == hashlib.sha256(seed.encode()).hexdigest()
    early = {each.id for wave in made.waves[:-1] for each in wave.devices}
    fit = [each for each in devices if each.kind == "counter" and each.running["agent"] != "1.2.0"]
    assert len(made.controls) <= min(controls, len(fit) // 3)
    for each in made.controls:
        assert each.kind == "counter"
        assert each.id not in early
    if len(made.waves) < 2:
        assert made.controls == ()


def test_a_wave_takes_a_count_a_share_or_all_that_its_filter_finds() -> None:
    policy = Policy(
        waves=(WaveRule(filter="near"), WaveRule(count=5), WaveRule(percent=10), WaveRule()),
        controls=0,
    )
    made = planned([device(n) for n in range(100)], policy,
                   found_by={"near": frozenset({3, 4, 200})})  # fmt: skip
    assert {each.id for each in made.waves[0].devices} == {3, 4}
    assert [len(wave.devices) for wave in made.waves] == [2, 5, 10, 83]
    few = planned([device(n) for n in range(100)], Policy(waves=policy.waves[1:3], controls=0))
    assert few.reasons == {Why.NO_WAVE: 85}


def test_a_stratified_wave_has_one_of_each_stratum_first_and_then_their_shares() -> None:
    devices = [device(n, format="mall" if n < 60 else "street") for n in range(90)]
    devices += [device(90 + n, network=f"n{n}") for n in range(3)]
    wanted = spread(devices, 5, of=lambda each: each.stratum, each_first=True)
    assert len({each.stratum for each in wanted}) == 5
    more = spread(devices, 35, of=lambda each: each.stratum, each_first=True)
    count = Counter(each.format for each in more)
    assert 19 <= count["mall"] <= 22
    assert 9 <= count["street"] <= 12


def test_controls_are_drawn_by_lot_and_wait_for_the_last_wave() -> None:
    devices = [device(n, format="mall" if n % 4 else "street") for n in range(400)]
    policy = Policy(waves=(WaveRule(count=100), WaveRule(count=50), WaveRule()), controls=80)
    made, other = planned(devices, policy), planned(devices, policy, seed="6" * 64)
    assert len(made.controls) == 80
    assert {each.id for each in made.controls} <= {each.id for each in made.waves[-1].devices}
    assert Counter(each.format for each in made.controls) == {"mall": 60, "street": 20}
    assert {each.id for each in made.controls} != {each.id for each in other.controls}
    assert planned(devices, replace_guards(policy)).controls == ()
    assert planned(devices, Policy(waves=(WaveRule(),))).controls == ()


def replace_guards(policy: Policy) -> Policy:
    return Policy(waves=policy.waves, guards=Guards(counts=False))


# -- what is said before anybody approves ---------------------------------------------------------


def test_what_cannot_be_taken_back_is_said_before_it_is_approved() -> None:
    raising = release(1, "1.2.0", floor="1.2.0")
    made = planned([device(1), device(2, "1.0.5"), device(3, "1.2.0")], bundle=[raising])
    (one,) = made.one_way
    assert (one.devices, one.versions) == (2, ("1.0.5", "1.1.0"))
    assert "no way back for 2 devices" in made.second_person(ALL)[-1]
    assert planned([device(1)]).one_way == ()
    assert planned([device(1)]).second_person(ALL) == []


def test_a_second_person_is_asked_for_above_the_blast_radius_and_in_a_freeze() -> None:
    policy = Policy(waves=(WaveRule(),), blast_radius=2, override_freezes=True)
    made = planned([device(n) for n in range(3)], policy)
    assert made.second_person(policy) == ["3 devices, more than 2", "it overrides freezes"]


def test_conflicts_say_how_many_are_left_out_and_how_many_taken_over() -> None:
    devices = [device(1, other=("ro-a", 3)), device(2, other=("ro-a", 99)), device(3)]
    made = planned(devices, ALL)
    assert made.conflicts == {"ro-a": (1, 1)}
    assert made.devices == 2


def test_times_are_those_of_the_windows_caps_and_soaks() -> None:
    policy = Policy(
        waves=(WaveRule(count=2), WaveRule()),
        caps=Caps(site=1, site_bytes_per_s=100),
        gate=Gate(soak_s=100_000),
        controls=0,
    )
    needs = policy.device.trial_s + 60
    made = planned([device(n) for n in range(3)], policy)
    told = forecast(made, NIGHT, policy, now_s=0)
    assert told.waves[0].done_s == 1_000 + 2 * needs
    assert told.waves[1].opens_s == told.waves[0].done_s + 100_000
    assert told.waves[1].done_s == told.waves[1].opens_s + needs
    assert (told.sites[0].bytes, told.sites[0].seconds) == (3_000, 30)
    late = forecast(made, {1: Night(((1_000, 1_000 + 2 * needs),))}, policy, now_s=0)
    assert late.waves[0].done_s == 1_000 + 2 * needs
    assert late.done_s is None  # no window is known so far ahead
    crowd = planned([device(n) for n in range(100)], replace_caps(policy))
    hurried = forecast(crowd, None, replace_caps(policy), now_s=0)
    assert hurried.waves[0].done_s == needs
    assert hurried.waves[1].done_s == needs + 100_000 + 10 * needs


def replace_caps(policy: Policy) -> Policy:
    return Policy(waves=policy.waves, caps=Caps(in_flight=10), gate=policy.gate, controls=0)


def test_a_plan_reaches_devices_and_sites_and_says_their_bytes() -> None:
    made = planned([device(n, site=1 + n % 2) for n in range(4)], nights={1: NIGHT[1], 2: NIGHT[1]})
    assert (made.devices, made.sites, made.bytes) == (4, 2, 4_000)
    assert replace(made, waves=()).devices == 0
