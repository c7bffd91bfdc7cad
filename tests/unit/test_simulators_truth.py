"""The truth file: additive, durable up to the last whole block, and checked."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.truth import MAGIC, TruthFile, read

MINUTE = 29_000_000

events = st.lists(
    st.tuples(
        st.sampled_from(["counter-0001", "counter-0002", "räknare"]),
        st.integers(0, 3),
        st.integers(MINUTE, MINUTE + 3_000),
        st.integers(0, 70_000),
        st.integers(0, 200),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(events, max_size=4))
def test_what_was_committed_is_read_as_sums(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[list[tuple[str, int, int, int, int]]],
) -> None:
    path = tmp_path_factory.mktemp("truth") / "truth"
    expected: dict[tuple[str, int, int], tuple[int, int]] = {}
    for part in parts:  # each part is another life of the writer
        with TruthFile(path) as file:
            for device, line, minute, entered, left in part:
                at_ms = minute * 60_000 + 59_999
                file.count(device, line, at_ms=at_ms, entered=entered, left=left)
                before = expected.get((device, line, minute), (0, 0))
                expected[device, line, minute] = (before[0] + entered, before[1] + left)
    if parts:
        truth = read(path)
        assert truth.counts == expected
        assert truth.people() == sum(sum(pair) for pair in expected.values())
        assert sum(sum(pair) for pair in truth.days().values()) == truth.people()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(1, 400), data=st.data())
def test_a_torn_tail_loses_only_the_torn_commit(
    tmp_path_factory: pytest.TempPathFactory, cut: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("truth") / "truth"
    ends = []
    with TruthFile(path) as file:
        for minute in range(12):
            at_ms = (MINUTE + minute) * 60_000
            file.count("counter-0001", 0, at_ms=at_ms, entered=1, left=2)
            file.commit()
            ends.append(path.stat().st_size)
    size = max(len(MAGIC), ends[-1] - cut)
    whole = sum(end <= size for end in ends)
    content = bytearray(path.read_bytes()[:size])
    tail = size - (ends[whole - 1] if whole else len(MAGIC))
    if tail > 8 and data.draw(st.booleans()):  # not only cut: damaged too
        content[-1] ^= 0xFF
    path.write_bytes(content)
    truth = read(path)
    assert len(truth.counts) == whole
    assert truth.torn == tail
    with TruthFile(path) as file:  # appending goes on behind the last whole block
        file.count("counter-0001", 0, at_ms=MINUTE * 60_000, entered=10, left=0)
    again = read(path)
    assert again.torn == 0
    assert again.people() == 3 * whole + 10


def test_presses_and_what_is_unsure_stand_apart(tmp_path: Path) -> None:
    path = tmp_path / "truth"
    with TruthFile(path) as file:
        at_ms = MINUTE * 60_000
        for _ in range(3):
            file.press("kiosk-0001", at_ms=at_ms, question=0, answer=2)
        file.press("kiosk-0001", at_ms=at_ms, question=1, answer=10, sure=False)
        file.count("counter-0001", 1, at_ms=at_ms, entered=1, left=0, sure=False)
    truth = read(path)
    assert truth.presses == {("kiosk-0001", MINUTE, 0, 2): 3}
    assert truth.pressed() == 3
    assert truth.unsure_presses == {("kiosk-0001", MINUTE, 1, 10): 1}
    assert truth.unsure_counts == {("counter-0001", 1, MINUTE): (1, 0)}
    assert truth.counts == {}


def test_nothing_is_written_before_the_commit(tmp_path: Path) -> None:
    path = tmp_path / "truth"
    file = TruthFile(path)
    file.count("counter-0001", 0, at_ms=0, entered=1, left=0)
    assert read(path).counts == {}
    file.commit()
    assert read(path).people() == 1
    size = path.stat().st_size
    file.commit()
    assert path.stat().st_size == size
    file.close()


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "truth"
    path.write_bytes(b"Date,Hour,LocationName,InCount\n")
    with pytest.raises(ValueError, match="no truth file"):
        read(path)


def test_days_are_summed_per_device_and_line(tmp_path: Path) -> None:
    path = tmp_path / "truth"
    with TruthFile(path) as file:
        for minute in range(0, 2_880, 7):
            file.count("counter-0001", 0, at_ms=minute * 60_000, entered=1, left=1)
    days = read(path).days()
    assert set(days) == {("counter-0001", 0, 0), ("counter-0001", 0, 1)}
    assert sum(entered for entered, _ in days.values()) == len(range(0, 2_880, 7))
