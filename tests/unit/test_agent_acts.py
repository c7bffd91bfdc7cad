"""What a device can be told to do: each gives what it says, no secret leaves, no size is passed."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from agent import logs
from agent.acts import Acts
from agent.config import AgentConfig
from agent.feed import Feeders
from agent.orders import FailedError
from agent.recorder import RefusedError
from protocol.state import MAX_FILE, MAX_RESULT, MAX_TEXT, Order

SECRET = "2345-6789-ABCD"


class Device:
    """Acts, and what they did."""

    def __init__(self, state: Path, **settings: Any) -> None:
        self.sent: list[bytes] = []
        self.restarts = 0
        config = replace(
            AgentConfig(state=state, setup_secret=SECRET, screen_pin="246813"), **settings
        )
        self.acts = Acts(
            config,
            status=lambda: {"device": "dc-1", "trouble": ""},
            metrics=lambda: {"uptime.s": 3.0},
            identify=lambda: "feeder",
            restart=self.restart,
            send=self.send,
        )

    def restart(self) -> None:
        self.restarts += 1

    async def send(self, order: Order, content: bytes) -> None:
        self.sent.append(content)

    async def do(self, kind: str, lines: int = 0) -> Any:
        return await self.acts(Order("cmd-abcdefgh", kind, 60, lines))


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    logs._tail.clear()
    logs.configure("info")
    yield structlog.get_logger("test")
    structlog.reset_defaults()
    logs._tail.clear()
    logs._ours = False


async def test_a_self_test_says_of_each_part_how_it_is(tmp_path: Path) -> None:
    found = await Device(tmp_path).do("self-test")
    assert found["outbox"] == "ok"
    assert found["identity"].startswith("FAIL")
    assert len(found) <= MAX_RESULT
    assert all(len(text) <= MAX_TEXT and text.isprintable() for text in found.values())


async def test_a_log_is_sent_from_its_end_without_secrets(tmp_path: Path, log: Any) -> None:
    device = Device(tmp_path)
    for number in range(logs.KEPT + 50):
        log.info("something happened", number=number, setup_secret=SECRET, screen_pin=2468)
    log.debug("not of this level")
    logs.set_level("debug")
    log.debug("by now it is")
    assert await device.do("log-tail", 3) == {"bytes": len(device.sent[0]), "lines": 3}
    lines = gzip.decompress(device.sent[0]).decode().splitlines()
    assert len(lines) == 3
    assert "by now it is" in lines[-1]
    assert f"number={logs.KEPT + 49}" in lines[-2]
    assert logs.HIDDEN in lines[-2]
    assert SECRET not in "".join(logs.tail(999))
    assert "2468" not in "".join(logs.tail(999))
    assert len(logs.tail(999)) == logs.KEPT


async def test_a_bundle_holds_what_helps_and_no_secret(tmp_path: Path, log: Any) -> None:
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "key.pem").write_text("PRIVATE")
    (tmp_path / "plan.json").write_text("{}")
    device = Device(tmp_path)
    log.info("a line", token=SECRET)
    await device.do("diagnostics")
    text = gzip.decompress(device.sent[0]).decode()
    said = json.loads(text)
    assert set(said) == {"status", "metrics", "settings", "self-test", "files", "log"}
    assert said["files"] == {"plan.json": 2}
    assert said["settings"]["health_s"] == 900
    for secret in (SECRET, "246813", "PRIVATE"):
        assert secret not in text


async def test_a_bundle_that_would_be_too_large_leaves_old_lines_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Any
) -> None:
    for number in range(50):
        log.info(f"line {number}", seen=hashlib.sha256(bytes([number])).hexdigest())
    monkeypatch.setattr("agent.acts.MAX_FILE", 2_500)
    device = Device(tmp_path)
    await device.do("diagnostics")
    assert len(device.sent[0]) <= 2_500 < MAX_FILE
    kept = json.loads(gzip.decompress(device.sent[0]))["log"]
    assert 0 < len(kept) < 50
    assert "line 49" in kept[-1]


async def test_without_a_command_of_the_machines_own_the_agent_starts_anew(tmp_path: Path) -> None:
    device = Device(tmp_path)
    task = asyncio.create_task(device.do("reboot"))
    await asyncio.sleep(0)
    assert device.restarts == 1
    assert not task.done()  # its end is the next start's to tell
    task.cancel()


async def test_a_machine_that_can_not_be_restarted_is_a_failure_and_the_agent_runs_on(
    tmp_path: Path,
) -> None:
    said = f"{sys.executable} -c \"import sys; sys.exit('no rights')\""
    for reboot, code in ((said, "no rights"), ("/nowhere/reboot", "No such file")):
        device = Device(tmp_path, reboot=reboot)
        with pytest.raises(FailedError) as error:
            await device.do("reboot")
        assert error.value.code == "reboot_failed"
        assert code in str(error.value.result["error"])
        assert device.restarts == 0


async def test_what_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FailedError) as error:
        await Device(tmp_path).do("dance")
    assert error.value.code == "unknown_command"
    assert await Device(tmp_path).do("identify") == {"shown": "feeder"}


def test_feeders_are_asked_to_blink() -> None:
    class Feeder:
        def __init__(self) -> None:
            self.heard: list[dict[str, object]] = []

        def answer(self, message: dict[str, object]) -> None:
            self.heard.append(message)

    def take(_: object) -> None:
        raise RefusedError("nothing")

    feeders, one = Feeders(last_id=lambda _: 0, status=dict), Feeder()
    assert feeders.identify() == ""
    feeders.line(b'{"source": "radar"}', take=take, feeder=one)
    assert feeders.identify() == "feeder"
    assert one.heard[-1] == {"identify": True}
