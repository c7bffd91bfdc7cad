"""Ten thousand agents connected over mTLS beside server, broker and database on one machine.

    BENCH_HOLD_DEVICES=2000 python -m tests.bench.hold

The agents are the real ones (recorder, outbox, session, link), several in a process and with their
outboxes in memory; each sends a frame every two minutes, a device every five. They connect and
hold; the broker is killed, all seal a frame, it starts again `AWAY_S` later with nothing; they come
back, catch up, seal what is open and drain. Then each device's people in SQL must be the people
that its agent has journalled.

They stand at thousands of sites, of one to five devices each, and `MALL` of them at one, which is
the hard case: what is in memory for a site must not grow with it (BENCH_HOLD_MALL: all at one).

Not as in a shop: certificates are signed here by the authority instead of 10,000 enrolments over
HTTPS, and devices are rows made by SQL. Agents share the cores with what is measured.
"""

import asyncio
import gc
import json
import os
import random
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import cycle, pairwise
from pathlib import Path
from typing import IO, TypedDict, TypeVar

import asyncpg
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from agent.link import Identity, LinkOptions
from ops.chaos.system import System, blocking, running
from ops.services.stack import Stack
from protocol.identity import device_id
from server.pki.authority import Authority
from simulators.device import Conditions, SimDevice
from simulators.faults import true_offset_ms
from simulators.fleet import Fleet
from simulators.hardware import DeviceSpec
from simulators.scenarios import SCENARIOS
from simulators.traffic import Sensor, random_door
from tests.ingest_world import differences, register

DEVICES = int(os.environ.get("BENCH_HOLD_DEVICES", "10000"))
PROCESSES = 2  # of agents: an interpreter steps some 10,000 a second
FRAME_S = 120
TELL_S = 2.0
QUIETER = 8  # doors have an eighth of their public: sessions are measured here, not people
HOLD_S = 90.0
AWAY_S = 20.0
PATIENCE_S = 600.0  # past this a phase is given up, and the rows say how far it came
MALL = int(os.environ.get("BENCH_HOLD_MALL", "200"))  # devices at the one big site
SHOPS = (2, 1, 3, 5, 4)  # devices at the others, over and over
HANDSHAKES = 16  # in flight, per process
PEER_HANDSHAKES = 400
SPARE_FILES = 256
SERVER_MB = 500.0
BROKER_KB = 31.0  # a session of mTLS, measured on a bare broker
RECOVER_S = 180.0
SEED = 2026
ZONE = "Europe/Stockholm"

T = TypeVar("T")


class Row(TypedDict):
    """One measured value beside its limit; for sizes and seconds a ratio below 1 is good."""

    name: str
    value: float
    unit: str
    limit: float | None
    limit_name: str
    ratio: float | None


@dataclass(slots=True)
class State:
    """Where a process's agents are; sums of them over processes are the fleet's.

    `back` have connected again since `cut` was said, `behind` have a frame from before `mark` was
    said that has no receipt yet; `late` answers and receipts came when nobody waited any more.
    `starved_s` is how long the agents' loops waited for a core that somebody else had.
    """

    at: float = 0.0
    connected: int = 0
    back: int = 0
    behind: int = 0
    waiting: int = 0
    generated: int = 0
    confirmed: int = 0
    drained: int = 0
    late: int = 0
    resent: int = 0
    rss_mb: float = 0.0
    cpu_s: float = 0.0
    starved_s: float = 0.0


# -- a process of agents ---------------------------------------------------------------------


