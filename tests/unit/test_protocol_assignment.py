"""Assignments and releases: read back whole, or refused where they are wrong."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.assignment import (
    MAX_ASSIGNMENT,
    MAX_WINDOWS,
    Assignment,
    Envelope,
    Item,
    envelope_of,
    read_assignment,
    read_envelope,
)
from protocol.content import ContentError, Fault, canonical
from protocol.release import Release, read_release, target_path, version_key
from server.fleet.versions import key

DIGEST = "ab" * 32
AGENT = Item("agent", "1.2.3", "1.1.0", target_path("agent", "1.2.3", DIGEST), 81_920, DIGEST)
KIOSK = Item("kiosk", "2.0.0", "2.0.0", target_path("kiosk", "2.0.0", DIGEST), 5, DIGEST)
ASSIGNMENT = Assignment(
    device="dc-2b3c4d5e6f7g",
    hardware="DC2",
    rollout="ro-2b3c4d5e",
    execution="exe-2b3c4d5e",
    attempt=1,
    bundle=(AGENT, KIOSK),
    nonce="0f" * 16,
    not_after_ms=1_793_500_000_000,
    window=((1_793_491_200_000, 1_793_494_800_000),),
    idle_s=60,
)
RELEASE = Release("agent", "1.2.3", "1.1.0", "1.0.0", ("DC2", "DC3"), "Counts dogs no more")

numbers = st.integers(0, 999_999_999)
versions = st.builds("{}.{}.{}".format, numbers, numbers, numbers)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
items = st.builds(
    Item,
    st.sampled_from(["agent", "kiosk"]),
    versions,
    versions,
    st.text("abc/.-", min_size=1, max_size=300),
    st.integers(1, 256 << 20),
    digests,
)


@given(
    st.lists(items, min_size=1, max_size=2, unique_by=lambda item: item.component),
    st.lists(
        st.integers(0, 1 << 47).flatmap(
            lambda a: st.tuples(st.just(a), st.integers(a + 1, 1 << 48))
        ),
        max_size=MAX_WINDOWS,
    ),
    st.booleans(),
)
def test_an_assignment_is_read_as_it_was_written(
    bundle: list[Item], window: list[tuple[int, int]], urgent: bool
) -> None:
    made = replace(ASSIGNMENT, bundle=tuple(bundle), window=tuple(window), urgent=urgent)
    assert read_assignment(made.content()) == made
    envelope = Envelope(made.content(), b"\x30\x01", "PEM\n")
    assert read_envelope(envelope.content()) == envelope == envelope_of(envelope.value())


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("device", "DC 2"),
        ("hardware", "x" * 65),
        ("rollout", "../etc"),
        ("execution", "exe-"),
        ("attempt", 0),
        ("attempt", True),
        ("bundle", []),
        ("bundle", [AGENT, AGENT]),
        ("nonce", "0F" * 16),
        ("not_after", -1),
        ("window", [[2, 2]]),
        ("window", [[1, 2]] * (MAX_WINDOWS + 1)),
        ("idle_s", 86_401),
        ("delay_s", 30 * 86_400 + 1),
        ("trial_s", 0),
        ("urgent", 1),
    ],
)
def test_what_is_out_of_its_caps_is_refused_where_it_stands(where: str, value: object) -> None:
    data = json.loads(ASSIGNMENT.content())
    if value == [AGENT, AGENT]:
        value = [data["bundle"][0]] * 2
    with pytest.raises(ContentError) as caught:
        read_assignment(canonical(data | {where: value}))
    assert caught.value.where.split("[")[0] == where
    assert caught.value.fault in (Fault.BAD_FIELD, Fault.BAD_TEXT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("component", "sensor"),
        ("version", "1.2"),
        ("version", "01.2.3"),
        ("version", "1.2.3rc1"),
        ("floor", "1.٢.3"),
        ("target", ""),
        ("length", 0),
        ("length", (256 << 20) + 1),
        ("sha256", "AB" * 32),
    ],
)
def test_a_component_out_of_its_caps_is_refused_where_it_stands(name: str, value: object) -> None:
    data = json.loads(ASSIGNMENT.content())
    data["bundle"][1][name] = value
    with pytest.raises(ContentError) as caught:
        read_assignment(canonical(data))
    assert caught.value.where == f"bundle[1].{name}"


def test_only_the_one_form_of_an_assignment_is_read() -> None:
    content = ASSIGNMENT.content()
    for other, fault in (
        (content.replace(b":1,", b": 1,", 1), Fault.NOT_CANONICAL),
        (content.replace(b'"format":1', b'"format":2'), Fault.UNKNOWN_FORMAT),
        (content[:-1] + b',"zeal":1}', Fault.BAD_FIELD),
        (content + b" " * MAX_ASSIGNMENT, Fault.TOO_LARGE),
        (content[:-1], Fault.NOT_JSON),
    ):
        with pytest.raises(ContentError) as caught:
            read_assignment(other)
        assert caught.value.fault is fault


def test_a_release_is_read_as_it_was_signed() -> None:
    assert read_release(RELEASE.custom()) == RELEASE
    bare = replace(RELEASE, requires=None, notes="")
    assert read_release(bare.custom()) == bare


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("component", "sensor"),
        ("floor", "1.2.4"),  # above the version: nothing could be installed after it
        ("requires", "1.2.3"),
        ("hardware", []),
        ("hardware", ["DC2", "DC2"]),
        ("notes", "two\nlines"),
    ],
)
def test_a_release_that_contradicts_itself_is_refused(name: str, value: object) -> None:
    with pytest.raises(ContentError) as caught:
        read_release({**RELEASE.custom(), name: value})
    assert caught.value.where == name


@given(versions, versions)
def test_versions_have_the_order_that_the_register_gives_them(one: str, other: str) -> None:
    mine, theirs = version_key(one) < version_key(other), (key(one), key(other))
    assert theirs[0] is not None
    assert theirs[1] is not None
    assert mine == (theirs[0] < theirs[1])
