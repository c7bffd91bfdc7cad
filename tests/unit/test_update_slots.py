"""Slots on a real disk: what goes in, what is run, and what a disk that refuses leaves."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import command
from agent.update import launch
from agent.update.journal import ASIDE, FILE, File, Journal, encode
from agent.update.launch import PACKAGE, TRIAL, Record, UnfitError
from agent.update.slots import Directories, SlotError
from agent.update.states import Proof, Stage, Update
from protocol.assignment import Assignment, Item
from protocol.release import target_path
from protocol.update import Attempt, Class, Phase, Step
from simulators.board import PowerCut
from simulators.updates import Conduct, UpdateDevice
from tests.unit.test_update_machine import NOW_MS, Desk, through

Part = tuple[str, bytes] | tarfile.TarInfo
AGENT = (("agent/__init__.py", b""), ("agent/__main__.py", b"print(1)\n"), ("protocol/a.py", b"a"))


def archive(*parts: Part) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for part in parts:
            if isinstance(part, tarfile.TarInfo):
                tar.addfile(part)
                continue
            info = tarfile.TarInfo(part[0])
            info.size = len(part[1])
            tar.addfile(info, io.BytesIO(part[1]))
    return out.getvalue()


def item(content: bytes, component: Any = "agent", version: str = "1.0.0") -> Item:
    sha256 = hashlib.sha256(content).hexdigest()
    path = target_path(component, version, sha256)
    return Item(component, version, "0.9.0", path, len(content), sha256)


@pytest.fixture
def slots(tmp_path: Path) -> Directories:
    return Directories(tmp_path / "update", identity=tmp_path / "identity")


def filled(
    slots: Directories,
    slot: str = "a",
    *,
    content: bytes | None = None,
    version: str = "1.0.0",
    floor: str = "0.9.0",
) -> Item:
    content = archive(*AGENT) if content is None else content
    path = slots.root.parent / "archive"
    path.write_bytes(content)
    made = replace(item(content, version=version), floor=floor)
    slots.fill(slot, made, path)
    return made


def test_a_filled_slot_holds_exactly_what_the_archive_held(slots: Directories) -> None:
    made = filled(slots)
    found = launch.fit(slots.root / "agent" / "a")
    assert (found.version, found.sha256) == ("1.0.0", made.sha256)
    assert set(found.files) == {name for name, _ in AGENT}
    assert (slots.root / "agent/a/agent/__main__.py").read_bytes() == b"print(1)\n"
    slots.check("a", made)
    filled(slots)  # again: nothing is done


def special(name: str, kind: bytes, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "part",
    [
        ("/etc/passwd", b"x"),
        ("agent/../../x", b"x"),
        ("../x", b"x"),
        ("agent//x", b"x"),
        ("agent/./x", b"x"),
        ("elsewhere/x.py", b"x"),
        ("slot.json", b"{}"),
        ("agent/.hidden", b"x"),
        ("agent/a\nb", b"x"),
        ("agent/" + "x" * 250, b"x"),
        ("agent/__MAIN__.py", b"twice, to who knows no case"),
        special("agent/link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        special("agent/hard", tarfile.LNKTYPE, linkname="agent/__main__.py"),
        special("agent/pipe", tarfile.FIFOTYPE),
        special("agent/disk", tarfile.BLKTYPE),
    ],
    ids=lambda part: repr(part[0] if isinstance(part, tuple) else part.name)[:30],
)
def test_what_is_no_part_of_a_release_is_refused_whole(slots: Directories, part: Part) -> None:
    with pytest.raises(SlotError) as refused:
        filled(slots, content=archive(*AGENT, part))
    assert refused.value.failure.kind is Class.TRUST
    assert refused.value.failure.code == "unfit_archive"
    with pytest.raises(UnfitError):
        launch.fit(slots.root / "agent" / "a")
    assert not (slots.root.parent / "x").exists()


def test_an_archive_that_is_cut_or_no_archive_is_refused(slots: Directories) -> None:
    whole = archive(*AGENT)
    for content in (whole[:700], b"", os.urandom(2000), whole[:512] + b"x" * 512 + whole[1024:]):
        with pytest.raises(SlotError) as refused:
            filled(slots, content=content)
        assert refused.value.failure.kind is Class.TRUST


def test_an_archive_that_unpacks_to_more_than_its_length_is_refused(slots: Directories) -> None:
    big = tarfile.TarInfo("agent/big")
    big.size = 1 << 30
    end = 5 * tarfile.BLOCKSIZE  # of three headers and two files
    with pytest.raises(SlotError, match="said to have"):
        filled(slots, content=archive(*AGENT)[:end] + big.tobuf() + bytes(1024))
    many = [(f"agent/{n}", bytes(600)) for n in range(3)]
    copies = archive(*AGENT, *many)
    cut = copies[: end + 3 * 3 * tarfile.BLOCKSIZE]
    big.size = len(cut) - 600
    with pytest.raises(SlotError, match="more than its own length"):
        filled(slots, content=cut + big.tobuf())


def test_bytes_that_are_not_the_releases_are_not_unpacked(slots: Directories) -> None:
    content = archive(*AGENT)
    path = slots.root.parent / "archive"
    for wrong, code in (
        (content + b"x", "wrong_length"),
        (content[:-1], "wrong_length"),
        (content[:-1] + b"x", "wrong_digest"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(SlotError) as refused:
            slots.fill("a", item(content), path)
        assert refused.value.failure.code == code


@pytest.mark.parametrize(
    "spoil",
    [
        lambda slot: (slot / "protocol/a.py").write_bytes(b"b"),
        lambda slot: (slot / "protocol/a.py").write_bytes(b"aa"),
        lambda slot: (slot / "protocol/a.py").unlink(),
        lambda slot: (slot / "protocol/b.py").write_bytes(b""),
        lambda slot: (
            (slot / "agent/__pycache__").mkdir()
            or (slot / "agent/__pycache__/x.pyc").write_bytes(b"")
        ),
        lambda slot: (slot / "slot.json").write_bytes(b"{"),
        lambda slot: (slot / "slot.json").write_bytes(b"[" * 100_000),
        lambda slot: (slot / "slot.json").write_bytes(b'{"files": {"a": [1e999, ""]}}'),
        lambda slot: (slot / "slot.json").unlink(),
        lambda slot: (slot / "agent/more").symlink_to("/etc"),
    ],
)
def test_a_slot_that_rotted_is_not_run(slots: Directories, spoil: Callable[[Path], object]) -> None:
    made = filled(slots)
    slots.commit("agent", "a")
    assert launch.choose(slots.root, kernel="k", now_s=1).slot == "a"
    spoil(slots.root / "agent" / "a")
    assert launch.choose(slots.root, kernel="k", now_s=1).slot == PACKAGE
    with pytest.raises(SlotError):
        slots.check("a", made)


def record(made: Item, slot: str = "a") -> Record:
    return Record(slot, made.sha256, "exe-simulated1", 1, trial_s=600)


def test_a_try_is_used_up_before_it_is_made_and_is_the_only_one(slots: Directories) -> None:
    made = filled(slots)
    slots.arm(record(made))
    first = launch.choose(slots.root, kernel="k", now_s=10)
    assert (first.slot, first.why, first.attempt) == ("a", TRIAL, ("exe-simulated1", 1))
    assert first.alarm_s == 660
    found = launch.read_record(slots.root)
    assert found is not None
    assert found.left == 0
    for kernel, now_s, why in (("k", 11, "crashed"), ("k", 611, "hung"), ("l", 2, "power")):
        again = launch.choose(slots.root, kernel=kernel, now_s=now_s)
        assert (again.slot, again.why, again.alarm_s) == (PACKAGE, why, 0)


def test_a_try_that_cannot_be_noted_or_is_of_something_else_is_not_made(
    slots: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = filled(slots)
    slots.arm(replace(record(made), sha256="0" * 64))
    assert launch.choose(slots.root, kernel="k", now_s=1).why == "unfit"
    slots.arm(record(made))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _refuse)
        choice = launch.choose(slots.root, kernel="k", now_s=1)
    assert (choice.slot, choice.why) == (PACKAGE, "unwritten")
    found = launch.read_record(slots.root)
    assert found is not None
    assert found.left == 1


def _refuse(*_: object) -> None:
    raise OSError(28, "No space left on device")


def noted(trial_s: str) -> bytes:
    """Return a record as it is written, but for a number that no good device writes."""
    said = '{"slot": "a", "sha256": "", "execution": "exe-1", "attempt": 1, "left": 0, '
    return f'{said}"kernel": "k", "began_s": 0, "trial_s": {trial_s}}}'.encode()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b'{"slot": "../x"}', b"\xff", b"[" * 100_000),
        *(noted("1e999"), noted("-90"), noted("9" * 30)),
    ],
)
def test_a_record_or_link_that_cannot_be_read_is_none(slots: Directories, content: bytes) -> None:
    slots.root.mkdir(parents=True)
    (slots.root / "try.json").write_bytes(content)
    (slots.root / "agent").mkdir()
    (slots.root / "agent/current").symlink_to("../../..")
    choice = launch.choose(slots.root, kernel="k", now_s=1)
    assert (choice.slot, choice.why) == (PACKAGE, "committed")


# -- what crashes after it was committed -----------------------------------------------------------


@pytest.fixture
def updated(slots: Directories) -> Directories:
    """Slots of which a was committed, and then b, which is newer."""
    filled(slots)
    slots.commit("agent", "a")
    filled(slots, "b", content=NEWER, version="1.1.0")
    slots.commit("agent", "b")
    return slots


NEWER = archive(*AGENT, ("agent/new.py", b"new"))


def crashes(slots: Directories, *at_s: float, kernel: str = "k") -> list[str]:
    """Start the agent at these times, none of which it comes to an end; the slots."""
    return [launch.choose(slots.root, kernel=kernel, now_s=each).slot for each in at_s]


def test_what_crashes_after_it_was_committed_gives_way_to_what_was_before_and_stays_away(
    updated: Directories,
) -> None:
    assert crashes(updated, 10, 20, 30, 40, 50) == ["b"] * 5
    assert crashes(updated, 60) == ["a"]
    assert (updated.root / "agent" / "current").readlink() == Path("a")
    assert updated.committed("agent").version == "1.0.0"  # what it signs, and the server sees
    assert crashes(updated, *range(70, 190, 10)) == ["a"] * 12  # b is no way back


def test_power_cuts_orderly_ends_and_crashes_now_and_then_are_no_reason_to_go_back(
    updated: Directories,
) -> None:
    for kernel in "abcdefgh":
        assert crashes(updated, 10, kernel=kernel) == ["b"]
    for at_s in range(0, 200, 10):
        assert crashes(updated, at_s) == ["b"]
        launch.ended(updated.root)
    assert crashes(updated, *range(1_000, 5_000, 200)) == ["b"] * 20
    assert crashes(updated, *range(10), kernel="") == ["b"] * 10  # nobody knows when


def _refilled(slots: Directories) -> None:
    slots.empty("agent", "a")
    filled(slots, "a", content=archive(*AGENT, ("agent/next.py", b"next")), version="1.2.0")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda slots: slots.empty("agent", "a"),
        lambda slots: (slots.root / "agent/a/agent/__main__.py").write_bytes(b"other"),
        lambda slots: (slots.root / "before.json").unlink(),
        lambda slots: (slots.root / "before.json").write_bytes(b"[]"),
        _refilled,
    ],
    ids=["gone", "rotted", "unknown", "damaged", "another by now"],
)
def test_where_nothing_fit_was_before_what_is_committed_is_started_on(
    updated: Directories, spoil: Callable[[Directories], object]
) -> None:
    spoil(updated)
    assert crashes(updated, *range(0, 100, 10)) == ["b"] * 10


def test_nothing_goes_back_below_the_floor_that_what_crashes_has_raised(
    slots: Directories,
) -> None:
    filled(slots)
    slots.commit("agent", "a")
    filled(slots, "b", content=NEWER, version="1.1.0", floor="1.1.0")
    slots.commit("agent", "b")
    assert crashes(slots, *range(0, 100, 10)) == ["b"] * 10


@pytest.mark.parametrize(("installed", "slot"), [("0.9.0", PACKAGE), ("0.8.9", "a"), ("odd", "a")])
def test_what_was_installed_is_gone_back_to_if_no_floor_forbids_it(
    slots: Directories, monkeypatch: pytest.MonkeyPatch, installed: str, slot: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: installed)
    filled(slots)  # its floor is 0.9.0
    slots.commit("agent", "a")
    assert crashes(slots, *range(0, 60, 10)) == [*["a"] * 5, slot]


def test_a_full_disk_leaves_what_was_committed_and_says_what_it_is(
    slots: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(slots)
    slots.commit("agent", "a")
    other = archive(*AGENT, ("agent/new.py", b"new"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _refuse)
        with pytest.raises(SlotError) as refused:
            filled(slots, "b", content=other)
    assert refused.value.failure.kind is Class.STORAGE
    assert refused.value.failure.code == "disk_full"
    assert launch.choose(slots.root, kernel="k", now_s=1).slot == "a"
    slots.empty("agent", "b")
    made = filled(slots, "b", content=other)
    slots.check("b", made)


def test_the_committed_slot_is_never_emptied(slots: Directories) -> None:
    filled(slots)
    slots.commit("agent", "a")
    assert slots.spare("agent") == "b"
    with pytest.raises(SlotError, match="committed"):
        slots.empty("agent", "a")


def test_floors_rise_and_outlive_their_file(slots: Directories, tmp_path: Path) -> None:
    slots.raise_floor("agent", "1.2.0")
    slots.raise_floor("agent", "1.1.0")
    assert slots.floors() == {"agent": "1.2.0", "kiosk": ""}
    for damaged in (b"{", b"5", b"[" * 100_000, b'{"agent": "zz"}', b'{"agent": "1.2"}'):
        (tmp_path / "identity/floors.json").write_bytes(damaged)
        assert slots.floors()["agent"] == ""
    filled(slots)
    slots.commit("agent", "a")
    assert slots.floors()["agent"] == "0.9.0"


def test_a_screen_that_rotted_gives_way_to_the_packages(slots: Directories) -> None:
    content = archive(("page.html", b"<p>"), ("films/a.mp4", b"film"))
    path = slots.root.parent / "archive"
    path.write_bytes(content)
    slots.fill("a", item(content, "kiosk"), path)
    slots.commit("kiosk", "a")
    assert slots.mend("kiosk") is False
    (slots.root / "kiosk/a/page.html").write_bytes(b"<q>")
    assert slots.mend("kiosk") is True
    assert slots.committed("kiosk").slot == PACKAGE


def test_the_launcher_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; sys.argv=['x']; import runpy; "
        f"runpy.run_path({launch.__file__!r}); "
        "print([n for n in sys.modules if n.split('.')[0] in ('agent', 'protocol', 'structlog')])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_what_was_launched_is_launched_again_as_it_was(tmp_path: Path) -> None:
    before = {"PYTHONPATH": "/mine", "HOME": "/h"}
    choice = launch.Choice("b", TRIAL, ("exe-simulated1", 2))
    made = launch.environment(before, tmp_path, choice, ["python", "launch.py"])
    assert made["PYTHONPATH"] == f"{tmp_path}/agent/b:/mine"
    assert made["PYTHONDONTWRITEBYTECODE"] == "1"
    found = launch.launched(made)
    assert found is not None
    assert (found.slot, found.why, found.attempt) == ("b", TRIAL, ("exe-simulated1", 2))
    assert found.before == {"PYTHONPATH": "/mine", "PYTHONDONTWRITEBYTECODE": None}
    for wrong in ("", "[]", "{", '{"slot": 1}'):
        assert launch.launched({launch.TOLD: wrong}) is None


@pytest.mark.parametrize(
    ("environ", "settings", "wanted"),
    [
        ({}, None, launch.STATE),
        ({"VESTIBULE_AGENT_STATE": "/s"}, 'state = "/t"', Path("/s")),
        ({}, 'state = "/t"', Path("/t")),
        ({}, "state = ", launch.STATE),
    ],
)
def test_the_launcher_finds_the_state_as_the_agent_does(
    tmp_path: Path, environ: dict[str, str], settings: str | None, wanted: Path
) -> None:
    path = None
    if settings is not None:
        path = tmp_path / "agent.toml"
        path.write_text(settings)
    assert launch.state_folder(path, environ) == wanted


# -- the journal -----------------------------------------------------------------------------------


def test_a_journal_that_is_torn_or_altered_is_put_aside(tmp_path: Path) -> None:
    paper = File(tmp_path)
    update = Update(Stage.TRIAL, proofs=frozenset({Proof.HEALTH}), seq=3,
                    steps=(Step(Attempt("exe-simulated1", 1), 3, Phase.TRIAL),))  # fmt: skip
    content = encode(update)
    paper.write(content)
    assert Journal(paper, now_ms=lambda: 0).update == update
    for wrong in (b"", content[:-3], content.replace(b'"seq":3', b'"seq":4'), b"[]", b"\xff" * 9):
        (tmp_path / FILE).write_bytes(wrong)
        found = Journal(paper, now_ms=lambda: 0)
        assert found.lost, wrong
        assert found.update == Update()
        assert (tmp_path / ASIDE).read_bytes() == wrong


# -- the power fails at each change of a real disk -------------------------------------------------


class DiskDevice(UpdateDevice):
    """A simulated device on a real disk, with the launcher's own choice."""

    def __init__(self, top: Path, content: bytes, conduct: Conduct) -> None:
        self.top, self.content = top, content
        self.tried = 0
        super().__init__("dc-simulated1", rng=random.Random(1), conduct=conduct)

    def _launch(self) -> bool:
        root = self.top / "update"
        choice = launch.choose(root, kernel=str(self.board.kernel), now_s=self._now_ms / 1000)
        self.tried += choice.why == TRIAL
        code = root / "agent" / choice.slot
        slots = Directories(root, identity=self.top / "identity", code=code)
        return self.begin(slots, File(root), choice.slot, choice.why, choice.attempt)

    @property
    def version(self) -> str:
        return self.slots.running().version

    def fetch(self, update: Update) -> Any:
        (self.top / "archive").write_bytes(self.content)
        self.archive = self.top / "archive"
        return super().fetch(update)


