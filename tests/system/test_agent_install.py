"""The agent's README, followed word by word in a bare environment, to the first count served.

Real: the clone, the virtual environment, pip with hashes, the wheel, enrolment over HTTPS, the
agent as a process of its own, the broker, the server, the API. Stand-ins for what belongs to the
machine: `sudo` runs what follows, `apt-get` and `useradd` note what they were asked for,
`systemctl` starts what the installed unit's ExecStart says. /opt/vestibule and /etc lie below a
temporary root, state and socket too, by the agent's own settings. The compiler is /bin/false.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from ops.chaos.system import System
from ops.deployment import environment
from ops.services.child import vestibule

pytestmark = [pytest.mark.services, pytest.mark.timeout(300), pytest.mark.long]

CHECKOUT = Path(__file__).parents[2]
README = CHECKOUT / "agent/README.md"
COMMANDS = re.search(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
SERVER_PACKAGES = ("aiohttp", "asyncpg", "sqlalchemy", "alembic", "Cython", "ext._decoder")
MOVED = ("/opt/vestibule", "/etc/systemd/system")  # whatever else is absolute is not touched

SUDO = '[ "$1" = -u ] && shift 2\nexec env "$@"'
NOTE = 'echo "$(basename "$0") $*" >> "$ROOT/asked"'
SYSTEMCTL = f"""{NOTE}
unit="$ROOT/etc/systemd/system/vestibule-agent.service"
command=$(sed -n 's#^ExecStart=/opt/vestibule#'"$ROOT"'/opt/vestibule#p' "$unit")
$command </dev/null >"$ROOT/journal" 2>&1 &
echo $! >"$ROOT/pid"
for _ in $(seq 300); do  # Type=notify: it returns once the agent is ready
    [ -S "$VESTIBULE_AGENT_SOCKET" ] && exit 0
    sleep 0.1
