"""The page's server: what it takes, from whom, and what a button means."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.clock import ManualClock
from agent.codes import Offered
from agent.gpio import GpioButton
from agent.kiosk import BUILT_IN, Visits
from agent.plan import OnScreen
from agent.recorder import RefusedError
from agent.screen.http import MAX_BODY, MAX_HEAD, serve
from agent.screen.screen import Screen
from agent.sensor import Button, Event, Touch
from protocol.questionnaire import Questionnaire

PIN = "2468"


@dataclass
class Shown:
    """Plans of a device that was given none."""

    site: str = "Söder"
    trouble: str = ""
    now: OnScreen = field(default_factory=lambda: OnScreen(bytes(8), BUILT_IN))

    def on_screen(self) -> OnScreen:
        return self.now

    def known(self, hash_: bytes) -> Questionnaire | None:
        return BUILT_IN if hash_ == bytes(8) else None


@dataclass
class Stock:
    """Codes that were handed out."""

    left: int = 0

    @property
    def ready(self) -> bool:
        return self.left > 0

    def take(self) -> Offered | None:
        self.left -= 1
        return Offered("https://a/s/B", "B", "https://a/s", ["10"]) if self.left >= 0 else None


@dataclass
class Device:
    """A screen whose presses are journalled when `works`."""

    screen: Screen
    clock: ManualClock
    taken: list[Touch]
    works: bool = True
    port: int = 0

    def flush(self) -> bool:
        return self.works

    def last_id(self, source: str) -> int:
        ids = [t.feed.id for t in self.taken if t.feed is not None and t.feed.source == source]
        return max(ids, default=0) if self.works else 0

    async def raw(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            answered = await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()
        head, _, body = answered.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), body

    async def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any]:
        content = b"" if body is None else json.dumps(body).encode()
        named = {"Host": f"127.0.0.1:{self.port}", "Content-Length": str(len(content))}
        named |= {"Content-Type": "application/json"} if content else {}
        named |= {name.replace("_", "-"): text for name, text in headers.items()}
        lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {t}" for n, t in named.items()), "", ""]
        status, text = await self.raw("\r\n".join(lines).encode() + content)
        return status, json.loads(text) if text.startswith(b"{") else text

    async def press(self, **more: object) -> tuple[int, Any]:
        body = {"client": "0123456789abcdef", "id": 1, "hash": "00" * 8, "question": 0,
                "answer": 2, "visit": "a", **more}  # fmt: skip
        return await self.ask("POST", "/press", body)


@pytest.fixture
async def device() -> AsyncIterator[Device]:
    clock, taken, visits = ManualClock(), [], Visits()

    def take(event: Event) -> None:
        assert isinstance(event, Touch)
        taken.append(event)

    screen = Screen(
        Shown(),  # type: ignore[arg-type]
        Stock(),  # type: ignore[arg-type]
        port=0,
        pin=PIN,
        clock=clock,
        visits=visits,
        take=take,
        flush=lambda: made.flush(),
        last_id=lambda source: made.last_id(source),
        status=lambda: {
            "device": "fk-1", "connected": False, "frames_waiting": 2, "clock": "synced",
            "trouble": "",
        },
    )  # fmt: skip
    made = Device(screen, clock, taken)
    serving: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve(screen._serve, port=0, ready=serving.set_result))
    made.port = await serving
    yield made
    task.cancel()
    await asyncio.wait({task})


async def test_a_press_is_answered_once_it_is_on_disk_and_recorded_once(device: Device) -> None:
    device.works = False
    assert (await device.press())[0] == 503
    assert (await device.press())[0] == 503
    device.works = True
    assert await device.press() == (200, {"stored": 1})
    assert await device.press() == (200, {"stored": 1})
    assert await device.press(id=3, answer=0, by="button") == (200, {"stored": 3})
    assert await device.press(id=4, visit="b") == (200, {"stored": 4})
    assert await device.press(client="f" * 16, id=1, visit="b") == (200, {"stored": 1})
    told = [(t.answer, t.source, t.visit, t.questionnaire) for t in device.taken]
    assert told == [
        (2, 1, 1, bytes(8)),
        (0, 2, 1, bytes(8)),
        (2, 1, 2, bytes(8)),
        (2, 1, 3, bytes(8)),
    ]


async def test_a_press_for_what_was_not_on_the_screen_is_refused_and_counted_as_such(
    device: Device,
) -> None:
    for more in ({"hash": "11" * 8}, {"hash": "zz"}, {"question": 1}, {"answer": 4}):
        assert (await device.press(**more))[0] == 409, more
    assert device.screen.metrics()["screen.refused"] == 4
    for more in ({"id": 0}, {"id": "1"}, {"answer": -1}, {"client": "x"}, {"visit": "A"}):
        assert (await device.press(**more))[0] == 400, more
    assert device.taken == []


async def test_only_the_page_itself_is_served(device: Device) -> None:
    assert (await device.ask("GET", "/"))[0] == 200
    assert (await device.ask("GET", "/", Host="attacker.example"))[0] == 421
    own = f"http://127.0.0.1:{device.port}"
    assert (await device.ask("GET", "/", Origin=own))[0] == 200
    assert (await device.ask("POST", "/press", {}, Origin="http://attacker.example"))[0] == 403
    assert (await device.ask("POST", "/press", {}, Content_Type="text/plain"))[0] == 415
    assert (await device.ask("GET", "/../screen.py"))[0] == 404
    assert (await device.ask("DELETE", "/press"))[0] == 404
    assert (await device.ask("POST", "/press", "x"))[0] == 400
    assert (await device.ask("POST", "/press", {"a": "b" * MAX_BODY}))[0] == 413
    assert (await device.raw(b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_HEAD + b"\r\n\r\n"))[0] == 431
    assert (await device.raw(b"nonsense\r\n\r\n"))[0] == 400


async def test_a_slots_screen_counts_as_drawn_once_a_page_of_it_says_so(
    device: Device, tmp_path: Path
) -> None:
    (tmp_path / "films").mkdir()
    for name, text in (
        ("page.html", "new"),
        ("films/a.mp4", "film"),
        ("x.py", "no"),
        ("slot.json", "{}"),
    ):
        (tmp_path / name).write_text(text)
    _, state = await device.ask("GET", "/state?number=0&drawn=package")
    assert state["build"] == "package"
    device.screen.show(tmp_path, "abc", 600)
    _, state = await device.ask("GET", f"/state?number={state['number']}&drawn=package")  # at once
    assert state["build"] == "abc"
    assert not device.screen.drawn
    await device.ask("GET", "/state?number=0&drawn=abc")
    assert not device.screen.drawn  # nobody has fetched it
    assert await device.ask("GET", "/") == (200, b"new")
    assert await device.ask("GET", "/films/a.mp4") == (200, b"film")
    assert (await device.ask("GET", "/x.py"))[0] == 404
    assert (await device.ask("GET", "/page.css"))[0] == 404
    await device.ask("GET", "/state?number=0&drawn=abc")
    assert device.screen.drawn
    device.screen.show(None, "package", 0)
    assert not device.screen.drawn
    assert b"<html" in (await device.ask("GET", "/"))[1]


async def test_a_screen_on_trial_loads_anew_by_itself_once_that_is_over(
    device: Device, tmp_path: Path
) -> None:
    async def head() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", device.port)
        writer.write(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{device.port}\r\n\r\n".encode())
        answered = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answered.partition(b"\r\n\r\n")[0]

    (tmp_path / "page.html").write_text("broken")
    assert b"Refresh" not in await head()
    device.screen.show(tmp_path, "abc", 600)
    assert b"\r\nRefresh: 630" in await head()
    device.screen.show(tmp_path, "abc", 0)
    assert b"Refresh" not in await head()


async def test_a_button_on_the_case_means_an_answer_of_an_open_page_or_nothing(
    device: Device,
) -> None:
    with pytest.raises(RefusedError, match="nothing is on the screen"):
        device.screen.button(2)
    _, first = await device.ask("GET", "/state?number=0&button=0")
    waiting = asyncio.create_task(
        device.ask("GET", f"/state?number={first['number']}&button={first['button']}")
    )
    device.screen.button(2)
    _, told = await waiting
    assert (told["pressed"], told["button"]) == ([2], 1)
    device.clock.advance(3_000)  # a page that hears of it only now shows something else
    assert (await device.ask("GET", "/state?number=0&button=0"))[1]["pressed"] == []
    device.clock.advance(31_000)
    with pytest.raises(RefusedError):
        device.screen.button(1)


async def test_a_page_is_framed_for_a_while_for_who_looks_for_the_device(device: Device) -> None:
    assert not device.screen.identify()  # nobody would see it
    _, state = await device.ask("GET", "/state?number=0")
    assert state["identify"] == 0
    assert device.screen.identify()
    _, state = await device.ask("GET", f"/state?number={state['number']}")  # at once: it is news
    assert state["identify"] == 30_000
    device.clock.advance(30_000)
    assert (await device.ask("GET", "/state?number=0"))[1]["identify"] == 0


async def test_a_pin_that_was_wrong_too_often_waits(device: Device) -> None:
    for _ in range(5):
        assert (await device.ask("POST", "/staff", {"pin": "1111"}))[0] == 403
    status, said = await device.ask("POST", "/staff", {"pin": PIN})
    assert (status, said) == (429, {"error": "wait", "wait_s": 30})
    device.clock.advance(30_000)
    status, said = await device.ask("POST", "/staff", {"pin": PIN})
    assert (status, said["device"], said["waiting"], said["online"]) == (200, "fk-1", 2, False)


def test_a_button_has_a_question_of_its_own_or_a_place_on_the_screen() -> None:
    assert GpioButton(5, 1, 4).event == Touch(1, 4)
    assert GpioButton(5, position=2).event == Button(2)
    for wrong in ({}, {"question": 1}, {"question": 1, "answer": 1, "position": 1}):
        with pytest.raises(ValueError, match="position"):
            GpioButton(5, **wrong)


def test_visits_are_numbered_by_their_tokens() -> None:
    visits = Visits()
    assert [visits.named(t) for t in ("a", "a", "b", "a", "c")] == [1, 1, 2, 1, 3]
    assert visits.ordinal(0) == 4  # a feeder's own are others


async def test_a_code_is_given_as_often_as_there_is_one_and_the_page_hears_whether_there_is(
    device: Device,
) -> None:
    stock = device.screen._codes
    assert isinstance(stock, Stock)
    _, state = await device.ask("GET", "/state?number=0")
    assert state["more"] is False
    assert (await device.ask("POST", "/code", {}))[0] == 409
    stock.left = 1
    _, state = await device.ask("GET", f"/state?number={state['number']}")  # at once: it is news
    assert state["more"] is True
    code = {"url": "https://a/s/B", "typed": "B", "address": "https://a/s", "rows": ["10"]}
    assert await device.ask("POST", "/code", {}) == (200, code)
    assert (await device.ask("POST", "/code", {}))[0] == 409
    assert (await device.ask("GET", "/code"))[0] == 404
    assert (await device.ask("POST", "/code", {}, Origin="http://evil.example"))[0] == 403