@contextmanager
def power(cut_at: int) -> Iterator[list[int]]:
    """Let the power fail before or after the n-th change; count them."""
    seen = [0]
    kept = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "symlink", "mkdir")}

    def count() -> None:
        seen[0] += 1
        if seen[0] == cut_at:
            raise PowerCut

    def wrapped(name: str) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            count()
            result = kept[name](*arguments, **named)
            count()
            return result

        return act

    for name in kept:
        setattr(os, name, wrapped(name))
    try:
        yield seen
    finally:
        for name, act in kept.items():
            setattr(os, name, act)


def one_life(top: Path, conduct: Conduct, cut_at: int) -> tuple[DiskDevice, Desk, int]:
    top.mkdir()
    content = archive(*AGENT)
    offer = Assignment("dc-simulated1", "DC2", "ro-simulated1", "exe-simulated1", 1,
                       (item(content),), "0" * 32, NOW_MS + 10**9)  # fmt: skip
    with power(cut_at) as seen:
        device = DiskDevice(top, content, conduct)
        desk = Desk(offer)
        through(device, desk, minutes=25)
    return device, desk, seen[0]


@pytest.mark.parametrize("conduct", [Conduct.GOOD, Conduct.CRASHES])
@pytest.mark.parametrize(
    "every", [pytest.param(61, id="some"), pytest.param(1, id="each", marks=pytest.mark.long)]
)
def test_a_power_cut_at_any_change_of_the_disk_ends_where_it_says(
    tmp_path: Path, conduct: Conduct, every: int
) -> None:
    _, _, many = one_life(tmp_path / "whole", conduct, -1)
    assert many > 60
    ends = set()
    for cut_at in range(1, many + 1, every):
        device, desk, _ = one_life(tmp_path / str(cut_at), conduct, cut_at)
        assert device.update.settled, cut_at
        last = desk.end(desk.job)  # type: ignore[arg-type]
        done = last.phase is Phase.CONFIRMED
        assert (device.slots.committed("agent").version == "1.0.0") is done, (cut_at, last)
        assert (device.version == "1.0.0") is done, cut_at
        assert (desk.believed != []) is done
        assert device.tried <= 1
        ends.add(last.phase)
    assert (Phase.CONFIRMED in ends) is (conduct is Conduct.GOOD)


