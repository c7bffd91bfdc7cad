"""A device that enrols itself by its label: what it shows, how it waits, what it leaves behind."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from agent import command, factory, identity
from agent.clock import SystemClock
from agent.config import AgentConfig, ConfigError
from agent.enrol import EnrolError, Labelled, Then, Ticket, Token, pause_s
from agent.identity import Enrolled, NotEnrolledError
from agent.notify import Notifier
from protocol.frame import Quality

SECRET = "23456789ABCDEFGH"
SERVER = "https://fleet.example:8443"
ROOT = "ab" * 32
DONE = Enrolled("dc-0000001", "counter", "broker", 8883, "claim")


class Clock(SystemClock):
    """Its sleeps are noted and cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def monotonic_ms(self) -> int:
        return round(sum(self.slept) * 1000)

    def offset(self) -> tuple[Quality, int]:
        return Quality.SYNCED, 0

    async def sleep(self, seconds: float) -> None:
        if seconds != factory.BEAT_S:
            self.slept.append(seconds)
        await asyncio.sleep(0)


def labelled(state: Path) -> AgentConfig:
    return AgentConfig(
        state=state, server=SERVER, root_sha256=ROOT, serial="dc-0001", setup_secret=SECRET
    )


def leave(state: Path, **said: str) -> None:
    state.mkdir(exist_ok=True)
    (state / factory.FILE).write_text(json.dumps(said))


def test_the_factory_names_server_and_label_and_a_technician_adds_a_voucher(
    tmp_path: Path,
) -> None:
    plain = factory.ticket(labelled(tmp_path))
    assert isinstance(plain, Labelled)
    assert plain.body == {"serial": "DC-0001", "secret": SECRET}
    leave(tmp_path, voucher="vsv1.a.b", spot="spot-1")
    with_voucher = factory.ticket(labelled(tmp_path))
    assert with_voucher is not None
    assert with_voucher.body == plain.body | {"voucher": "vsv1.a.b", "spot": "spot-1"}
    assert with_voucher.claim == plain.claim  # so the same key goes with it
    assert SECRET not in repr(with_voucher) + repr(labelled(tmp_path))


def test_a_token_on_the_card_goes_before_the_label(tmp_path: Path) -> None:
    leave(tmp_path, token="vst1.nonsense")
    with pytest.raises(ConfigError):
        factory.ticket(labelled(tmp_path))


def test_without_a_label_there_is_nothing_to_enrol_by(tmp_path: Path) -> None:
    assert factory.ticket(AgentConfig(state=tmp_path)) is None
    assert factory.ticket(AgentConfig(state=tmp_path, serial="DC-1")) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"spot": 3}', '{"serail": "x"}', "\0"])
def test_a_file_that_cannot_be_read_is_passed_over(tmp_path: Path, text: str) -> None:
    (tmp_path / factory.FILE).write_text(text)
    assert factory.left(tmp_path) == {}
    assert isinstance(factory.ticket(labelled(tmp_path)), Labelled)


def test_what_is_waited_for_and_how_long() -> None:
    pending = EnrolError("wait", code="pending", retry_after_s=15)
    ask = EnrolError("ask", then=Then.ASK)
    assert pause_s(pending, waited_s=0, dice=0.5) == 15
    assert pause_s(pending, waited_s=3_000, dice=0.5) == 300
    assert pause_s(pending, waited_s=1e9, dice=0.0) == 450
    assert pause_s(ask, waited_s=0, dice=0.999) == pytest.approx(75, abs=1)
    assert pause_s(EnrolError("?"), waited_s=0, dice=0.5) == 10


