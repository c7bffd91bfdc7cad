"""A kiosk's codes: each is shown once, whenever the power goes, and only while they are good."""

import asyncio
import json
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import identity
from agent.clock import ManualClock
from agent.codes import Codes
from agent.content import Terms
from agent.enrol import Answered
from agent.identity import Enrolled
from protocol.codes import (
    MAX_CODES,
    SIGNED,
    Code,
    Envelope,
    Stock,
    read_envelope,
    read_stock,
)
from protocol.content import ContentError, canonical
from server.feedback.plans import ContentSigner
from server.pki.authority import Authority
from server.pki.signer import sign_with

DEVICE = "fk-2345abcdefgh"
NOW = datetime.now(UTC)
NOW_MS = round(NOW.timestamp() * 1000)
DAY_MS = 86_400_000


def stock(n: int, *, number: int = 0, until_ms: int = NOW_MS + 30 * DAY_MS) -> Stock:
    codes = tuple(Code(f"{number:012d}{at:012d}", f"{number:04d}-{at:04d}") for at in range(n))
    return Stock(DEVICE, f"offer-{number}", "https://shop.example/s", until_ms, codes)


class PowerCutError(BaseException):
    """The power goes: no handler of the agent's sees it."""


class Device:
    """An enrolled device's disk, whose power goes at a chosen moment of a chosen write."""

    def __init__(self, home: Path, pki: Path, authority: Authority) -> None:
        self.state = home
        self.signer = ContentSigner.load(pki)
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        pem = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        issued = authority.issue_device(pem, device=DEVICE, now=NOW)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        identity.put(home / "pending", secret, mode=0o600)
        identity.write(
            home,
            Enrolled(DEVICE, "kiosk", "127.0.0.1", 1, "claim", "127.0.0.1", 1),
            key=home / "pending",
            chain=issued.chain_pem.decode(),
            bundle=authority.bundle(),
        )
        self.clock = ManualClock(utc_ms=NOW_MS)
        self.answer: dict[str, object] = {"standing": "none"}

    def sealed(self, wanted: Stock) -> dict[str, object]:
        content = wanted.content()
        signature = sign_with(self.signer.key, SIGNED + content)
        envelope = Envelope(content, signature, self.signer.chain).content().decode()
        return {"standing": "new", "envelope": envelope}

    def start(self) -> Codes:
        server = ("127.0.0.1", 1)
        made = Codes(Terms(self.state, server, self.clock, random.Random(1), lambda: 0, 0.0))

        async def asked(*_: object, **__: object) -> Answered:
            return Answered(200, "OK", "", json.dumps(self.answer))

        made._asked = asked  # type: ignore[method-assign]
        return made


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Authority]:
    pki = tmp_path_factory.mktemp("pki")
    authority = Authority.create(pki)
    authority.ensure_services(now=NOW)
    return pki, authority


@pytest.fixture
def device(tmp_path: Path, fleet: tuple[Path, Authority]) -> Device:
    return Device(tmp_path / "state", *fleet)


async def taking(device: Device, wanted: Stock) -> Codes:
    codes = device.start()
    device.answer = device.sealed(wanted)
    await codes.step()
    assert codes.trouble == ""
    return codes


async def test_codes_are_shown_in_their_order_until_none_is_left(device: Device) -> None:
    codes = await taking(device, stock(3))
    shown = [codes.take() for _ in range(4)]
    typed = [each and each.typed for each in shown]
    assert typed == ["0000-0000", "0000-0001", "0000-0002", None]
    assert not codes.ready
    assert not device.start().ready


async def test_no_code_is_shown_once_it_is_over_or_when_the_time_is_not_known(
    device: Device,
) -> None:
    codes = await taking(device, stock(3, until_ms=NOW_MS + 60_000))
    assert codes.ready
    device.clock.advance(60_000)
    assert (codes.ready, codes.take()) == (False, None)
    unsure = await taking(device, stock(3, number=1))
    assert unsure.ready
    device.clock.forget_utc()
    assert (unsure.ready, unsure.take()) == (False, None)


