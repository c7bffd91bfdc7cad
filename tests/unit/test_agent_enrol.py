"""Claim tokens, settings, and enrolment against a server of a few lines."""

from __future__ import annotations

import base64
import errno
import json
import ssl
import stat
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from agent import command, identity, keys
from agent.config import AgentConfig, ConfigError, load
from agent.doctor import State, examine
from agent.enrol import EnrolError, StateError, TokenError, enrol, keep_root, parse_token
from agent.identity import NotEnrolledError
from agent.notify import Notifier
from agent.outbox import Outbox
from agent.update.trust import FOLDER, ROOT

SECRET = "a-secret-that-nobody-else-may-hear"


def token(url: str, digest: str, secret: str = SECRET) -> str:
    body = json.dumps({"u": url, "f": digest, "c": secret}).encode()
    return "vst1." + base64.urlsafe_b64encode(body).decode().rstrip("=")


class Root:
    """A root that signs servers and devices."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self.sign(self.key.public_key(), name, authority=True)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def digest(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def sign(
        self, key: ec.EllipticCurvePublicKey, name: str, *, authority: bool = False
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )


class Server:
    """Speaks `/v1/trust` and `/v1/enrol` with certificates of `root`; notes what it hears."""

    def __init__(self, folder: Path, root: Root, *, bundle: str | None = None) -> None:
        self.root = root
        self.bundle = bundle or root.pem
        self.claims: list[str] = []
        self.keys: list[bytes] = []
        self.refuse: tuple[int, str] | None = None
        self.drop = 0  # answers to lose after acting
        self.wrong_key = False
        self.more: dict[str, str] = {}
        key = ec.generate_private_key(ec.SECP256R1())
        path = folder / f"server-{id(self)}.pem"
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + root.sign(key.public_key(), "server").public_bytes(Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, server.bundle)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, text = server.enrol(body["claim"], body["csr"])
                if server.drop:
                    server.drop -= 1
                    self.close_connection = True
                    return
                self.reply(status, text)

            def reply(self, status: int, text: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def enrol(self, claim: str, csr: str) -> tuple[int, str]:
        self.claims.append(claim)
        if self.refuse is not None:
            status, code = self.refuse
            return status, json.dumps({"code": code, "detail": "no"})
        request = x509.load_pem_x509_csr(csr.encode())
        assert request.is_signature_valid
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        point = key.public_numbers().x.to_bytes(32, "big")
        self.keys.append(point)
        if self.wrong_key:
            key = ec.generate_private_key(ec.SECP256R1()).public_key()
        chain = self.root.sign(key, "door-test01").public_bytes(Encoding.PEM).decode()
        return 200, json.dumps(
            {
                "device": "door-test01",
                "kind": "kiosk",
                "chain": chain,
                "bundle": self.root.pem,
                "broker_host": "127.0.0.1",
                "broker_port": 8883,
                **self.more,
            }
        )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, Root("fleet"))
    yield made
    made.close()


def test_a_token_is_read_and_its_secret_does_not_show() -> None:
    read = parse_token(token("https://vestibule.example:8443", "ab" * 32))
    assert (read.host, read.port, read.secret) == ("vestibule.example", 8443, SECRET)
    assert SECRET not in repr(read)
    assert parse_token(token("https://vestibule.example", "ab" * 32) + "\n").port == 443


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vst1.",
        "vst2.abc",
        "vst1.!!!!",
        "vst1.e30",
        "vst1." + "A" * 3_000,
        token("http://vestibule.example", "ab" * 32),
        token("https://user@vestibule.example", "ab" * 32),
        token("https://vestibule.example/elsewhere", "ab" * 32),
        token("https://vestibule.example:99999", "ab" * 32),
        token("https://vestibule.example", "AB" * 32),
        token("https://vestibule.example", "ab" * 31),
        token("https://vestibule.example", "ab" * 32, secret=""),
        token("https://vestibule.example", "ab" * 32)[:-9],
    ],
)
def test_a_damaged_token_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(TokenError, match=r"claim"):
        parse_token(text)


def test_a_claim_becomes_an_identity_with_a_key_that_only_we_can_read(
    server: Server, tmp_path: Path
) -> None:
    done = enrol(token(server.url, server.root.digest), state=tmp_path / "state")
    assert (done.device, done.kind) == ("door-test01", "kiosk")
    files = identity.files(tmp_path / "state")
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert identity.for_link(tmp_path / "state").broker_port == 8883
    assert SECRET not in files.identity.read_text()
    assert sorted(path.name for path in files.folder.iterdir()) == [
        "bundle.pem",
        "chain.pem",
        "identity.json",
        "key.pem",
    ]


def test_the_first_root_of_releases_comes_with_the_identity_and_no_other_replaces_it(
    server: Server, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    kept = state / FOLDER / ROOT
    first, other = (json.dumps({"signed": {"_type": "root", "version": n}}) for n in (1, 2))
    server.more = {"releases": json.dumps({"signed": {"_type": "targets"}})}
    enrol(token(server.url, server.root.digest), state=state)
    assert not kept.exists()  # it is no root, and the device is enrolled all the same
    keep_root(state, None)  # a server that has no releases says nothing
    assert not kept.exists()
    server.more = {"releases": first}
    enrol(token(server.url, server.root.digest, "b" * 32), state=state, again=True)
    assert kept.read_text() == first
    keep_root(state, other)
    assert kept.read_text() == first


def test_after_a_lost_answer_the_same_key_asks_again(server: Server, tmp_path: Path) -> None:
    server.drop = 2
    text = token(server.url, server.root.digest)
    for _ in range(2):
        with pytest.raises(EnrolError) as raised:
            enrol(text, state=tmp_path / "state")
        assert not raised.value.permanent
        with pytest.raises(NotEnrolledError):
            identity.read(tmp_path / "state")
    enrol(text, state=tmp_path / "state")
    assert len(server.keys) == 3
    assert len(set(server.keys)) == 1
    enrol(text, state=tmp_path / "state")
    assert len(server.keys) == 3


def test_the_secret_is_told_only_to_who_holds_the_pinned_root(tmp_path: Path) -> None:
    real, impostor = Root("fleet"), Root("fleet")
    for bundle in (impostor.pem, impostor.pem + real.pem, real.pem, "nonsense"):
        server = Server(tmp_path, impostor, bundle=bundle)
        try:
            with pytest.raises(EnrolError):
                enrol(token(server.url, real.digest), state=tmp_path / "state")
            assert server.claims == []
        finally:
            server.close()


def test_a_refusal_says_why_and_whether_to_try_again(server: Server, tmp_path: Path) -> None:
    text = token(server.url, server.root.digest)
    for refusal, permanent in (((403, "claim_used"), True), ((503, "busy"), False)):
        server.refuse = refusal
        with pytest.raises(EnrolError, match=refusal[1]) as raised:
            enrol(text, state=tmp_path / "state")
        assert raised.value.permanent is permanent


def test_a_certificate_for_another_key_is_not_kept(server: Server, tmp_path: Path) -> None:
    server.wrong_key = True
    with pytest.raises(EnrolError, match="not for our key"):
        enrol(token(server.url, server.root.digest), state=tmp_path / "state")
    with pytest.raises(NotEnrolledError):
        identity.read(tmp_path / "state")


def test_another_claim_replaces_an_identity_only_when_asked(server: Server, tmp_path: Path) -> None:
    state = tmp_path / "state"
    enrol(token(server.url, server.root.digest), state=state)
    other = token(server.url, server.root.digest, secret="another")
    with pytest.raises(EnrolError, match="already enrolled") as raised:
        enrol(other, state=state)
    assert raised.value.permanent
    enrol(other, state=state, again=True)
    assert len(set(server.keys)) == 2


@pytest.mark.parametrize("damage", ["", "nonsense", "encrypted", "another curve", "not elliptic"])
def test_a_damaged_pending_key_is_replaced(server: Server, tmp_path: Path, damage: str) -> None:
    text = token(server.url, server.root.digest)
    pending = identity.files(tmp_path / "state").pending_key(parse_token(text).claim)
    other = ec.generate_private_key(ec.SECP384R1())
    plain, secret = NoEncryption(), BestAvailableEncryption(b"secret")
    as_pem = Encoding.PEM, PrivateFormat.PKCS8
    made = {
        "encrypted": server.root.key.private_bytes(*as_pem, secret),
        "another curve": other.private_bytes(*as_pem, plain),
        "not elliptic": ed25519.Ed25519PrivateKey.generate().private_bytes(*as_pem, plain),
    }
    identity.put(pending, made.get(damage, damage.encode()), mode=0o600)
    enrol(text, state=tmp_path / "state")
    files = identity.files(tmp_path / "state")
    chain = x509.load_pem_x509_certificate(files.chain.read_bytes())
    assert keys.read(files.key).public_key() == chain.public_key()


def test_beside_a_running_agent_enrolment_changes_nothing_and_says_what_to_stop(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = tmp_path / "state"
    monkeypatch.setenv("VESTIBULE_AGENT_STATE", str(state))
    first = token(server.url, server.root.digest)
    assert command.main(["enrol", first]) == command.OK
    before = identity.read(state)
    running = Outbox(state / "outbox.db")
    again = ["enrol", "--again", token(server.url, server.root.digest, secret="another")]
    assert command.main(again) == command.BUSY
    assert "systemctl stop vestibule-agent" in capsys.readouterr().err
    assert (identity.read(state), len(server.keys)) == (before, 1)
    assert command.main(["enrol", first]) == command.OK  # it only says that it is done
    running.close()
    assert command.main(again) == command.OK
    assert identity.read(state).pair == 1
    Outbox(state / "outbox.db").close()  # the agent can start


@pytest.mark.parametrize("step", ["key", "chain"])
def test_a_state_folder_that_cannot_be_written_is_no_fault_of_the_network(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: str,
) -> None:
    put = identity.put

    def refuse(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if path.name.startswith(step):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        put(path, data, mode=mode)

    monkeypatch.setenv("VESTIBULE_AGENT_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(identity, "put", refuse)
    assert command.main(["enrol", token(server.url, server.root.digest)]) == command.FAILED
    said = capsys.readouterr().err
    assert f"{tmp_path / 'state'} cannot be written: Permission denied" in said
    assert "Run as root" in said
    assert "VESTIBULE_AGENT_STATE" in said
    assert "no answer" not in said


def test_a_state_folder_that_cannot_be_is_said(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VESTIBULE_AGENT_STATE", str(tmp_path / "file" / "state"))
    assert command.main(["enrol", token(server.url, server.root.digest)]) == command.FAILED
    assert "file/state cannot be written: Not a directory" in capsys.readouterr().err


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    full = str(StateError(tmp_path, OSError(errno.ENOSPC, "No space left on device")))
    assert full == f"{tmp_path} cannot be written: No space left on device"


def test_the_doctor_has_the_service_stopped_before_another_enrolment(
    server: Server, tmp_path: Path
) -> None:
    settings = AgentConfig(state=tmp_path / "state")
    enrol(token(server.url, server.root.digest), state=settings.state)
    identity.files(settings.state).key.chmod(0o644)
    (remedy,) = (found.remedy for found in examine(settings) if found.check == "identity")
    assert remedy.index("systemctl stop") < remedy.index("enrol --again")


def test_the_doctor_names_a_remedy_for_each_finding(server: Server, tmp_path: Path) -> None:
    settings = AgentConfig(state=tmp_path / "state")
    first = next(iter(examine(settings)))
    assert (first.check, first.state) == ("identity", State.FAIL)
    enrol(token(server.url, server.root.digest), state=settings.state)
    identity.files(settings.state).key.chmod(0o644)
    found = {finding.check: finding for finding in examine(settings)}
    assert list(found) == ["identity", "clock", "disk", "outbox", "certificate", "broker"]
    assert "chmod 600" in found["identity"].remedy
    assert found["certificate"].state is State.OK
    assert found["broker"].state is State.FAIL
    assert all(f.remedy for f in found.values() if f.state is not State.OK)


def test_settings_come_from_the_file_and_the_environment_over_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        'lines = 3\nsensor = "gpio"\n[gpio]\nlines = [{line = 0, a = 17, b = 27}]\n'
        "buttons = [{pin = 5, question = 1, answer = 4}]\n"
    )
    settings = load(path, environ={"VESTIBULE_AGENT_FLUSH_S": "0.05", "HOME": "/"})
    assert (settings.lines, settings.flush_s) == (3, 0.05)
    assert settings.gpio.pins == (17, 27, 5)
    assert load(environ={"VESTIBULE_AGENT_CONFIG": str(path)}).lines == 3
    assert load(environ={}).profile("kiosk").kind == "kiosk"


@pytest.mark.parametrize(
    "text",
    [
        "linse = 3",
        "lines = 9",
        'lines = "two"',
        "flush_s = 5",
        'sensor = "radar"',
        'sensor = "gpio"',
        "interval_s = 7",
        "gpio = 3",
        "[gpio]\nlines = [{line = 0, a = 1, b = 1}]",
        "not toml",
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load(path, environ={})


def test_without_a_service_manager_nobody_is_told() -> None:
    silent = Notifier({})
    silent.tell("READY=1")
    assert silent.watchdog_s == 0
    Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).tell("READY=1")
