"""A release's bytes on their way: cut, resumed, put off, altered, endless, and nowhere to put."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from agent.update.download import (
    MOST_CUTS,
    CutError,
    Source,
    WaitError,
    bring,
    download,
    have,
)
from agent.update.slots import SlotError
from protocol.assignment import Item
from protocol.release import target_path
from protocol.update import Class

CONTENT = random.Random(1).randbytes(300_000)


def item(content: bytes = CONTENT) -> Item:
    sha256 = hashlib.sha256(content).hexdigest()
    path = target_path("agent", "1.0.0", sha256)
    return Item("agent", "1.0.0", "0.1.0", path, len(content), sha256)


@dataclass
class Server:
    """Serves `content` as the real one does, but for what a test spoils."""

    content: bytes = CONTENT
    cut_after: int | None = None  # bytes of each answer
    ranges: bool = True
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    port: int = 0

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range", "")
        self.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges else 0
        data = self.content[start:]
        handler.send_response(self.status or (206 if start else 200))
        if start:
            size = len(self.content)
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for name, text in self.headers.items():
            handler.send_header(name, text)
        handler.send_header("Content-Length", str(0 if self.status else len(data)))
        handler.end_headers()
        if not self.status:
            handler.wfile.write(data[: self.cut_after])
        handler.close_connection = True

    def source(self, monotonic: Callable[[], float] = lambda: 0.0) -> Source:
        def connect() -> http.client.HTTPSConnection:
            made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
            return cast(http.client.HTTPSConnection, made)

        return Source(connect, monotonic)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            return

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    yield made
    listener.shutdown()
    listener.server_close()
    thread.join()


def told(_: int) -> None:
    return


def test_a_release_comes_whole_and_is_asked_for_once(server: Server, tmp_path: Path) -> None:
    sizes: list[int] = []
    path = download(item(), tmp_path, server.source(), told=sizes.append)
    assert path.read_bytes() == CONTENT
    assert sizes[-1] == len(CONTENT)
    assert sizes == sorted(sizes)
    assert download(item(), tmp_path, server.source(), told=told) == path
    assert server.asked == [""]


def test_what_was_cut_is_taken_up_where_it_was(server: Server, tmp_path: Path) -> None:
    server.cut_after = 100_000
    for _ in range(2):
        with pytest.raises(CutError, match="ended after"):
            download(item(), tmp_path, server.source(), told=told)
    assert have(item(), tmp_path) == 200_000
    assert download(item(), tmp_path, server.source(), told=told).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-", "bytes=200000-"]


def test_a_server_that_knows_no_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.ranges = 100_000, False
    with pytest.raises(CutError):
        download(item(), tmp_path, server.source(), told=told)
    server.cut_after = None
    assert download(item(), tmp_path, server.source(), told=told).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (CONTENT[:-1] + b"x", "wrong_digest"),
        (CONTENT + b"x", "wrong_length"),
        (CONTENT[:-1], "wrong_length"),
    ],
)
def test_other_bytes_are_refused_and_not_kept(
    server: Server, tmp_path: Path, content: bytes, code: str
) -> None:
    server.content = content
    with pytest.raises(SlotError) as refused:
        download(item(), tmp_path, server.source(), told=told)
    assert (refused.value.failure.kind, refused.value.failure.code) == (Class.TRUST, code)
    assert have(item(), tmp_path) == 0


def test_no_byte_beyond_the_length_is_kept(server: Server, tmp_path: Path) -> None:
    part = tmp_path / f"{item().sha256}.part"
    part.write_bytes(CONTENT + b"more")
    assert download(item(), tmp_path, server.source(), told=told).read_bytes() == CONTENT


def test_a_site_that_used_up_its_share_is_told_when_to_come(server: Server, tmp_path: Path) -> None:
    server.status, server.headers = 429, {"Retry-After": "17"}
    with pytest.raises(WaitError) as put_off:
        download(item(), tmp_path, server.source(), told=told)
    assert put_off.value.wait_s == 17


@pytest.mark.parametrize(("status", "kind"), [(404, Class.REFUSED), (416, Class.TRUST)])
def test_what_is_gone_is_not_asked_for_again(
    server: Server, tmp_path: Path, status: int, kind: Class
) -> None:
    server.status = status
    with pytest.raises(SlotError) as refused:
        download(item(), tmp_path, server.source(), told=told)
    assert refused.value.failure.kind is kind


def test_who_sends_too_slowly_is_given_up(server: Server, tmp_path: Path) -> None:
    clock = iter(range(0, 10_000_000, 70))
    server.content = CONTENT[:1000]
    made = item(CONTENT)
    part = tmp_path / f"{made.sha256}.part"
    part.write_bytes(CONTENT[:299_000])
    server.content = CONTENT
    with pytest.raises(CutError) as cut:
        download(made, tmp_path, server.source(lambda: float(next(clock))), told=told)
    assert cut.value.code == "slow"


def test_nobody_there_is_a_cut(tmp_path: Path) -> None:
    def connect() -> http.client.HTTPSConnection:
        raise ConnectionRefusedError("nobody")

    with pytest.raises(CutError) as cut:
        download(item(), tmp_path, Source(connect), told=told)
    assert cut.value.code == "unreachable"


def test_a_full_disk_is_said_to_be_one(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(SlotError) as refused:
            download(item(), tmp_path, server.source(), told=told)
    assert (refused.value.failure.kind, refused.value.failure.code) == (Class.STORAGE, "disk_full")
    assert download(item(), tmp_path, server.source(), told=told).read_bytes() == CONTENT


async def test_cuts_are_given_up_only_once_nothing_comes_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("agent.update.download.asyncio.sleep", sleep)
    part, calls = tmp_path / f"{item().sha256}.part", [0]

    async def fetch() -> Path:
        calls[0] += 1
        if calls[0] < 5:
            part.write_bytes(CONTENT[: calls[0] * 10])
        if calls[0] == 5:
            raise WaitError(17)
        raise CutError("unreachable", "cut")

    with pytest.raises(CutError):
        await bring(item(), tmp_path, fetch, still=lambda: None, dice=lambda low, _: low)
    assert calls[0] == 4 + 1 + MOST_CUTS - 1
    assert waits[4] == 17
    assert max(waits) <= 300
