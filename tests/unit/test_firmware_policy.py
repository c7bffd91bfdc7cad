"""Policies of rollouts, read and written; and how fast offers go out by them."""

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.firmware.guards import filled, pace
from server.firmware.policy import (
    Caps,
    Policy,
    PolicyError,
    Ramp,
    WaveRule,
    read_policy,
    write_policy,
)
from tests.unit.test_firmware_rollout import SMALL, ZERO


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "truncated"),
        ('{"gate": {"success": 1}}', "unknown field"),
        ('{"guards": {"fail_abs": 0}}', "guards.fail_abs"),
        ('{"blast_radius": 51}', "blast_radius"),
        ('{"waves": []}', "1 to 50 waves"),
        ('{"waves": [{"count": 1, "percent": 2}]}', "a count and a share"),
        ('{"waves": [{"stratified": true}]}', "nothing to sample"),
        ('{"ramp": {"base": 10, "top": 5}}', "above its top"),
    ],
)
def test_a_policy_that_is_none_is_refused_and_says_where(text: str, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        read_policy(text)


def test_a_policy_is_written_whole_and_read_back() -> None:
    policy = msgspec.structs.replace(SMALL, waves=(WaveRule(count=3, stratified=True), WaveRule()))
    assert read_policy(write_policy(policy)) == policy
    assert read_policy("{}") == Policy()


def test_offers_speed_up_with_confirmations_up_to_the_top_and_within_bytes() -> None:
    ramp, caps = Ramp(base=10, factor=2, step=50, top=100), Caps()
    speeds = [pace(ramp, caps, confirmed=n, bytes_each=0) for n in (-1, 0, 49, 50, 100, 200, 10**9)]
    assert speeds == [10, 10, 10, 20, 40, 100, 100]
    narrow = Caps(bytes_per_minute=5_000)
    assert pace(ramp, narrow, confirmed=200, bytes_each=1_000) == 5
    assert pace(Ramp(base=10, factor=1), caps, confirmed=10**6, bytes_each=0) == 10


@given(
    st.lists(st.tuples(st.floats(0, 120), st.integers(0, 50)), min_size=1, max_size=60),
    st.floats(1, 1_000),
)
def test_the_bucket_of_offers_never_gives_more_than_the_pace_and_what_it_holds(
    asked: list[tuple[float, int]], speed: float
) -> None:
    tokens, at, last, given_out, passed = 0.0, ZERO, None, 0, 0.0
    for wait, wanted in asked:
        at, passed = at + timedelta(seconds=wait), passed + wait
        tokens = filled(tokens, last, per_minute=speed, now=at)
        taken, last = min(int(tokens), wanted), at
        tokens, given_out = tokens - taken, given_out + taken
    assert given_out <= max(1.0, speed / 6) + speed * passed / 60 + 1e-6
