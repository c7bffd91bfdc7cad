"""Device ids and topics: one spelling each."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.identity import device_id
from protocol.topics import MAX_TOPIC, Leg, Topic, parse, shard_of, topic

ids = st.from_regex(r"[a-z0-9][a-z0-9-]{6,34}[a-z0-9]", fullmatch=True)


@given(ids, st.sampled_from(Leg))
def test_a_topic_says_shard_device_and_leg(text: str, leg: Leg) -> None:
    device = device_id(text)
    written = topic(device, leg)
    assert parse(written) == Topic(shard_of(device), device, leg)
    assert len(written) <= MAX_TOPIC
    assert written == f"v1/{hashlib.sha256(text.encode()).hexdigest()[:2]}/{text}/{leg.value}"


@given(ids, st.integers(0, 255))
def test_another_shard_than_the_devices_own_is_refused(text: str, shard: int) -> None:
    if f"{shard:02x}" != shard_of(text):
        with pytest.raises(ValueError, match="shard of"):
            parse(f"v1/{shard:02x}/{text}/up")


@given(st.text(max_size=80))
def test_a_text_is_a_topic_only_if_it_is_written_like_one(text: str) -> None:
    try:
        found = parse(text)
    except ValueError:
        return
    assert topic(found.device, found.leg) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1",
        "v2/00/door-counter-1/up",
        "v1/00/door-counter-1/up/more",
        "v1/00/DOOR-COUNTER/up",
        "v1/+/+/up",
        "v1/00/#",
        f"v1/{shard_of('door-counter-1')}/door-counter-1/sideways",
        f"v1/{shard_of('door-counter-1').upper()}g/door-counter-1/up",
        "v1/00/" + "a" * 60 + "/up",
    ],
)
def test_what_is_no_topic_of_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["", "short-1", "a" * 37, "-begins-so", "ends-so-", "Has-Capitals", "has_under", "has space1",
     "has/slash", "plus+plus", "hash#hash", "dots.dots", "newline-1\n", "nul\x00nul1", "ångström1"],
)  # fmt: skip
def test_what_is_no_device_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a device id is"):
        device_id(text)