@dataclass(slots=True)
class Crowd:
    """Some of the agents, and the words that the parent says to them."""

    folder: Path
    fleet: Fleet
    connects: dict[str, int] = field(default_factory=dict)
    marks: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def hear(self, word: str) -> None:
        """Remember how things stand at this word."""
        devices = self.fleet.devices
        if word == "cut":
            self.connects = {device.spec.device: device.connects for device in devices}
        elif word == "mark":
            self.marks = {
                device.spec.device: [(b.boot_id, b.next_seq) for b in device.outbox.boots]
                for device in devices
            }

    def state(self, *, drained: bool = False) -> State:
        """Return where everybody is now."""
        stats = self.fleet.stats()
        return State(
            time.time(),
            stats.connected,
            sum(self._is_back(device) for device in self.fleet.devices),
            sum(self._is_behind(device) for device in self.fleet.devices),
            stats.frames_waiting,
            stats.generated,
            stats.confirmed,
            int(drained),
            sum(d.link.session.tally.ignored for d in self.fleet.devices if d.link),
            sum(d.link.session.tally.resent for d in self.fleet.devices if d.link),
            memory_mb(os.getpid()),
            time.process_time(),
            int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9,
        )

    def _is_back(self, device: SimDevice) -> bool:
        return device.connected and device.connects > self.connects.get(device.spec.device, 0)

    def _is_behind(self, device: SimDevice) -> bool:
        acked = {boot.boot_id: boot.acked for boot in device.outbox.boots}
        marks = self.marks.get(device.spec.device, [])
        return any(acked.get(boot_id, 0) < mark for boot_id, mark in marks)


async def agents(folder: Path, first: int, last: int) -> None:
    """Run agents `first` to `last`, tell their state; ends at `drain` or EOF."""
    place = json.loads((folder / "place.json").read_text())
    zero = true_offset_ms()
    shift = SCENARIOS["saturday"].shift_ms(time.time_ns() // 1_000_000, ZONE)
    conditions = Conditions(
        shift_ms=shift,
        options=LinkOptions(spread_s=10.0),
        frame_s=FRAME_S,
        quiet_frame_s=FRAME_S,
    )
    devices = [
        SimDevice(
            spec_of(number),
            identity_of(folder, number, port=place["port"]),
            outbox_path=None,
            true_offset_ms=zero,
            conditions=conditions,
        )
        for number in range(first, last)
    ]
    gc.collect()
    gc.freeze()  # a full collection of all agents would stop them for a second
    crowd = Crowd(folder, Fleet(devices, handshakes=HANDSHAKES))
    words = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(words), sys.stdin
    )
    async with crowd.fleet.running():
        if await _attend(crowd, words, first):
            draining = asyncio.ensure_future(crowd.fleet.drain(timeout_s=PATIENCE_S))
            while not (await asyncio.wait({draining}, timeout=TELL_S))[0]:
                _tell(folder, first, crowd.state())
            drained = draining.result()
            sums = {d.spec.device: [d.generated, d.confirmed] for d in devices}
            (folder / f"truth-{first}.json").write_text(json.dumps(sums))
            _tell(folder, first, crowd.state(drained=drained))


async def _attend(crowd: Crowd, words: asyncio.StreamReader, first: int) -> bool:
    """Tell the state now and then and hear words; True if the last one was `drain`."""
    listening = asyncio.ensure_future(words.readline())
    try:
        while True:
            _tell(crowd.folder, first, crowd.state())
            done, _ = await asyncio.wait({listening}, timeout=TELL_S)
            if not done:
                continue
            word = listening.result().decode().strip()
            if word in ("drain", ""):
                return word == "drain"
            crowd.hear(word)
            listening = asyncio.ensure_future(words.readline())
    finally:
        listening.cancel()


def _tell(folder: Path, first: int, state: State) -> None:
    path = folder / f"state-{first}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([getattr(state, name) for name in State.__slots__]))
    partial.replace(path)


def spec_of(number: int) -> DeviceSpec:
    """Return a two-line counter at a quiet door."""
    name = f"hold-{number:06d}"
    door = random_door(random.Random(f"{SEED}/{name}"), name, zone=ZONE)
    door = replace(door, median_day=door.median_day / QUIETER)
    return DeviceSpec(name, door, SEED, sensor=Sensor(lines=(0.5, 0.5)))


