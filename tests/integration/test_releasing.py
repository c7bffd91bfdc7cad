"""ops/RELEASING.md, command by command: what it says that they say, they say."""

import getpass
import re
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import ops.command
from ops.services.stack import Stack
from server.firmware.repository import Repository
from tests.deployed import deployed

pytestmark = pytest.mark.services

PAGE = Path(ops.command.__file__).parent / "RELEASING.md"
SERVER = "/var/lib/vestibule"
PASSWORD = "correct horse battery staple"
VOLATILE = (
    (r"\b[0-9a-f]{64}\b", "(digest)"),
    (r"\b[0-9a-f]{16}\b", "(key)"),
    (r"\b\d{4}-\d\d-\d\d( \d\d:\d\d)?", "(date)"),
    (r"\b\d{10}\b", "(number)"),
    (r"\brel-\w{8}\b", "(ref)"),
    (r"good for \d+ days", "good for (days)"),
)


def sessions() -> list[tuple[str, str]]:
    """Return each command of the page and what stands below it."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, said = part.partition("\n")
            found.append((command, said))
    return found


def same(text: str) -> str:
    """Return a text without what differs each time."""
    for pattern, name in VOLATILE:
        text = re.sub(pattern, name, text)
    return "\n".join(line.rstrip() for line in text.splitlines())


class Person:
    """Who sits at the terminal: says yes, and knows the password."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def password(self, prompt: str = "") -> str:
        sys.stdout.write(f"{prompt}\n")
        return PASSWORD

    def answer(self, prompt: str = "") -> str:
        sys.stdout.write(f"{prompt}yes\n")
        return "yes"

    def say(self, command: str, top: Path) -> str:
        """Run a command of the page; returns what the terminal shows."""
        words = shlex.split(command.replace(SERVER, str(top)))
        assert words[0] == "vestibule"
        self._capsys.readouterr()
        code = ops.command.main(words[1:])
        printed = self._capsys.readouterr()
        assert code == 0, printed
        return (printed.out + printed.err).replace(str(top), SERVER)


@pytest.fixture
def person(
    stack: Stack,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Person:
    """Somebody in an empty folder, on a machine that also reaches the server."""
    deployed(monkeypatch, stack, database, pki=tmp_path / "pki")
    tree = tmp_path / "work" / "tree"
    for package in ("agent", "protocol"):
        (tree / package).mkdir(parents=True)
        (tree / package / "__init__.py").write_text("")
    monkeypatch.chdir(tree.parent)
    made = Person(capsys)
    monkeypatch.setattr(getpass, "getpass", made.password)
    monkeypatch.setattr("builtins.input", made.answer)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    return made


def test_the_page_for_release_engineers_is_what_happens(person: Person, tmp_path: Path) -> None:
    commands = sessions()
    assert len(commands) > 35
    for command, said in commands:
        assert same(person.say(command, tmp_path)) == same(said), command
    repository = Repository(tmp_path / "firmware")
    assert [each.release.version for each in repository.targets()] == ["1.1.0"]
    left = repository.left(now=datetime.now(UTC))
    assert min(left.values()).days >= 2