done
exit 1"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A blank machine below `root`; what the README's commands printed is `output`."""

    root: Path
    env: dict[str, str]
    device: str
    output: str

    def agent(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the installed `vestibule-agent`."""
        return subprocess.run(
            [self.root / "opt/vestibule/bin/vestibule-agent", *arguments],
            env=self.env,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def python(self, code: str) -> str:
        """Run `code` in the environment that was made."""
        command = [str(self.root / "opt/vestibule/bin/python"), "-I", "-c", code]
        return subprocess.check_output(command, env=self.env, cwd=self.root, text=True).strip()


@pytest.fixture(scope="module")
def machine(system: System) -> Iterator[Machine]:
    """A machine on which the README's five commands have been followed."""
    assert COMMANDS is not None, f"{README} has no ```sh block"
    root = Path(tempfile.mkdtemp(prefix="vestibule-pi-"))
    try:
        device, token = claim(system)
        env = bare(root)
        commands = COMMANDS[1].replace("TOKEN", token).replace("REPOSITORY", repository(root))
        for place in MOVED:
            commands = commands.replace(f" {place}", f" {root}{place}")
        done = subprocess.run(
            ["bash", "-euxc", commands],
            env=env,
            cwd=root / "home",
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{journal(root)}"
        yield Machine(root, env, device, done.stdout)
    finally:
        end_agent(root)
        shutil.rmtree(root, ignore_errors=True)


def claim(system: System) -> tuple[str, str]:
    """Make a device as an operator does; return its id and its token."""
    settings = environment(system.deployment.settings) | {"VESTIBULE_DSN_OWNER": system.dsn}
    where = ("--organisation", "Chaos", "--site", "Nytorget", "--spot", "Entrance")
    done = subprocess.run(
        vestibule("device", "add", *where),
        env=os.environ | settings,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    device, token = done.stdout.split()
    return device, token


def bare(root: Path) -> dict[str, str]:
    """Return the environment of a person who has just logged in, and lay out the machine."""
    stand_ins = {
        "sudo": SUDO,
        "apt-get": NOTE,
        "useradd": NOTE,
        "systemctl": SYSTEMCTL,
        "python3": f'exec "{os.path.realpath(sys.executable)}" "$@"',
    }
    for folder in ("bin", "home", "opt", "run", "etc/systemd/system"):
        (root / folder).mkdir(parents=True)
    for name, script in stand_ins.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (root / "bin" / name).chmod(0o755)
    own = Path(sys.prefix) / "bin"
    path = [place for place in os.environ["PATH"].split(":") if Path(place) != own]
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "REQUIRE_EXT"}
        and not name.startswith("VESTIBULE_")
    }
    return kept | {
        "PATH": ":".join([str(root / "bin"), *path]),
        "ROOT": str(root),
        "PIP_NO_COMPILE": "1",  # bytecode is made when it is first needed: saves the test seconds
        "CC": "/bin/false",
        "CXX": "/bin/false",
        "VESTIBULE_AGENT_STATE": str(root / "state"),
        "VESTIBULE_AGENT_SOCKET": str(root / "run/agent.sock"),
        "VESTIBULE_AGENT_INTERVAL_S": "1",  # five minutes a frame are a device's, not a test's
        "VESTIBULE_AGENT_FRAME_S": "2",
        "VESTIBULE_AGENT_QUIET_FRAME_S": "10",
        "VESTIBULE_AGENT_SPREAD_S": "0",
    }


def repository(root: Path) -> str:
    """Make a repository of this checkout as it stands, so that what is cloned is what is tested."""
    place = root / "repository"
    listed = git(CHECKOUT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(CHECKOUT / name, place / name)
    git(place, "init", "--quiet")
    git(place, "add", "--all")
    git(place, "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "all")
    return str(place)


def git(place: Path, *arguments: str) -> str:
    command = ["git", "-c", f"safe.directory={place}", "-C", str(place), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def end_agent(root: Path) -> None:
    """End the agent by the id it was started with."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int((root / "pid").read_text())
        os.kill(pid, signal.SIGTERM)
        wait(lambda: not running(pid), "the agent has ended", timeout_s=20)


def running(pid: int) -> bool:
    with suppress(FileNotFoundError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"
    return False


def journal(root: Path) -> str:
    log = root / "journal"
    return log.read_text() if log.exists() else "the agent was not started"


def wait(condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.1)


def visits(system: System, spot: str) -> int:
    """Return today's visits of a spot, as the API serves them."""
    today = datetime.now(UTC)
    asked = {
        "from": f"{today - timedelta(days=1):%F}",
        "to": f"{today + timedelta(days=2):%F}",
        "bucket": "day",
        "by": "spot",
    }
    rows = get(system, f"/v1/counts?{urlencode(asked)}")
    return sum(row["visits"] or 0 for row in rows if row["spot"] == spot)


def get(system: System, path: str) -> list[dict[str, Any]]:
    request = Request(
        system.url + path, headers={"Authorization": f"Bearer {system.api().keys[0]}"}
    )
    with urlopen(request, timeout=30) as response:
        rows: list[dict[str, Any]] = json.loads(response.read())["data"]
    return rows


def test_the_readme_has_five_commands() -> None:
    assert COMMANDS is not None
    assert len(COMMANDS[1].splitlines()) == 5


def test_five_commands_lead_to_a_count_that_the_api_serves(
    machine: Machine, system: System
) -> None:
    assert f"enrolled as {machine.device}, a counter" in machine.output
    assert machine.output.endswith("on disk: event 1 of 'command'\n")
    (spot,) = (row["spot"] for row in get(system, "/v1/spots") if row["name"] == "Entrance")
    wait(lambda: visits(system, spot) == 1, "the API serves one visit")


def test_the_machine_was_asked_for_git_and_venv_alone(machine: Machine) -> None:
    asked = (machine.root / "asked").read_text().splitlines()
    assert asked[:2] == ["apt-get update", "apt-get install -y git python3-venv"]
    assert asked[2].startswith("useradd --system ")
    assert asked[3:] == ["systemctl enable --now vestibule-agent"]


def test_neither_server_packages_nor_a_compiled_module_are_there(machine: Machine) -> None:
    code = (
        "import importlib.util as i\n"
        "def there(name):\n"
        "    try:\n        return i.find_spec(name) is not None\n"
        "    except ModuleNotFoundError:\n        return False\n"
        f"print([name for name in {SERVER_PACKAGES!r} if there(name)])"
    )
    assert machine.python(code) == "[]"
    assert list((machine.root / "opt/vestibule").glob("lib/python*/site-packages/ext/*.so")) == []


def test_the_agent_runs_from_its_own_environment(machine: Machine) -> None:
    place = machine.python("import agent.command; print(agent.command.__file__)")
    assert Path(place).is_relative_to(machine.root / "opt/vestibule")


def test_the_kiosks_page_was_installed_whole(machine: Machine) -> None:
    [there] = (machine.root / "opt/vestibule").glob("lib/python*/site-packages/agent/screen")
    here = CHECKOUT / "agent" / "screen"
    suffixes = {".html", ".css", ".js", ".json"}
    wanted = {path.name for path in here.iterdir() if path.suffix in suffixes}
    assert wanted
    assert wanted <= {path.name for path in there.iterdir()}


def test_the_doctor_finds_nothing_wrong(machine: Machine) -> None:
    done = machine.agent("doctor")
    found = {line.split()[1]: line for line in done.stdout.splitlines() if line[:1].strip()}
    assert done.returncode == 0, done.stdout
    assert list(found) == ["identity", "clock", "disk", "outbox", "certificate", "broker"]
    assert machine.device in found["identity"]
    assert "in use by the running agent" in found["outbox"]
    assert "TLSv1." in found["broker"]


def test_the_status_tells_of_the_count_and_the_connection(machine: Machine) -> None:
    def status() -> dict[str, Any]:
        done = machine.agent("status")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    wait(lambda: bool(status()["connected"]), "the agent is connected")
    told = status()
    assert told["device"] == machine.device
    assert told["kind"] == "counter"
    assert told["totals"] == [[0, 1, 0], [1, 0, 0]]
    assert told["trouble"] == ""