def sites_of(devices: int) -> list[int]:
    """Return how many of the devices stand at each site: at the mall, then at shops."""
    found = [min(MALL, devices)]
    sizes = cycle(SHOPS)
    while (left := devices - sum(found)) > 0:
        found.append(min(left, next(sizes)))
    return found


def identity_of(folder: Path, number: int, *, port: int) -> Identity:
    """Return who this agent is; `certify` has made its files."""
    name = f"hold-{number:06d}"
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    return Identity(device_id(name), "127.0.0.1", port, chain, key, folder / "bundle.pem")


# -- the measurement -------------------------------------------------------------------------


def run() -> list[Row]:
    """Measure; AssertionError if a person is lost, doubled or moved to another device."""
    devices = allowed(DEVICES)
    with tempfile.TemporaryDirectory(prefix="vestibule-hold-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        stack = Stack(folder / "stack", role="bench")
        try:
            with running(stack, root=folder / "run") as system:
                sites = len(sites_of(devices))
                say(f"certifying and registering {devices:,} devices at {sites:,} sites")
                certify(folder, system, devices)
                return measure(system, folder, devices)
        finally:
            stack.remove()


def measure(system: System, folder: Path, devices: int) -> list[Row]:
    """Connect, hold, kill, recover, drain, compare."""
    broker = system.stack.broker
    peer = bare_handshakes(folder, broker.device_port)
    empty_kb, broker_cpu = memory_mb(pid_of(system)) * 1024, cpu_s(pid_of(system))
    with crowds(folder, devices) as told:
        began = time.monotonic()
        connected = told.until(lambda s: s.connected == devices, "connecting")
        connect_s = time.monotonic() - began
        session_kb = (memory_mb(pid_of(system)) * 1024 - empty_kb) / max(1, connected.connected)
        handshake_ms = (cpu_s(pid_of(system)) - broker_cpu) * 1000 / max(1, connected.connected)
        server_cpu = cpu_s(system.server.pid)
        told.watch(HOLD_S, "holding")
        server_cpu = (cpu_s(system.server.pid) - server_cpu) / HOLD_S
        time.sleep((-time.time() - AWAY_S / 4) % FRAME_S)  # everybody's frame ends while it is away
        held = told.state()
        told.say("cut")
        broker.kill()
        killed = time.monotonic()
        told.watch(AWAY_S, "the broker is dead")
        told.say("mark")
        broker.start()
        broker.wait_ready()
        back = told.until(lambda s: s.back == devices and not s.behind, "coming back")
        recover_s = time.monotonic() - killed
        server_mb = memory_mb(system.server.pid, peak=True)
        told.say("drain")
        end = told.until(lambda s: s.drained == PROCESSES, "draining")
    say(
        f"connected {connected.connected:,} of {devices:,} in {connect_s:.0f} s, held"
        f" {held.connected:,}; back {back.back:,} in {recover_s:.0f} s, {back.behind:,} behind;"
        f" the broker's CPU {handshake_ms:.1f} ms a connection, the server's {server_cpu:.0%} of a"
        f" core while holding; agents {end.rss_mb * 1024 / devices:.0f} kB each,"
        f" {end.cpu_s:.0f} s of CPU, {end.starved_s:.0f} s of waiting for a core"
    )
    people = prove(system, folder, drained=end.drained == PROCESSES)
    say(f"{people:,} people journalled, as many stored, device by device, and in the rollups")
    rate = connected.connected / connect_s
    return [
        row("hold.connected.ours", held.connected, "agents", 10_000, "promised"),
        row("hold.server_rss.ours", server_mb, "MB", SERVER_MB, "promised"),
        row("hold.broker_kb_per_session", session_kb, "kB", BROKER_KB, "a bare broker's, once"),
        row("hold.handshakes.ours", rate, "connects/s", peer, "bare TLS handshakes, no MQTT"),
        row("hold.handshakes.bare", peer, "handshakes/s", None, ""),
        row("hold.recover_s.ours", recover_s, "s", RECOVER_S, "promised"),
        row("hold.people_lost.ours", 0, "people", None, f"of {people:,}, proved by SQL"),
    ]


def prove(system: System, folder: Path, *, drained: bool) -> int:
    """Return how many people were journalled; each device's must be stored, and in the rollups."""
    assert drained, "not all frames had their receipt in time"
    truth: dict[str, list[int]] = {}
    for path in folder.glob("truth-*.json"):
        truth |= json.loads(path.read_text())
    stored = blocking(_owned(system, _stored))
    wrong = {
        device: (sums, stored.get(device, 0))
        for device, sums in truth.items()
        if not sums[0] == sums[1] == stored.get(device, 0)
    }
    assert not wrong, f"{len(wrong)} devices differ (generated, journalled, stored): {wrong}"
    odd = blocking(_owned(system, differences))
    assert not odd, f"rollups differ from readings: {odd[:5]}"
    return sum(confirmed for _, confirmed in truth.values())


async def _stored(connection: asyncpg.Connection) -> dict[str, int]:
    rows = await connection.fetch(
        "select d.device, sum(c.n) as people from readings r join boots b on b.id = r.boot "
        "join devices d on d.id = b.device_id, "
        "lateral (select sum(v) as n from unnest(r.counts) v) c group by 1"
    )
    return {row["device"]: int(row["people"]) for row in rows}


# -- devices, crowds -------------------------------------------------------------------------


def certify(folder: Path, system: System, devices: int) -> None:
    """Give each device a key, a certificate and rows, as enrolment would."""
    pki = system.deployment.settings.pki
    authority, now = Authority.load(pki), datetime.now(UTC)
    (folder / "bundle.pem").write_bytes((pki / "bundle.pem").read_bytes())
    (folder / "place.json").write_text(json.dumps({"port": system.stack.broker.device_port}))
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for number in range(devices):
        key = ec.generate_private_key(ec.SECP256R1())
        csr = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        files = identity_of(folder, number, port=0)
        files.chain.write_bytes(authority.issue_device(csr, device=files.device, now=now).chain_pem)
        files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    since_ms = round(now.timestamp() * 1000) - 86_400_000

    async def rows(connection: asyncpg.Connection) -> None:
        for name in ("fsync", "full_page_writes", "synchronous_commit"):
            assert await connection.fetchval(f"show {name}") == "on", f"{name} is off"
        made = await register(
            connection, devices, prefix="hold", since_ms=since_ms, sites=sites_of(devices)
        )
        assert made.devices[0] == "hold-000000"

    blocking(_owned(system, rows))


@dataclass(slots=True)
class Told:
    """The processes of agents: what they tell, and words to them."""

    folder: Path
    processes: list[subprocess.Popen[bytes]]
    devices: int

    def state(self) -> State:
        """Return the sums of what they told last."""
        total = State(time.time())
        for path in self.folder.glob("state-*.json"):
            told = dict(zip(State.__slots__, json.loads(path.read_text()), strict=True))
            for name in State.__slots__[1:]:
                setattr(total, name, getattr(total, name) + told[name])
        return total

    def say(self, word: str) -> None:
        """Say a word to all, and wait until they have heard it."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(word.encode() + b"\n")
            process.stdin.flush()
        if word != "drain":
            heard = time.time()
            for path in self.folder.glob("state-*.json"):
                while json.loads(path.read_text())[0] < heard:
                    time.sleep(0.05)

    def until(self, condition: Callable[[State], bool], what: str) -> State:
        """Return the state once it meets the condition, or when patience is over."""
        give_up = time.monotonic() + PATIENCE_S
        shown = 0.0
        while not condition(state := self.state()) and time.monotonic() < give_up:
            assert all(p.poll() is None for p in self.processes) or condition(self.state()), (
                "a process of agents has ended"
            )
            if time.monotonic() > shown + 10:
                shown = time.monotonic()
                self._show(what, state)
            time.sleep(0.25)
        self._show(what, state)
        return state

    def watch(self, seconds: float, what: str) -> None:
        """Let time pass."""
        time.sleep(seconds)
        self._show(what, self.state())

    def _show(self, what: str, state: State) -> None:
        say(
            f"{what}: {state.connected:,} connected, {state.back:,} back, {state.behind:,} behind,"
            f" {state.waiting:,} frames waiting, {state.confirmed:,} people,"
            f" {state.late:,} late, {state.resent:,} resent"
        )


@contextmanager
def crowds(folder: Path, devices: int) -> Iterator[Told]:
    """Run all agents in `PROCESSES` processes; they end when the block does."""
    bounds = [devices * part // PROCESSES for part in range(PROCESSES + 1)]
    processes: list[subprocess.Popen[bytes]] = []
    log: IO[bytes]
    with (folder / "agents.log").open("ab") as log:
        try:
            for first, last in pairwise(bounds):
                command = [sys.executable, "-m", "tests.bench.hold", "agents"]
                processes.append(
                    subprocess.Popen(
                        [*command, str(folder), str(first), str(last)],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                    )
                )
            give_up = time.monotonic() + PATIENCE_S
            while len(list(folder.glob("state-*.json"))) < PROCESSES:
                assert all(process.poll() is None for process in processes), (
                    folder / "agents.log"
                ).read_text()[-2000:]
                assert time.monotonic() < give_up, "the agents do not come up"
                time.sleep(0.05)
            yield Told(folder, processes, devices)
        finally:
            for process in processes:
                if process.stdin is not None:
                    process.stdin.close()
            for process in processes:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _owned(system: System, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    connection = await asyncpg.connect(system.dsn)
    try:
        return await work(connection)
    finally:
        await connection.close()


# -- limits and peers ------------------------------------------------------------------------


def allowed(devices: int) -> int:
    """Return how many devices this machine's limit of open files allows; say so if fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = min(hard - SPARE_FILES, PROCESSES * (hard - SPARE_FILES))  # the broker's, the agents'
    if hard != resource.RLIM_INFINITY and devices > most:
        say(f"{devices:,} wanted, but a process may have {hard:,} open files: {most:,} measured")
        return most
    return devices


def bare_handshakes(folder: Path, port: int) -> float:
    """Return TLS handshakes a second with the broker, by two threads that do nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    first = identity_of(folder, 0, port=port)
    context.load_verify_locations(first.bundle)
    context.load_cert_chain(first.chain, first.key)

    def some(count: int) -> None:
        for _ in range(count):
            with (
                socket.create_connection(("127.0.0.1", port), 10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1"),
            ):
                pass

    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(some, [PEER_HANDSHAKES // 2] * 2))
    return PEER_HANDSHAKES / (time.monotonic() - began)


def pid_of(system: System) -> int:
    """Return the broker's process id."""
    pid = system.stack.broker.pid
    assert pid is not None, "the broker does not run here"
    return pid


def memory_mb(pid: int, *, peak: bool = False) -> float:
    """Return a process's resident memory, now or at most so far."""
    name = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} has no memory")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def row(name: str, value: float, unit: str, limit: float | None, limit_name: str) -> Row:
    ratio = None if limit is None else round(value / limit, 3)
    return Row(
        name=name,
        value=round(value, 1),
        unit=unit,
        limit=None if limit is None else round(limit, 1),
        limit_name=limit_name,
        ratio=ratio,
    )


def say(text: str) -> None:
    sys.stderr.write(f"hold: {text}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str]) -> int:
    """Measure and print; `agents FOLDER FIRST LAST` is a process of agents."""
    if arguments and arguments[0] == "agents":
        allowed(0)
        folder, first, last = Path(arguments[1]), int(arguments[2]), int(arguments[3])
        uvloop.run(agents(folder, first, last))
        return 0
    for each in run():
        sys.stdout.write(f"{each}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
