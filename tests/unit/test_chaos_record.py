"""The truth's file: what is whole counts, what is broken is named."""

from pathlib import Path

import pytest

from ops.chaos.record import Crossing, Event, Journal, Touch, TruthError, encode, read

EVENTS: tuple[Event, ...] = (
    Crossing("dc-aaaaaaaaaaaa", 1, 0, 2, 1, 1000, 1500),
    Touch("fk-aaaaaaaaaaaa", 1, 1, 5, 9, 1100, 1600),
    Crossing("dc-aaaaaaaaaaaa", 2, 1, 0, 3, 1700, 1800),
)


def written(path: Path) -> Path:
    journal = Journal(path)
    journal.commit(EVENTS)
    journal.close()
    return path


def test_what_was_committed_is_read_back(tmp_path: Path) -> None:
    truth = read(written(tmp_path / "truth"))
    assert (*truth.crossings, *truth.touches) == (EVENTS[0], EVENTS[2], EVENTS[1])
    assert truth.people == 6


def test_a_torn_last_line_was_confirmed_to_nobody_and_is_cut_off(tmp_path: Path) -> None:
    path = written(tmp_path / "truth")
    with path.open("ab") as file:
        file.write(encode(Crossing("dc-aaaaaaaaaaaa", 3, 0, 1, 0, 1, 2))[:-7])
    assert read(path).torn > 0
    assert len(read(path).crossings) == 2
    Journal(path).close()
    assert read(path).torn == 0


def test_an_altered_line_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "truth")
    path.write_bytes(path.read_bytes().replace(b"1,5,9", b"1,4,9"))
    with pytest.raises(TruthError, match="line 2"):
        read(path)


def test_a_missing_line_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "truth")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[1] + lines[2])
    with pytest.raises(TruthError, match="dc-aaaaaaaaaaaa: event 2 after 0"):
        read(path)