async def test_a_device_asks_until_it_is_let_in_and_leaves_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [
        EnrolError("nobody there"),
        EnrolError("announce it first", then=Then.ASK, code="unknown_serial"),
        EnrolError("wait", code="pending", retry_after_s=15),
        EnrolError("a copied card", then=Then.GIVE_UP, code="key_in_use"),  # another key will do
        DONE,
    ]

    def answered(ticket: Ticket, **_: Any) -> Enrolled:
        answer = answers.pop(0)
        if isinstance(answer, EnrolError):
            raise answer
        assert isinstance(answer, Enrolled)
        return answer

    monkeypatch.setattr(factory, "enrol_by", answered)
    leave(tmp_path, voucher="vsv1.a.b")
    clock = Clock()
    done = await factory.enrolled(
        labelled(tmp_path), clock=clock, rng=random.Random(1), notifier=Notifier({})
    )
    assert done == DONE
    assert len(clock.slept) == 4
    assert 45 <= clock.slept[1] <= 75
    assert not (tmp_path / factory.FILE).exists()


async def test_a_refusal_for_good_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Enrolled:
        raise EnrolError("reinstall", then=Then.GIVE_UP, code="bad_request_for_certificate")

    monkeypatch.setattr(factory, "enrol_by", refused)
    with pytest.raises(EnrolError):
        await factory.enrolled(
            labelled(tmp_path), clock=Clock(), rng=random.Random(1), notifier=Notifier({})
        )
    with pytest.raises(NotEnrolledError):
        await factory.enrolled(
            AgentConfig(state=tmp_path), clock=Clock(), rng=random.Random(1), notifier=Notifier({})
        )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EnrolError("blocked", then=Then.ASK, code="device_not_admitted"), command.REFUSED),
        (EnrolError("no answer"), command.TEMPORARY),
        (EnrolError("wait", code="pending"), command.TEMPORARY),
        (None, command.OK),
    ],
)
def test_the_command_says_the_sentence_and_an_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: EnrolError | None,
    code: int,
) -> None:
    shown: list[Ticket] = []

    def answered(ticket: Ticket, **_: Any) -> Enrolled:
        shown.append(ticket)
        if error is not None:
            raise error
        return DONE

    monkeypatch.setattr(command, "enrol_by", answered)
    monkeypatch.setenv("VESTIBULE_AGENT_STATE", str(tmp_path))
    words = f"enrol --server {SERVER} --root {ROOT} --serial dc-0001 --secret {SECRET} --no-wait"
    assert command.main([*words.split(), "--voucher", "vsv1.a.b"]) == code
    (ticket,) = shown
    assert ticket.body == {"serial": "DC-0001", "secret": SECRET, "voucher": "vsv1.a.b"}
    said = capsys.readouterr()
    assert (str(error) in said.err) if error else (DONE.device in said.out)


def test_the_command_waits_for_a_technician_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [EnrolError("scan the label", code="pending", retry_after_s=15)] * 3
    monkeypatch.setattr("agent.command.time.sleep", lambda _: None)

    def answered(*_: Any, **__: Any) -> Enrolled:
        if answers:
            raise answers.pop()
        return DONE

    monkeypatch.setattr(command, "enrol_by", answered)
    monkeypatch.setenv("VESTIBULE_AGENT_STATE", str(tmp_path))
    words = f"enrol --server {SERVER} --root {ROOT} --serial DC-0001 --secret {SECRET}"
    assert command.main(words.split()) == command.OK
    assert capsys.readouterr().err.count("scan the label") == 1


@pytest.mark.parametrize(
    "words",
    [
        "enrol",
        f"enrol --serial DC-0001 --secret {SECRET}",
        f"enrol --server {SERVER} --root {ROOT} --serial DC-0001 --secret {SECRET[:-1]}0",
        f"enrol --server http://x --root {ROOT} --serial DC-0001 --secret {SECRET}",
    ],
)
def test_a_label_that_is_not_whole_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setenv("VESTIBULE_AGENT_STATE", str(tmp_path))
    assert command.main(words.split()) == command.USAGE


def test_tickets_hide_what_they_hold() -> None:
    token = Token("h", 443, bytes(32), SECRET)
    assert token.once
    assert SECRET not in repr(token)
    files = identity.files(Path("/state"))
    assert files.pending_key(token.claim).name == f"key-{token.claim[:16]}.pem"
