"""`vestibule ca init` makes a fleet's authority whose roots can be taken away."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ops import ca
from ops.command import main
from ops.services.stack import ServiceStatus, Stack
from server.pki.authority import Authority
from server.pki.files import Files


@pytest.fixture
def pki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VESTIBULE_HOME", str(tmp_path))
    monkeypatch.delenv("VESTIBULE_PKI", raising=False)
    monkeypatch.setenv(ca.PASSWORD_FILE, str(tmp_path / "password"))
    (tmp_path / "password").write_text("a long enough password\n")
    return tmp_path / "pki"


def test_init_says_where_the_roots_keys_are_and_what_to_do_with_them(
    pki: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ca", "init"]) == 0
    said = capsys.readouterr().out
    assert str(pki / "offline") in said
    assert "delete it here" in said
    signer = Files.read(pki).root_signer(
        "root-2", keys=pki / "offline", password=b"a long enough password"
    )
    assert signer.certificate.subject.rfc4514_string() == "CN=Vestibule root 2"


def test_without_its_roots_keys_a_fleet_goes_on(
    pki: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ca", "init", "--directory", str(pki)]) == 0
    for key in (pki / "offline").iterdir():
        key.unlink()
    assert Authority.load(pki).ensure_services(now=ca._now())
    capsys.readouterr()
    assert main(["ca", "rollover", "start"]) == 1
    assert "root-2.key is not in" in capsys.readouterr().err


def test_with_another_password_nothing_is_begun(
    pki: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ca", "init"]) == 0
    (pki.parent / "password").write_text("another long password\n")
    before = (pki / "authorities.json").read_bytes()
    for words in (["rollover", "start"], ["issue-intermediate", "device"]):
        assert main(["ca", *words]) == 1
        assert "cannot be opened" in capsys.readouterr().err
    assert (pki / "authorities.json").read_bytes() == before


def test_an_authority_is_made_once(pki: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ca", "init"]) == 0
    before = (pki / "root.pem").read_bytes()
    assert main(["ca", "init"]) == 1
    assert "already holds an authority" in capsys.readouterr().err
    assert (pki / "root.pem").read_bytes() == before


def test_an_authority_whose_roots_were_forgotten_says_so_and_what_to_do(
    pki: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Authority.create(pki)
    way_out = f"move {pki} away, and `vestibule ca init`"
    assert main(["ca", "init"]) == 1
    said = capsys.readouterr().err
    assert "already holds an authority, made without `vestibule ca init`" in said
    assert "roots' keys were not kept" in said
    assert way_out in said
    assert main(["ca", "rollover", "start"]) == 1
    assert way_out in capsys.readouterr().err
    assert main(["ca"]) == 0
    said = capsys.readouterr().out
    assert said.count("its key was not kept") == 2
    assert "its key is not here" not in said
    assert way_out in said
    pki.rename(pki.with_name("away"))
    assert main(["ca", "init"]) == 0
    capsys.readouterr()
    assert main(["ca"]) == 0
    assert "not kept" not in capsys.readouterr().out


def test_a_short_password_makes_nothing(pki: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pki.parent / "password").write_text("short\n")
    assert main(["ca", "init"]) == 1
    assert "16 characters" in capsys.readouterr().err
    assert not pki.exists()


def test_without_a_terminal_the_password_comes_from_a_file(
    pki: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ca.PASSWORD_FILE)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["ca", "init"]) == 1
    assert ca.PASSWORD_FILE in capsys.readouterr().err


def test_at_a_terminal_the_password_is_asked_twice(
    pki: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(ca.PASSWORD_FILE)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter(["a long enough password", "a long enough passwort"])
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert main(["ca", "init"]) == 1
    assert "not the same" in capsys.readouterr().err


def test_show_tells_what_there_is_without_a_database(
    pki: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ca", "init"]) == 0
    (pki / "offline/root-1.key").unlink()
    assert main(["ca"]) == 0
    said = capsys.readouterr().out
    assert "its key is not here" in said
    assert "its key is still here: take it away" in said
    assert "not known" in said


def test_what_serve_does_by_itself_is_no_to_do(
    pki: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ca", "init"]) == 0
    capsys.readouterr()
    assert main(["ca"]) == 0
    said = capsys.readouterr().out
    assert "to do" not in said
    assert "`vestibule serve` starts it, and gives it device-anchor.pem" in said


@pytest.mark.parametrize("whose", ["theirs", "elsewhere", "running"])
def test_a_broker_that_nobody_starts_anew_is_a_to_do(
    pki: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whose: str
) -> None:
    directory = pki.with_name("other") if whose == "elsewhere" else pki
    assert main(["ca", "init", "--directory", str(directory)]) == 0
    if whose == "theirs":
        monkeypatch.setenv("VESTIBULE_BROKER_URL", "mqtts://broker.example:8883")
    if whose == "running":
        running = ServiceStatus("broker", running=True, pid=1, ports=(), log_path=pki)
        monkeypatch.setattr(Stack, "status", lambda _: [running])
    capsys.readouterr()
    assert main(["ca", "--directory", str(directory)]) == 0
    assert "`vestibule ca install`" in capsys.readouterr().out


def test_no_authority_is_said_in_words(pki: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ca"]) == 1
    assert "holds no authority" in capsys.readouterr().err
