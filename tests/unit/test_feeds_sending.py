"""How webhooks are signed, when they are tried again, and where they may lead."""

import base64
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.feeds.sending import (
    FIRST_WAIT_S,
    MOST_WAIT_S,
    TRIED_FOR,
    AddressError,
    demand_address,
    headers_of,
    is_outward,
    wait_s,
)


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = headers_of(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        secret=secret,
        body=b'{"test": 2432232314}',
        at_s=1614265330,
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-timestamp"] == "1614265330"


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True))
def test_waits_grow_to_a_ceiling_and_are_spread_by_half(failures: int, chance: float) -> None:
    waited = wait_s(failures, chance)
    assert FIRST_WAIT_S / 2 <= waited <= MOST_WAIT_S * 1.5
    assert wait_s(failures + 1, chance) >= waited
    assert wait_s(failures, 0.0) * 3 > wait_s(failures, 0.999)


def test_a_receiver_that_is_down_for_three_days_is_asked_some_twenty_times() -> None:
    total, tries = 0.0, 1
    while total < TRIED_FOR.total_seconds():
        total += wait_s(tries, 0.5)
        tries += 1
    assert 18 <= tries <= 26


INWARD = (
    *("127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1"),
    *("fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1"),
    *("64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "fe80::1%eth0"),
)


@pytest.mark.parametrize("address", INWARD)
def test_what_leads_inwards_is_no_address_for_a_webhook(address: str) -> None:
    assert not is_outward(address)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(AddressError):
        demand_address(f"https://{host}/hook")


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_what_is_public_is_one(address: str) -> None:
    assert is_outward(address)


@given(st.integers(0, (1 << 32) - 1))
def test_an_ipv4_address_is_judged_the_same_by_every_name(number: int) -> None:
    plain = ipaddress.IPv4Address(number)
    assert is_outward(f"::ffff:{plain}") == is_outward(str(plain))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://example.com/",
            "ftp://example.com/",
            "https:///x",
            "//example.com",
            "",
            "https://",
        ),
        *("https://user@example.com/", "https://example.com/#x", "https://example.com:99999/"),
        *(
            "https://exa mple.com/",
            "https://example.com/\n",
            "https://ex\0ample.com/",
            "https://[x",
        ),
        "https://example.com/" + "x" * 500,
    ],
)
def test_what_is_no_https_address_is_refused(url: str) -> None:
    with pytest.raises(AddressError):
        demand_address(url)


def test_what_is_one_is_taken() -> None:
    demand_address("https://example.com:8443/hook?shop=1")