def test_a_trial_that_hangs_is_ended_by_the_alarm_that_outlives_exec(slots: Directories) -> None:
    hangs = ("agent/__init__.py", b""), ("agent/__main__.py", b"print(1, flush=True)\nwhile 1: 1\n")
    slots.arm(record(filled(slots, content=archive(*hangs))))
    code = (
        "from agent.update import launch; "
        "launch.GRACE_S = 2.0 - 600; launch.main([])"  # two seconds, instead of the trial's time
    )
    env = {**os.environ, "VESTIBULE_AGENT_STATE": str(slots.root.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=False, capture_output=True)
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, b"1\n")
    again = launch.choose(slots.root, kernel=launch._kernel(), now_s=launch._uptime_s())
    assert (again.slot, again.why) == (PACKAGE, "crashed")


def test_an_agent_that_says_itself_why_it_ends_has_not_crashed(
    updated: Directories, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashes(updated, 10, 20, 30, 40, 50)
    monkeypatch.setenv("VESTIBULE_AGENT_STATE", str(updated.root.parent))
    choice = launch.Choice("b", launch.COMMITTED)
    for name, text in launch.environment(os.environ, updated.root, choice, ["python"]).items():
        monkeypatch.setenv(name, text)
    assert command.main(["run"]) == command.LASTING[command.NOT_ENROLLED]
    assert crashes(updated, 60) == ["b"]


def test_a_real_launcher_goes_back_from_a_real_process_that_crashes(slots: Directories) -> None:
    filled(slots)  # prints 1
    slots.commit("agent", "a")
    broken = archive(("agent/__init__.py", b""), ("agent/__main__.py", b"raise ValueError\n"))
    filled(slots, "b", content=broken, version="1.1.0")
    slots.commit("agent", "b")
    env = {**os.environ, "VESTIBULE_AGENT_STATE": str(slots.root.parent)}
    words = [sys.executable, "-I", launch.__file__]
    ends = []
    for _ in range(launch.MOST_STARTS + 2):
        done = subprocess.run(words, env=env, check=False, capture_output=True)
        ends.append((done.returncode, done.stdout))
    assert ends == [*[(1, b"")] * launch.MOST_STARTS, (0, b"1\n"), (0, b"1\n")]
