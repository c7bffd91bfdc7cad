"""Why an agent started and stops, and what it reads of its machine."""

import json
from pathlib import Path

import pytest

from agent.starts import LEAVING, RUNNING, Start, Starts, goodbye, of_jobs
from agent.vitals import memory, radio, vitals
from protocol.session import MAX_BACK_S, Goodbye


@pytest.mark.parametrize(
    ("left", "kernel", "reason"),
    [
        ("stopped", "one", Start.RESTARTED),
        (None, "one", Start.CRASHED),
        ("reboot", "two", Start.REBOOTED),
        ("power-off", "two", Start.REBOOTED),
        (None, "two", Start.POWER_LOST),
        ("update", "one", Start.UPDATED),
        ("update", "two", Start.UPDATED),
    ],
)
def test_the_next_start_tells_how_the_last_one_ended(
    tmp_path: Path, left: str | None, kernel: str, reason: Start
) -> None:
    first = Starts(tmp_path, kernel="one")
    assert first.reason is Start.FIRST
    if left is not None:
        first.ended(left)
    assert Starts(tmp_path, kernel=kernel).reason is reason
    assert Starts(tmp_path, kernel=kernel).reason is Start.CRASHED  # nobody ended that one


def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"left": 5}', '{"left": "stopped"}'):
        (tmp_path / RUNNING).write_text(text)
        assert Starts(tmp_path, kernel="one").reason is Start.UNKNOWN, text
    (tmp_path / RUNNING).write_text('{"left": "", "kernel": ""}')
    assert Starts(tmp_path, kernel="").reason is Start.UNKNOWN


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Starts(tmp_path / "file", kernel="one").reason is Start.UNKNOWN


def test_systemds_jobs_tell_a_reboot_from_a_stop() -> None:
    assert of_jobs("") == Goodbye("stopped")
    assert of_jobs("12 vestibule-agent.service stop running") == Goodbye("stopped")
    assert of_jobs("1 reboot.target start waiting\n2 x.service stop running").reason == "reboot"
    assert of_jobs("1 poweroff.target start waiting") == Goodbye("power-off")


def test_who_said_why_is_believed_once(tmp_path: Path) -> None:
    path = tmp_path / LEAVING
    path.write_text(json.dumps({"reason": "update", "back_s": 600}))
    assert goodbye(tmp_path) == Goodbye("update", 600)
    assert not path.exists()
    assert goodbye(tmp_path).reason in ("stopped", "reboot", "power-off")
    path.write_text(json.dumps({"reason": "update", "back_s": 10**9}))
    assert goodbye(tmp_path) == Goodbye("update", MAX_BACK_S)


@pytest.mark.parametrize("text", ["", "[]", '{"reason": "Bad One"}', '{"reason": 5}'])
def test_a_reason_that_is_none_is_found_out_otherwise(tmp_path: Path, text: str) -> None:
    (tmp_path / LEAVING).write_text(text)
    assert goodbye(tmp_path).reason in ("stopped", "reboot", "power-off")


RADIO = """\
Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE
 face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22
 wlan0: 0000   54.  -56.  -256        0      0      0      0    107        0
"""


def test_the_radio_is_read_where_there_is_one() -> None:
    assert radio(RADIO) == {"wireless.quality": 54.0, "wireless.dbm": -56.0}
    assert radio(RADIO.replace("-56.", "70.")) == {"wireless.quality": 54.0}
    assert radio("\n".join(RADIO.splitlines()[:2])) == {}
    assert radio(RADIO.replace("54.", "what")) == {}
    assert radio("") == {}


def test_memory_is_in_bytes() -> None:
    assert memory("MemTotal: 9 kB\nMemAvailable:   2048 kB\n") == {"memory.available": 2_097_152.0}
    assert memory("MemAvailable: lots") == memory("") == {}


def test_vitals_are_finite_numbers_of_this_machine(tmp_path: Path) -> None:
    found = vitals(tmp_path)
    assert {"disk.free", "cpu.load", "memory.used", "memory.available"} <= set(found)
    assert found["memory.used"] < found["disk.free"] + found["memory.available"]
