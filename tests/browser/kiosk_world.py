"""A real agent with a page, as a process of its own, on a device that no server answers.

Its identity and its plan are made by an authority of the test's own, as a fleet would make them.
"""

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent import identity
from agent.identity import Enrolled
from agent.outbox import Outbox
from ops.services.child import Child, python
from protocol.frame import Kind, Section, decode_time, need, read_body, read_header
from protocol.kiosk import decode_presses
from protocol.questionnaire import Plan, Questionnaire, Shown
from server.feedback.plans import ContentSigner
from server.pki.authority import Authority

DEVICE = "fk-2345abcdefgh"
PIN = "2468"


@dataclass(frozen=True)
class Pressed:
    """A press as its frame tells it."""

    hash: str
    question: int
    answer: int
    visit: int
    source: int


def free_port() -> int:
    """Return a port that nobody has just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Kiosk:
    """A device, and the agent on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.state = home / "state"
        self.port = free_port()
        self.pki = home / "pki"
        authority = Authority.create(self.pki)
        authority.ensure_services(now=datetime.now(UTC))
        self._enrol(authority)
        said = {
            "STATE": str(self.state),
            "SOCKET": str(home / "s"),
            "SCREEN_PORT": str(self.port),
            "SCREEN_PIN": PIN,
            "RETRY_MAX_S": "1",
        }
        self.child = Child(
            "agent",
            python("-m", "agent", "run"),
            home / "log",
            {f"VESTIBULE_AGENT_{name}": text for name, text in said.items()},
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def _enrol(self, authority: Authority) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        pem = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        issued = authority.issue_device(pem, device=DEVICE, now=datetime.now(UTC))
        pending = self.state / "pending"
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        identity.put(pending, secret, mode=0o600)
        nobody = free_port()
        identity.write(
            self.state,
            Enrolled(DEVICE, "kiosk", "127.0.0.1", nobody, "claim", "127.0.0.1", nobody),
            key=pending,
            chain=issued.chain_pem.decode(),
            bundle=authority.bundle(),
        )

    def keep(self, *shown: Questionnaire) -> None:
        """Let the device have been given this to show, the first before the others."""
        plan = Plan(DEVICE, "Söder", "Europe/Stockholm", tuple(Shown(q.digest) for q in shown))
        sealed = ContentSigner.load(self.pki).sealed(plan.content(), [q.content for q in shown])
        identity.put(self.state / "plan.json", sealed.content())

    def start(self) -> None:
        """Start the agent, and return once its page is served."""
        self.child.start()
        until = time.monotonic() + 30
        while True:
            try:
                urlopen(self.address, timeout=10).close()
                return
            except OSError:
                assert time.monotonic() < until, self.child.tail()
                assert self.child.running, self.child.tail()
                time.sleep(0.05)

    def pressed(self) -> list[Pressed]:
        """Stop the agent, and read what lies in its outbox, in order."""
        self.child.end()
        outbox = Outbox(self.state / "outbox.db")
        found: list[Pressed] = []
        try:
            for boot in outbox.boots:
                for held in outbox.read(boot, boot.first_seq, limit=10_000):
                    found += _presses(held.frame)
        finally:
            outbox.close()
        return found


def _presses(frame: bytes) -> Sequence[Pressed]:
    header = read_header(frame)
    if header.kind != Kind.KIOSK:
        return []
    sections = read_body(frame, header)
    told = decode_presses(
        need(sections, Section.PRESSES), decode_time(need(sections, Section.TIME))
    )
    return [
        Pressed(told.questionnaire.hex(), p.question, p.answer, p.visit, p.source)
        for p in told.presses
    ]
