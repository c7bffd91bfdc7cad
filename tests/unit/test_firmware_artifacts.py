"""Artifacts: nothing but its bytes lies under a digest, and a site's devices share a rate."""

import errno
import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.firmware.artifacts import (
    BURST_S,
    CHUNK,
    Allowance,
    ArtifactError,
    Span,
    Store,
    UnsatisfiableError,
    span_of,
)

CONTENT = bytes(range(256)) * 700
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def put(store: Store, content: bytes = CONTENT, **said: Any) -> Path:
    named: dict[str, Any] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "length": len(content),
    } | said
    return store.put(io.BytesIO(content), **named)


def test_what_is_put_is_found_under_its_digest(tmp_path: Path) -> None:
    store = Store(tmp_path / "artifacts")
    assert store.find(DIGEST) is None
    path = put(store)
    assert path == store.find(DIGEST) == tmp_path / "artifacts" / DIGEST[:2] / DIGEST
    assert path.read_bytes() == CONTENT
    assert store.missing(iter([DIGEST, "0" * 64])) == ["0" * 64]


@pytest.mark.parametrize(
    "said",
    [{"sha256": "0" * 64}, {"length": len(CONTENT) - 1}, {"length": len(CONTENT) + 1}],
    ids=["another digest", "more bytes", "fewer bytes"],
)
def test_what_is_not_what_was_said_is_refused_and_leaves_nothing(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    with pytest.raises(ArtifactError) as refused:
        put(Store(tmp_path), **said)
    assert refused.value.code == "mismatch"
    assert files(tmp_path) == []


def test_no_more_is_read_than_tells_that_it_is_too_much(tmp_path: Path) -> None:
    endless = io.BytesIO(bytes(10 * CHUNK))
    with pytest.raises(ArtifactError):
        Store(tmp_path).put(endless, sha256=DIGEST, length=5)
    assert endless.tell() == 6


@pytest.mark.parametrize("text", ["", "..", "0" * 63, "0" * 65, "G" * 64, "../" + "0" * 61])
def test_what_is_no_digest_names_no_file(tmp_path: Path, text: str) -> None:
    assert Store(tmp_path).find(text) is None
    with pytest.raises(ValueError):
        Store(tmp_path).put(io.BytesIO(b""), sha256=text, length=0)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "not_written")]
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_disk_that_fails_is_named_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, code: str
) -> None:
    store = Store(tmp_path)
    before = put(store, b"before")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(ArtifactError) as refused:
        put(store)
    assert refused.value.code == code
    assert str(tmp_path) in str(refused.value)
    assert files(tmp_path) == [before]


def test_a_file_that_has_no_room_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import hashlib, io, resource, sys; from pathlib import Path\n"
        "from server.firmware.artifacts import ArtifactError, Store\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "content = bytes(300_000)\n"
        "try: Store(Path(sys.argv[1])).put(io.BytesIO(content), length=len(content),\n"
        "                                  sha256=hashlib.sha256(content).hexdigest())\n"
        "except ArtifactError as error: print(error.code)"
    )
    got = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert got.stdout.strip() == "disk_full"
    assert files(tmp_path) == []


def test_what_cannot_be_read_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    class Broken(io.RawIOBase):
        def read(self, _: int = -1) -> bytes:
            raise OSError(errno.EIO, "bad sector")

    with pytest.raises(ArtifactError) as refused:
        Store(tmp_path).put(Broken(), sha256=DIGEST, length=1)  # type: ignore[arg-type]
    assert refused.value.code == "unreadable"
    assert files(tmp_path) == []


def test_what_is_there_is_kept_and_what_has_rotted_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = put(store)
    number = path.stat().st_ino
    assert put(store).stat().st_ino == number
    path.write_bytes(b"\1" + CONTENT[1:])
    assert put(store).read_bytes() == CONTENT
    assert path.stat().st_ino != number


def asked(header: str, size: int, condition: str = "") -> Span | None:
    return span_of(header, size=size, condition=condition, etag='"x"')


@given(st.integers(0, 40), st.none() | st.integers(0, 50), st.none() | st.integers(0, 50))
def test_a_range_is_the_bytes_that_it_names(size: int, first: int | None, last: int | None) -> None:
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    if first is None and last is not None:
        named = list(range(size))[-last:] if last else []
    else:
        low, high = first or 0, size if last is None else last
        named = [at for at in range(size) if low <= at <= high]
    if (first is None and last is None) or (
        None not in (first, last) and (last or 0) < (first or 0)
    ):
        assert asked(header, size) is None
    elif not named:
        with pytest.raises(UnsatisfiableError):
            asked(header, size)
    else:
        assert asked(header, size) == Span(named[0], named[-1] + 1)


@pytest.mark.parametrize("header", ["", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", "bytes 0-1"])
def test_what_is_no_single_range_of_bytes_is_passed_over(header: str) -> None:
    assert asked(header, 10) is None


def test_a_range_of_other_bytes_than_these_is_all_of_them() -> None:
    assert asked("bytes=2-", 10, condition='"x"') == Span(2, 10)
    assert asked("bytes=2-", 10, condition='"y"') is None
    assert asked("bytes=2-", 10, condition='W/"x"') is None


RATE = 100_000


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, CHUNK)), max_size=40))
def test_a_sites_devices_together_never_get_more_than_its_rate(
    asked_for: list[tuple[float, int]],
) -> None:
    now_s = 0.0
    allowance = Allowance(lambda: now_s)
    sent: list[tuple[float, int]] = []
    for pause_s, size in asked_for:
        now_s += pause_s
        sent.append((now_s + allowance.take(7, size, rate=RATE), size))
    for when_s, _ in sent:
        by_then = sum(size for at_s, size in sent if at_s <= when_s)
        assert by_then <= RATE * (BURST_S + when_s) + 1
    assert allowance.take(8, 1, rate=RATE) == 0  # another site has its own


def test_nobody_begins_while_others_have_used_it_up_and_then_somebody_may() -> None:
    now_s = 0.0
    allowance = Allowance(lambda: now_s)
    assert allowance.wait_s(7, rate=RATE) == 0
    allowance.take(7, round(RATE * (BURST_S + 3)), rate=RATE)
    wait_s = allowance.wait_s(7, rate=RATE)
    assert wait_s == pytest.approx(3, abs=0.01)
    now_s += wait_s + 0.001
    assert allowance.wait_s(7, rate=RATE) == 0
