"""A real agent with a page, as a process of its own, on a device that no server answers.

Its identity and its plan are made by an authority of the test's own, as a fleet would make them.
"""

import hashlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from urllib.request import Request, urlopen

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent import identity
from agent.identity import Enrolled
from agent.outbox import Outbox
from ops.services.child import Child, python, wait_ready
from protocol.codes import SIGNED, Code, Envelope, Stock
from protocol.frame import Kind, Section, decode_time, need, read_body, read_header
from protocol.kiosk import decode_presses
from protocol.plan import Plan, Shown
from protocol.questionnaire import Questionnaire
from server.api.keys import create_api_key
from server.feedback.plans import ContentSigner
from server.people import links, users
from server.people.roles import Grant, Role
from server.pki.authority import Authority
from server.pki.signer import sign_with
from server.provisioning.claims import root_fingerprint
from tests.browser.tech_world import INTERVAL_S, Store

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


class Device:
    """An agent with a page, as a process."""

    def __init__(self, home: Path, said: Mapping[str, str]) -> None:
        self.home = home
        self.state = home / "state"
        self.port = free_port()
        values = {
            "STATE": str(self.state),
            "SOCKET": str(home / "s"),
            "SCREEN_PORT": str(self.port),
            "SCREEN_PIN": PIN,
            "RETRY_MAX_S": "1",
            "SPREAD_S": "0",
            **said,
        }
        self.child = Child(
            "agent",
            python("-m", "agent", "run"),
            home / "log",
            {f"VESTIBULE_AGENT_{name}": text for name, text in values.items()},
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start the agent, and return once its page is served."""
        self.child.start()
        until = time.monotonic() + 60
        while True:
            try:
                urlopen(self.address, timeout=10).close()
                return
            except OSError:
                assert time.monotonic() < until, self.child.tail()
                assert self.child.running, self.child.tail()
                time.sleep(0.05)


class Kiosk(Device):
    """A device that no server answers, enrolled and given its plan by the test's own authority."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, {})
        self.pki = home / "pki"
        authority = Authority.create(self.pki)
        authority.ensure_services(now=datetime.now(UTC))
        self._enrol(authority)

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

    def hold(self, *codes: Code) -> None:
        """Let the device have been handed these codes, none of which was shown."""
        until_ms = round(time.time() * 1000) + 86_400_000
        stock = Stock(DEVICE, "offer-a", "https://shop.example/s", until_ms, codes).content()
        signer = ContentSigner.load(self.pki)
        signature = sign_with(signer.key, SIGNED + stock)
        mark = {"stock": hashlib.sha256(stock).hexdigest(), "shown": 0}
        identity.put(self.state / "codes.shown", json.dumps(mark).encode())
        sealed = Envelope(stock, signature, signer.chain)
        identity.put(self.state / "codes.json", sealed.content())

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


class KioskOf:
    """A kiosk of a store: enrolled by its label, asked through the API what it is to show."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.server = store.server
        shown = store.device("FK-0001", kind="kiosk")
        store.spot("Exit", kind="kiosk")
        store.sql("update organisations set enrolment = 'allow-list'")
        store.sql(
            "insert into assignments (organisation_id, device_id, spot_id, valid) "
            "select s.organisation_id, d.id, s.id, tstzrange(now() - interval '1 hour', null) "
            "from devices d, spots s where d.serial = $1 and s.kind = 'kiosk'",
            shown.serial,
        )
        self._key = store.ask(
            lambda connection: create_api_key(
                connection, store.organisation, "test", scopes=("read", "opinions:write")
            )
        )
        home = store.home / "kiosk"
        home.mkdir()
        self.kiosk = Device(
            home,
            {
                "SERVER": store.settings.enrolment_url,
                "ROOT_SHA256": root_fingerprint(store.settings.pki),
                "SERIAL": shown.serial,
                "SETUP_SECRET": shown.secret,
                **{name: str(INTERVAL_S) for name in ("INTERVAL_S", "FRAME_S", "QUIET_FRAME_S")},
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kiosk.child.end()

    def ask(self, method: str, path: str, body: object = None) -> dict[str, str]:
        headers = {
            "Authorization": f"Bearer {self._key}",
            "Content-Type": "application/json",
            "If-Match": "*",
        }
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.store.base}/v1{path}", data, headers, method=method)
        with urlopen(request, timeout=30) as response:
            found: dict[str, str] = json.load(response)
            return found

    def published(self, shown: Questionnaire) -> str:
        """Publish a questionnaire at the store's site; the publication's ref."""
        content = json.loads(shown.content)
        del content["format"]
        made = self.ask("POST", "/questionnaires", {"name": "Visit", "content": content})
        assert made["hash"] == shown.hash.hex()
        body = {"questionnaire": made["questionnaire"], "site": self.store.site}
        return self.ask("POST", "/publications", body)["publication"]

    def end(self, publication: str) -> None:
        self.ask("DELETE", f"/publications/{publication}")

    def portal(self, to: str) -> str:
        """Return an address that signs somebody in who asks visitors, and leads to a page."""

        async def make(connection: asyncpg.Connection) -> str:
            now = datetime.now(UTC)
            row = await users.add(
                connection, email="ada@example.com", name="Ada", actor="test", now=now
            )
            grant = Grant(Role.ANALYST, self.store.organisation)
            await users.grant(connection, row, grant, actor="test", now=now)
            purpose = links.Purpose.SIGN_IN
            user = await users.find(connection, "ada@example.com")
            token = await users.link(connection, user, purpose, actor="test", now=now)
            return f"{links.address(self.store.base, purpose, token)}&to={to}"

        return self.store.ask(make)

    def restart_server(self) -> None:
        self.server.start()
        wait_ready(self.server, self.store.base)

    def stored(self, count: int) -> list[tuple[str, int, int]]:
        """Return the presses that the server has stored, once there are so many."""
        until = time.monotonic() + 120
        while True:
            rows = self.store.sql(
                "select questionnaire, question, answer from presses order by time, visit"
            )
            if len(rows) >= count:
                mask = (1 << 64) - 1
                return [(f"{q & mask:016x}", question, given) for q, question, given in rows]
            assert time.monotonic() < until, self.kiosk.child.tail()
            time.sleep(0.2)