async def test_a_stock_without_its_own_mark_is_not_shown(device: Device) -> None:
    await taking(device, stock(3))
    mark = device.state / "codes.shown"
    good = mark.read_bytes()
    for bad in (b"", b"{}", b'{"stock": "x", "shown": 0}', good.replace(b": 0}", b": -1}")):
        mark.write_bytes(bad)
        assert not device.start().ready, bad
    mark.unlink()
    assert not device.start().ready
    mark.write_bytes(good)
    assert device.start().left == 3


async def test_a_disk_that_takes_no_mark_shows_no_code(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = await taking(device, stock(3))

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(identity, "put", full)
        assert codes.take() is None
    first = codes.take()
    assert first is not None
    assert first.typed == "0000-0000"


@contextmanager
def power(at: int) -> Iterator[None]:
    """Let the power go at the `at`-th moment of writing: before a file is replaced, or after."""
    moments = 0

    def put(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        nonlocal moments
        for done in (False, True):
            if done:
                whole(path, data, mode=mode)
            moments += 1
            if moments == at:
                raise PowerCutError

    whole, identity.put = identity.put, put
    try:
        yield
    finally:
        identity.put = whole


@settings(deadline=None, max_examples=25)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(("take", "new", "restart")), st.integers(0, 5)), max_size=25
    )
)
def test_no_code_is_shown_twice_whenever_the_power_goes(
    steps: list[tuple[str, int]], fleet: tuple[Path, Authority]
) -> None:
    asyncio.run(interrupted(steps, fleet))


async def interrupted(steps: list[tuple[str, int]], fleet: tuple[Path, Authority]) -> None:
    """Go through the steps, each with the power going at a moment of its own, or never."""
    shown: list[str] = []
    with tempfile.TemporaryDirectory() as home:
        device, number = Device(Path(home) / "state", *fleet), 0
        codes = await taking(device, stock(4))
        for step, cut in steps:
            try:
                with power(cut):
                    if step == "take":
                        found = codes.take()
                        shown += [] if found is None else [found.url]
                    elif step == "new":
                        number += 1
                        device.answer = device.sealed(stock(4, number=number))
                        await codes.step()
                    else:
                        codes = device.start()
            except PowerCutError:
                codes = device.start()
        assert len(set(shown)) == len(shown)


async def test_what_the_server_says_of_a_stock_is_done(device: Device) -> None:
    codes = await taking(device, stock(3))
    codes.take()
    device.answer = {"standing": "keep"}
    await codes.step()
    assert codes.left == 2
    device.answer = {"standing": "none"}
    await codes.step()
    assert (codes.left, (device.state / "codes.json").exists()) == (0, False)
    for said in ({"standing": "new"}, {"standing": "new", "envelope": "{}"}, {}, {"standing": 1}):
        device.answer = dict(said)
        await codes.step()
        assert codes.trouble != "", said
    assert codes.refused == 4


def test_a_stock_is_read_as_it_was_written_and_nothing_else_is() -> None:
    wanted = stock(3)
    content = wanted.content()
    assert read_stock(content, device=DEVICE) == wanted
    whole = json.loads(content)

    def refused(**other: Any) -> bool:
        with pytest.raises(ContentError):
            read_stock(canonical(whole | other), device=DEVICE)
        return True

    wrong: tuple[dict[str, Any], ...] = (
        *({"device": "fk-another"}, {"format": 2}, {"until": -1}, {"until": "1"}, {"more": 1}),
        *({"address": "shop.example"}, {"address": "javascript:alert(1)"}, {"offer": ""}),
        *({"codes": []}, {"codes": whole["codes"] * 2}, {"codes": [["A" * 24]]}),
        {"codes": [["a" * 24, "B"]]},
        {"codes": [[f"{at:024d}", "AAAA"] for at in range(MAX_CODES + 1)]},
    )
    assert all(refused(**each) for each in wrong)
    with pytest.raises(ContentError):
        read_envelope(b'{"stock":"x"}')
    envelope = Envelope(content, b"signature", "chain")
    assert read_envelope(envelope.content()) == envelope
