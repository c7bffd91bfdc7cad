"""People who approve releases, a server that serves them, a device that checks, and who attacks.

The repository is the server's own, the check the agent's own, and between them is TLS with both
sides' certificates. An attacker changes what the listener serves (`served`), and signs with those
keys that he is given (`forge`).
"""

from __future__ import annotations

import http.server
import os
import shutil
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from agent import identity, keys
from agent.identity import Enrolled
from agent.update.agreement import Fault, Installed, Refused
from agent.update.trust import Question, Verified, decide, install_root
from ops import archive
from ops.drafts import Folder
from protocol.assignment import SIGNED, Assignment, Envelope, Item
from protocol.release import Component, Release
from server.firmware.assignments import AssignmentSigner
from server.firmware.keys import make_key, read_public, read_signer
from server.firmware.repository import Published, Repository, Target
from server.pki.authority import Authority

NOW = datetime.now(UTC).replace(microsecond=0)  # TLS goes by the real clock
DAY = timedelta(days=1)
DEVICE = "dc-2b3c4d5e6f7g"
NONCE = "0f" * 16
PEOPLE = ("anna", "bo", "cleo")

Served = bytes | Callable[[http.server.BaseHTTPRequestHandler], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the repository's files, but what the attacker put in their place."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body at once
    disable_nagle_algorithm = True
    server: Listener

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.server.asked.append(name)
        content = self.server.serve(name)
        if callable(content):
            self.close_connection = True
            with suppress(OSError):
                content(self)
            return
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def finish(self) -> None:
        with suppress(OSError):  # what is left for a device that hung up
            self.wfile.close()
        self.rfile.close()

    def log_message(self, format: str, *args: object) -> None:
        return


class Listener(http.server.ThreadingHTTPServer):
    """The devices' HTTPS listener, in a thread."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.context = context
        self.serve: Callable[[str], Served | None] = lambda _: None
        self.asked: list[str] = []
        self.connections = 0

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        with suppress(OSError), self.context.wrap_socket(request, server_side=True) as tls:
            super().finish_request(tls, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        return  # a device that hangs up is what some tests are about


@dataclass
class Fleet:
    """An authority with its services, a device's identity, and a listener."""

    authority: Authority
    pki: Path
    state: Path
    listener: Listener


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    top = tmp_path_factory.mktemp("fleet")
    authority = Authority.create(top / "pki", now=NOW)
    authority.ensure_services(now=NOW)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(top / "pki" / "https.pem", top / "pki" / "https.key")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(top / "pki" / "bundle.pem")
    listener = Listener(context)
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield Fleet(authority, top / "pki", enrolled(authority, top / "device"), listener)
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


def enrolled(authority: Authority, state: Path, device: str = DEVICE) -> Path:
    """Give a device its identity."""
    pending = state / "identity" / "key-pending.pem"
    pending.parent.mkdir(parents=True)
    key = keys.make(pending)
    issued = authority.issue_device(keys.request(key).encode(), device=device, now=NOW)
    identity.write(
        state,
        Enrolled(device, "counter", "localhost", 8883, "claim"),
        key=pending,
        chain=issued.chain_pem.decode(),
        bundle=authority.bundle(),
    )
    return state


@dataclass
class World:
    """One fleet's releases; time stands still at `now`."""

    fleet: Fleet
    top: Path
    now: datetime = NOW
    target: Target = field(default=None, repr=False)  # type: ignore[assignment]
    served: dict[str, Served] = field(default_factory=dict)
    installed: dict[str, Installed] = field(
        default_factory=lambda: {"agent": Installed("1.0.0", "1.0.0")}
    )

    def __post_init__(self) -> None:
        self.folder = Folder(self.top / "approvals")
        self.repository = Repository(self.top / "firmware")
        self.state = self.top / "device"
        self.fleet.listener.serve = self._serve
        self.fleet.listener.asked.clear()
        self.fleet.listener.connections = 0

    # -- the people ----------------------------------------------------------------------------

    def key(self, name: str) -> Path:
        """Return somebody's key, made when it is asked for first; not encrypted: quick."""
        path = self.top / "keys" / f"{name}.pem"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            make_key(path, password=None)
        return path

    def public(self, name: str) -> Any:
        return read_public(self.key(name).with_suffix(".pub"))

    def signer(self, name: str) -> CryptoSigner:
        return read_signer(self.key(name), password=None)

    def begin(self) -> None:
        """Make keys, a first root, and publish it."""
        snapshot, timestamp = self.repository.make_keys()
        self.folder.begin(
            root=[self.public(f"{name}-root") for name in PEOPLE],
            targets=[self.public(name) for name in PEOPLE],
            snapshot=read_public(snapshot),
            timestamp=read_public(timestamp),
            threshold=2,
            now=self.now,
        )
        self.approve()
        self.publish()
        shutil.copytree(self.fleet.state, self.state)
        trust = self.repository.first_trust()
        assert trust is not None
        install_root(self.state, trust)

    def approve(self, *people: str) -> None:
        """Let people sign whatever is drafted; the first two, root first."""
        for name in people or ("anna-root", "bo-root", "anna", "bo"):
            drafts = self.folder.to_sign(self.public(name).keyid)
            self.folder.sign(drafts, self.signer(name))

    def publish(self) -> Published:
        return self.repository.publish(
            self.folder.roots(),
            self.folder.targets_file(),
            artifact=self.folder.artifact,
            now=self.now,
        )

    def release(
        self,
        version: str,
        *,
        floor: str = "1.0.0",
        requires: str | None = None,
        hardware: tuple[str, ...] = ("DC2",),
        component: Component = "agent",
    ) -> Target:
        """Build, approve and publish a release."""
        target = self.draft(
            Release(component, version, floor, requires, hardware, f"What {version} brings")
        )
        self.approve()
        self.publish()
        return target

    def draft(self, release: Release) -> Target:
        """Build a release and draft its approval."""
        return self.folder.add(self.build(release), release, now=self.now)

    def build(self, release: Release) -> Path:
        tree = self.top / "trees" / f"{release.component}-{release.version}"
        for package in ("agent", "protocol"):
            (tree / package).mkdir(parents=True, exist_ok=True)
            (tree / package / "__init__.py").write_text(f'VERSION = "{release.version}"\n')
        out = tree.with_suffix(".tar")
        archive.build(tree, out, component=release.component, version=release.version)
        return out

    # -- the server ----------------------------------------------------------------------------

    def assignment(self, *targets: Target, **changes: Any) -> Assignment:
        """Return what the server would assign for these targets."""
        made = Assignment(
            device=DEVICE,
            hardware="DC2",
            rollout="ro-2b3c4d5e",
            execution="exe-2b3c4d5e",
            attempt=1,
            bundle=tuple(item(each) for each in targets),
            nonce=NONCE,
            not_after_ms=ms(self.now + DAY),
        )
        return replace(made, **changes)

    def sealed(self, assignment: Assignment) -> Envelope:
        return AssignmentSigner.load(self.fleet.pki).sealed(assignment)

    def envelope(self, assignment: Assignment) -> bytes:
        return self.sealed(assignment).content()

    def rotate_online(self, *people: str) -> None:
        """Give the server new keys, and devices a root that names them."""
        new = [read_public(path) for path in self.repository.make_keys()]
        self.folder.rotate("online", add=new, remove=[], threshold=None, now=self.now)
        self.approve(*people)
        self.publish()

    def _serve(self, name: str) -> Served | None:
        if name in self.served:
            return self.served[name]
        path = self.repository.metadata / name
        return path.read_bytes() if path.is_file() else None

    # -- the device ----------------------------------------------------------------------------

    def question(self, asked: Assignment | bytes, **changes: Any) -> Question:
        made = Question(
            envelope=self.envelope(asked) if isinstance(asked, Assignment) else asked,
            state=self.state,
            server=("localhost", self.fleet.listener.server_address[1]),
            hardware="DC2",
            nonce=NONCE,
            installed=self.installed,
            now_ms=ms(self.now),
        )
        return replace(made, **changes)

    def ask(self, asked: Assignment | bytes, **changes: Any) -> Verified:
        """Return what the device would install. Raises Refused."""
        return decide(self.question(asked, **changes))

    def fault(self, asked: Assignment | bytes, **changes: Any) -> Fault:
        """Return why the device installs nothing."""
        with pytest.raises(Refused) as caught:
            self.ask(asked, **changes)
        return caught.value.fault

    # -- the attacker --------------------------------------------------------------------------

    def online(self, role: str) -> CryptoSigner:
        """Return the server's newest key of a role: it was stolen."""
        return read_signer(max(self.repository.keys.glob(f"{role}-*.pem")), password=None)

    def held(self, name: str) -> Metadata[Any]:
        """Return a file as it is served now."""
        content = self._serve(name)
        assert isinstance(content, bytes)
        return Metadata.from_bytes(content)

    def names(self) -> dict[str, str]:
        """Return the newest file of each role."""
        timestamp = self.held("timestamp.json").signed
        snapshot = f"{timestamp.snapshot_meta.version}.snapshot.json"
        targets = self.held(snapshot).signed.meta["targets.json"].version
        root = max(int(path.name.split(".")[0]) for path in self.repository.metadata.glob("*root*"))
        return {
            "root": f"{root}.root.json",
            "timestamp": "timestamp.json",
            "snapshot": snapshot,
            "targets": f"{targets}.targets.json",
        }

    def parts(self) -> list[Any]:
        """Return what the newest file of each role says."""
        return [self.held(name).signed for name in self.names().values()]

    def forge(
        self, role: str, change: Callable[[Any], None], *signers: CryptoSigner, name: str = ""
    ) -> bytes:
        """Serve a changed file, signed by these; with none, the signatures stay as they are."""
        forged = deepcopy(self.held(self.names()[role]))
        change(forged.signed)
        if signers:
            forged.signatures.clear()
        for signer in signers:
            forged.sign(signer, append=True)
        content = forged.to_bytes()
        version = "" if role == "timestamp" else f"{forged.signed.version}."
        self.served[name or f"{version}{role}.json"] = content
        return content

    def follow(self, targets: bytes, *, ahead: int = 1) -> None:
        """With both online keys: serve a snapshot and a timestamp that name these targets."""
        version = Metadata.from_bytes(targets).signed.version

        def name_targets(snapshot: Any) -> None:
            snapshot.version += ahead
            snapshot.meta["targets.json"] = MetaFile.from_data(version, targets, ["sha256"])

        snapshot = self.forge("snapshot", name_targets, self.online("snapshot"))
        number = Metadata.from_bytes(snapshot).signed.version

        def name_snapshot(timestamp: Any) -> None:
            timestamp.version += ahead
            timestamp.snapshot_meta = MetaFile.from_data(number, snapshot, ["sha256"])

        self.forge("timestamp", name_snapshot, self.online("timestamp"))


@pytest.fixture(scope="module")
def begun(fleet: Fleet) -> Iterator[tuple[Path, Target]]:
    """A folder in which 1.1.0 is published already: it is copied, which is quick."""
    with in_memory() as folder:
        made = World(fleet, folder)
        made.begin()
        yield made.top, made.release("1.1.0")


@pytest.fixture
def world(fleet: Fleet, begun: tuple[Path, Target]) -> Iterator[World]:
    with in_memory() as folder:
        shutil.copytree(begun[0], folder, dirs_exist_ok=True)
        yield World(fleet, folder, target=begun[1])


@contextmanager
def in_memory() -> Iterator[Path]:
    """Some forty files a test, each synced: they cost nothing where there is no disk."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="vestibule-test-", dir=where) as folder:
        yield Path(folder)


def item(target: Target, /, **changes: Any) -> Item:
    """Return a target as an assignment names it."""
    release = target.release
    made = Item(
        release.component,
        release.version,
        release.floor,
        target.path,
        target.length,
        target.sha256,
    )
    return replace(made, **changes)


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def stranger(top: Path) -> CryptoSigner:
    """Return a key that nobody ever named."""
    path = top / "stranger.pem"
    if not path.exists():
        make_key(path, password=None)
    return read_signer(path, password=None)


def by(fleet: Fleet, service: str, assignment: Assignment) -> bytes:
    """Seal an assignment with another service's key."""
    from server.pki.service import ServiceSigner

    class Other(ServiceSigner):
        __slots__ = ()
        SERVICE = service

    content = assignment.content()
    signer = Other.load(fleet.pki)
    from protocol.assignment import Envelope

    return Envelope(content, signer.signed(SIGNED + content), signer.chain).content()
