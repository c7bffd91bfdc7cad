"""Real processes on real slots, killed (SIGKILL) at every change that they make on the disk.

The image is this checkout's `agent` and `protocol` with another `__main__`: one that drives the
machine with nothing but the disk. Of the hundred files of a slot, it is killed at two. The launcher
is the package's own file, started as systemd would: again and again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.update.journal import File, Journal
from agent.update.launch import FOLDER, committed
from protocol.assignment import Assignment, Item
from protocol.release import target_path
from protocol.update import Phase

CHECKOUT = Path(__file__).parents[2]
MOST_STARTS = 12

MAIN = """
import json, os, signal, sys
from pathlib import Path

KILL = int(os.environ["KILL_AT"])
COUNTER = Path(os.environ["COUNTER"])

QUIET = []  # within a hundred files of one kind

def instant(seen=[int(COUNTER.read_text())]):
    if QUIET:
        return
    seen[0] += 1
    COUNTER.write_text(str(seen[0]))
    if seen[0] == KILL:
        os.kill(os.getpid(), signal.SIGKILL)

def wrapped(act):
    def doing(*arguments, **named):
        instant()
        result = act(*arguments, **named)
        instant()
        return result
    return doing

for name in ("fsync", "replace", "unlink", "symlink", "mkdir"):
    setattr(os, name, wrapped(getattr(os, name)))
"""

DRIVER = (
    MAIN
    + """
if os.environ.get("BAD") and "/update/agent/" in __file__:
    raise SystemExit(2)

from agent.update import launch, slots
from agent.update.hands import SlotHands, item_of, places_of
from agent.update.journal import File, Journal
from agent.update.slots import Directories
from agent.update.states import *
from protocol.assignment import read_assignment
from protocol.update import Attempt

def quiet(act, *loud):
    def doing(*arguments, **named):
        if not any(word in str(each) for word in loud for each in arguments):
            QUIET.append(1)
        try:
            return act(*arguments, **named)
        finally:
            QUIET[:] = []
    return doing

slots._write = quiet(slots._write, "agent/__init__.py", "__main__.py")
slots._sync_all = quiet(slots._sync_all)
slots.shutil.rmtree = quiet(slots.shutil.rmtree)

state = Path(os.environ["VESTIBULE_AGENT_STATE"])
root = state / "update"
how = launch.launched()

class Hands(SlotHands):
    def check(self, update):
        return Checked(places_of(update.job, self.slots))
    def fetch(self, update):
        for place in update.places:
            self.slots.fill(place.new, item_of(update.job, place), Path(os.environ["ARCHIVE"]))
        return Fetched(1)
    def look(self, update):
        return Looked(0, False)
    def restart(self, update):
        launch.again(how)
    def prove(self, update):
        return Proved(Proof.HEALTH)
    def tidy(self, update):
        return None

hands = Hands(Directories(root, identity=state / "identity"))
journal = Journal(File(root), now_ms=lambda: 1793500000000)
fell = how.why if how.why in launch.FELL_BACK else ""
attempt = None if how.attempt is None else Attempt(*how.attempt)
slot = hands.slots.running().slot
journal.advance(Started(slot, how.why == launch.TRIAL, fell, attempt), hands)
if not journal.update.ended:
    journal.advance(Offered(read_assignment(os.environ["JOB"].encode())), hands)
for proof in (Proof.SELF_TEST, Proof.SESSION, Proof.SERVER):
    journal.advance(Proved(proof), hands)
hands.settle(journal.update)
print("SETTLED", slot, journal.update.stage.value, flush=True)
"""
)
"""It shadows `agent.__main__`, in the package and in the image alike."""

LAUNCHER = (
    MAIN.replace("KILL = int", "KILL = int", 1)
    + """
import runpy
sys.argv = [os.environ["LAUNCH"]]
runpy.run_path(os.environ["LAUNCH"], run_name="__main__")
"""
)


def tree(top: Path) -> Path:
    for package in ("agent", "protocol"):
        shutil.copytree(
            CHECKOUT / package, top / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (top / "agent/__main__.py").write_text(DRIVER)
    return top


@dataclass
class Image:
    """A package, and an archive of what replaces it."""

    package: Path
    archive: Path
    item: Item


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    top = tmp_path_factory.mktemp("image")
    package = tree(top / "package")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path in sorted(package.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(package).as_posix())
    archive = top / "archive.tar"
    archive.write_bytes(out.getvalue())
    sha256 = hashlib.sha256(out.getvalue()).hexdigest()
    name = target_path("agent", "1.0.0", sha256)
    item = Item("agent", "1.0.0", "0.5.0", name, len(out.getvalue()), sha256)
    return Image(package, archive, item)


def life(image: Image, top: Path, kill_at: int, *, bad: bool) -> tuple[int, str, Any]:
    """Start the launcher until an agent has come to rest; instants, its slot, its journal."""
    top.mkdir()
    job = Assignment("dc-simulated1", "DC2", "ro-simulated1", "exe-simulated1", 1, (image.item,),
                     "0" * 32, 1_800_000_000_000)  # fmt: skip
    counter = top / "counter"
    counter.write_text("0")
    env = {
        **{name: text for name, text in os.environ.items() if not name.startswith("VESTIBULE")},
        "PYTHONPATH": str(image.package),
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(image.package.parent / "cache"),
        "VESTIBULE_AGENT_STATE": str(top / "state"),
        "ARCHIVE": str(image.archive),
        "JOB": job.content().decode(),
        "KILL_AT": str(kill_at),
        "COUNTER": str(counter),
        "LAUNCH": str(image.package / "agent/update/launch.py"),
        "BAD": "1" if bad else "",
    }
    (top / "state").mkdir()
    said = ""
    for _ in range(MOST_STARTS):
        done = subprocess.run(
            [sys.executable, "-c", LAUNCHER], env=env, cwd=top, capture_output=True, text=True
        )
        said += done.stdout + done.stderr
        settled = [line for line in done.stdout.splitlines() if line.startswith("SETTLED")]
        if settled and settled[-1].endswith(" idle"):
            update = Journal(File(top / "state" / FOLDER), now_ms=lambda: 0).update
            return int(counter.read_text()), settled[-1].split()[1], update
        assert done.returncode in (-signal.SIGKILL, 2, 0), said
    raise AssertionError(said)


@pytest.mark.parametrize("bad", [False, True], ids=["good", "crashes"])
@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_process_killed_at_any_change_of_the_disk_ends_where_it_says(
    image: Image, tmp_path: Path, bad: bool, first: int
) -> None:
    many, _, _ = life(image, tmp_path / "whole", -1, bad=bad)
    assert many > 60
    ends = set()
    for kill_at in range(first, many + 1, 3):
        _, slot, update = life(image, tmp_path / str(kill_at), kill_at, bad=bad)
        root = tmp_path / str(kill_at) / "state" / FOLDER
        last = update.ended[-1]
        done = last.phase is Phase.CONFIRMED
        assert (slot == "a") is done, (kill_at, last)
        assert (committed(root) == "a") is done, (kill_at, last)
        assert not (root / "try.json").exists(), kill_at
        floors = tmp_path / str(kill_at) / "state/identity/floors.json"
        assert (floors.exists() and json.loads(floors.read_text())["agent"] == "0.5.0") is done
        ends.add(last.phase)
        shutil.rmtree(tmp_path / str(kill_at))
    assert (Phase.CONFIRMED in ends) is not bad
    assert ends <= {Phase.CONFIRMED, Phase.REVERTED, Phase.FAILED}
