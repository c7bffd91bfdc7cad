"""The release engineer's workshop: counters that are processes, and releases for them, signed.

Three counters hang in a workshop of an organisation of its own; nobody passes them. Each is the
real agent as a process, started by its launcher, and again whenever that has ended, as a service
manager would. Four people have keys here that no server has: two name keys, two approve releases.
All goes through the product's own ways: `ops.drafts`, `ops.archive`, claims, the enrolment.

Nothing of it is there until somebody asks for it, since each counter is a process more.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import structlog

import agent
from agent import identity
from agent.enrol import enrol
from ops import archive
from ops.drafts import Folder
from ops.places import ACTOR, places
from ops.services.child import Child, python
from protocol.release import Release
from server.config import Settings
from server.firmware import bundles
from server.firmware.keys import make_key, read_public, read_signer
from server.firmware.releases import note_published
from server.firmware.repository import Repository, read_targets
from server.fleet.checks import TakenError
from server.fleet.sites import Site
from server.provisioning.claims import claim_token

WORKSHOP, SITE = "Verkstaden", "Workshop"
COUNTERS = 3
HARDWARE = "DC2"
GOOD, BAD = "0.2.0", "0.3.0"
NOTES: Mapping[str, str] = {
    GOOD: "This checkout, under a new version.",
    BAD: "Ends as soon as it starts.",
}
NAMERS, APPROVERS = ("Anna", "Bo"), ("Cilla", "Dag")
LOOK_S = 0.5

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Counter:
    """One counter of the workshop; `runs`: what it greeted as, `online`: whether it is there."""

    name: str
    agent: Child
    runs: str = ""
    online: bool = False


class Engineer:
    """See the module. `busy`: what is being done now; `trouble`: why the last thing was not."""

    def __init__(self, root: Path, settings: Settings, *, dsn: str) -> None:
        self.counters: list[Counter] = []
        self.organisation: int | None = None
        self.ready: dict[str, str] = {}  # bundles by the version that they bring
        self.busy = ""
        self.trouble = ""
        self._root, self._settings, self._dsn = root, settings, dsn
        self._folder = Folder(root / "approvals")
        self._repository = Repository(settings.firmware)
        self._acting = asyncio.Lock()
        self._known = root / "counters"
        if self._known.is_dir():
            self._open()

    async def prepare(self) -> None:
        """Set the workshop up, with its first release; once."""
        async with self._acting:
            if not self.counters:
                await self._tried("setting the workshop up", self._prepare)
            if GOOD not in self.ready:
                await self._tried(f"signing {GOOD}", lambda: self._release(GOOD))

    async def spoil(self) -> None:
        """Release a version that ends as soon as it starts; once."""
        async with self._acting:
            if self.counters and BAD not in self.ready:
                await self._tried(f"signing {BAD}", lambda: self._release(BAD))

    async def watch(self) -> None:
        """Start counters that have ended, and look at what they run; ends by cancellation."""
        while True:
            for each in self.counters:
                if not each.agent.running:
                    await asyncio.to_thread(each.agent.start)
            if self.counters:
                try:
                    await self._look()
                except (OSError, TimeoutError, asyncpg.PostgresError) as error:
                    log.debug("the workshop could not be looked at", error=str(error))
            await asyncio.sleep(LOOK_S)

    def end(self) -> None:
        """End the counters' agents."""
        for each in self.counters:
            each.agent.end()

    # -- inside ----------------------------------------------------------------------------------

    async def _tried(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        self.busy, self.trouble = what, ""
        try:
            await act()
        except Exception as error:  # whatever is away: the card says so, and it is tried again
            log.exception("the workshop has trouble")
            self.trouble = f"{what}: {str(error) or type(error).__name__}"
        finally:
            self.busy = ""

    async def _prepare(self) -> None:
        if not (self._root / "approvals").exists():
            await asyncio.to_thread(self._begin)
            await self._publish()
        claims = await self._claims()
        await asyncio.to_thread(self._enrol, claims)
        self._open()

    def _begin(self) -> None:
        """Make everybody's keys and the server's, and begin what they approve."""
        self._root.mkdir(parents=True, exist_ok=True)
        for name in (*NAMERS, *APPROVERS):
            make_key(self._key(name), password=None)
        snapshot, timestamp = self._repository.make_keys()
        self._folder.begin(
            root=[read_public(self._key(name).with_suffix(".pub")) for name in NAMERS],
            targets=[read_public(self._key(name).with_suffix(".pub")) for name in APPROVERS],
            snapshot=read_public(snapshot),
            timestamp=read_public(timestamp),
            threshold=2,
            now=_now(),
        )

    def _key(self, name: str) -> Path:
        return self._root / f"{name.lower()}.pem"

    async def _release(self, version: str) -> None:
        """Build a version, let both approve it, and give it to the server in a bundle."""
        await asyncio.to_thread(self._approve, version)
        await self._publish()
        connection = await asyncpg.connect(self._dsn)
        try:
            async with connection.transaction():
                parts = [("agent", version)]
                await bundles.make(
                    connection, f"Agent {version}", parts, actor=ACTOR, now=_now()
                )  # fmt: skip
        except TakenError:
            log.info("it is bundled already", version=version)
        finally:
            await connection.close()
        await self._look()

    def _approve(self, version: str) -> None:
        if any(each.release.version == version for each in self._folder.approved()):
            return
        with tempfile.TemporaryDirectory() as text:
            tree, out = Path(text) / "tree", Path(text) / "release.tar"
            for package in ("agent", "protocol"):
                shutil.copytree(Path(agent.__file__).parents[1] / package, tree / package)
            if version == BAD:
                (tree / "agent/__main__.py").write_text("raise SystemExit(2)\n")
            archive.build(tree, out, component="agent", version=version)
            release = Release("agent", version, "0.1.0", None, (HARDWARE,), NOTES[version])
            self._folder.add(out, release, now=_now())

    async def _publish(self) -> None:
        """Let everybody sign what is drafted, and hand it to the server."""
        await asyncio.to_thread(self._sign)
        connection = await asyncpg.connect(self._dsn)
        try:
            async with connection.transaction():
                targets = read_targets(self._folder.targets().signed)
                await note_published(connection, targets, actor=ACTOR, now=_now())
                await asyncio.to_thread(
                    self._repository.publish,
                    self._folder.roots(),
                    self._folder.targets_file(),
                    artifact=self._folder.artifact,
                    now=_now(),
                )
        finally:
            await connection.close()

    def _sign(self) -> None:
        for name in (*NAMERS, *APPROVERS):
            key = self._key(name)
            drafts = self._folder.to_sign(read_public(key.with_suffix(".pub")).keyid)
            self._folder.sign(drafts, read_signer(key, password=None))

    async def _claims(self) -> dict[str, str]:
        """Register the counters, and return a claim for each by its name."""
        now, found = _now(), dict[str, str]()
        connection = await asyncpg.connect(self._dsn)
        try:
            async with connection.transaction(), places(connection, now=now) as made:
                owner = (await made.organisation(WORKSHOP)).id
                site = await made.site(owner, Site(SITE, "Europe/Stockholm"))
                for number in range(1, COUNTERS + 1):
                    spot = await made.spot(owner, site, name=f"Bench {number}", kind="counter")
                    row, name = await made.device(owner, kind="counter", model=HARDWARE)
                    await made.stand(name, spot.ref, since=now)
                    found[name] = await claim_token(connection, self._settings, row, now=now)
        finally:
            await connection.close()
        return found

    def _enrol(self, claims: Mapping[str, str]) -> None:
        for name, claim in claims.items():
            enrol(claim, state=self._known / name / "state")

    def _open(self) -> None:
        for folder in sorted(self._known.iterdir()):
            if not identity.files(folder / "state").identity.exists():
                continue
            values = {
                "state": folder / "state",
                "socket": folder / "s",
                "hardware": HARDWARE,
                "spread_s": 0,
                "interval_s": 10,
                "frame_s": 10,
                "quiet_frame_s": 30,
                "health_s": 30,
                "retry_min_s": 0.5,
                "retry_max_s": 4,
                "max_mb": 4,
            }
            env = {f"VESTIBULE_AGENT_{name.upper()}": str(text) for name, text in values.items()}
            launcher = python("-I", "-m", "agent.update.launch")
            child = Child(folder.name, launcher, folder / "log", env)
            self.counters.append(Counter(folder.name, child))

    async def _look(self) -> None:
        """Ask the database what the counters run, and what can be rolled out to them."""
        connection = await asyncpg.connect(self._dsn, timeout=2, command_timeout=5)
        try:
            rows = await connection.fetch(_RUNS, [each.name for each in self.counters])
            ready = await connection.fetch(_READY)
        finally:
            await connection.close()
        known = {row["device"]: row for row in rows}
        for each in self.counters:
            row = known.get(each.name)
            if row is not None:
                self.organisation = row["organisation_id"]
                each.runs, each.online = row["agent"].removeprefix("vestibule "), row["online"]
        self.ready = {row["version"]: row["ref"] for row in ready}


_RUNS = """
    select d.device, d.organisation_id, p.agent, p.session = 'open' as online
    from devices d join presences p on p.device_id = d.id where d.device = any($1::text[])
"""
_READY = """
    select b.ref, r.version from bundles b join releases r on r.id = b.releases[1]
    where r.component = 'agent' and r.withdrawn_at is null
"""


def _now() -> datetime:
    return datetime.now(UTC)
