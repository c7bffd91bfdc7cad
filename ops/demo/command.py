"""`vestibule demo`: show the main job with everything real, live.

Brings up a private database and broker, runs the server, lets some 60 simulated devices (real
agents with scripted hardware) upload 28 days from their outboxes and go on live. The address it
prints leads to a tour. Ctrl-C stops everything; a second run goes on where the first one stopped.
DEMO_SECONDS=60 does the same with 3 days of history, kills the broker, reboots an agent, and ends
with a proof: exit code 0 only if nobody was lost.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import structlog

from agent.link import Identity
from ops.demo.build import build_world, enrol_devices
from ops.demo.decoder import decoder_words
from ops.demo.machine import Machine, running
from ops.demo.meter import Sum
from ops.demo.recording import Recording, catch_up
from ops.demo.state import PID_FILE, Folder, State
from ops.demo.supervisor import Supervisor
from ops.demo.tour import Tour
from ops.deployment import embedded, home
from ops.services.errors import ServicesError
from ops.services.process import Daemon
from ops.services.stack import Stack
from ops.words import parser_of
from protocol.identity import DeviceId
from server.config import Settings
from server.db.migrate import migrate
from simulators.faults import Fault, Trouble
from simulators.truth import TruthFile

DAYS, SHORT_DAYS = 28, 3
LEAST_PEOPLE = 5_000
DRAIN_S = 30.0
UPLOAD_S = 240.0
EXIT_LOST = 1


@dataclass(frozen=True, slots=True)
class Options:
    """How the demo runs; `seconds` None: until Ctrl-C."""

    root: Path
    days: int
    seconds: float | None
    port: int


def main(argv: list[str]) -> int:
    """Run the demo; 0 if nobody was lost, 1 if somebody was.

    Stopped by a signal: 0 without `--seconds`, which is how it ends; else 128 and the signal's
    number, since nothing was proved.
    """
    options = _options(argv)
    options.root.mkdir(parents=True, exist_ok=True)
    try:
        with _noted(options.root / PID_FILE):
            _log_to(options.root / "logs" / "demo.log")
            return asyncio.run(_run(options))
    except KeyboardInterrupt:  # before the loop runs, or once it has ended
        return 128 + signal.SIGINT


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Note that we run, so that `make clean` can stop us. Raises ServicesError if another does."""
    other, ours = Daemon.remembered(path), Daemon.of(os.getpid())
    if other is not None:
        raise ServicesError(f"a demo already runs in {path.parent}: process {other.pid}")
    assert ours is not None
    ours.remember(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _options(argv: list[str]) -> Options:
    parser = parser_of("demo", __doc__)
    given = os.environ.get("DEMO_SECONDS", "")
    parser.add_argument(
        "--seconds",
        type=float,
        default=float(given) if given else None,
        help="live for so long, then prove and end (default: DEMO_SECONDS, else until Ctrl-C)",
    )
    parser.add_argument("--days", type=int, help=f"days of history, 1 to {DAYS}")
    parser.add_argument("--root", type=Path, help="where it keeps what it makes")
    parser.add_argument("--port", type=int, default=0, help="the tour's port (default: any)")
    parsed = parser.parse_args(argv)
    short = parsed.seconds is not None
    days = parsed.days or (SHORT_DAYS if short else DAYS)
    if not 1 <= days <= DAYS:
        parser.error(f"--days: 1 to {DAYS}")
    root = parsed.root or home() / ("demo-short" if short else "demo")
    return Options(root.absolute(), days, parsed.seconds, parsed.port)


async def _run(options: Options) -> int:
    task = asyncio.current_task()
    assert task is not None
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await _shown(options)
    except asyncio.CancelledError:
        if not received:
            raise
        print("\nstopped; `vestibule demo` goes on from here, `make clean` removes it all")
        return 0 if options.seconds is None else 128 + received[0]


async def _shown(options: Options) -> int:
    stages = Stages()
    async with AsyncExitStack() as services:
        async with AsyncExitStack() as devices:
            machine = await _start(services, devices, options, stages)
            tour = await devices.enter_async_context(_touring(machine, options.port))
            print(f"     {'live after':<58}{stages.total_s:6.1f} s\n")
            print(f"  decoder: {decoder_words()}")
            print(f"  the tour: {tour.address}\n", flush=True)
            if options.seconds is None:
                await _live(machine, seconds=None)
            waiting = await _break_and_drain(machine, options.seconds or 0)
        return await _prove(machine, waiting)  # the truth is whole once the devices stopped


class Stages:
    """The numbered stages, printed as they pass; their seconds as shown add up to `total_s`.

    What lies between two belongs to the later one, and rounding is carried on to the next.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total_s = 0.0
        self._clock, self._began, self._number = clock, clock(), 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print a stage's name, then its seconds."""
        self._number += 1
        print(f"  {self._number}  {name:<58}", end="", flush=True)
        try:
            yield
        except BaseException:
            print(" failed", flush=True)
            raise
        shown_s, self.total_s = self.total_s, round(self._clock() - self._began, 1)
        print(f"{self.total_s - shown_s:6.1f} s", flush=True)


async def _start(
    stack: AsyncExitStack, devices: AsyncExitStack, options: Options, stages: Stages
) -> Machine:
    """Go through the stages; what each opens is closed by the stacks."""
    folder = Folder(options.root)
    state = folder.open(now_ms=time.time_ns() // 1_000_000, days=options.days)
    recording = None if state.recorded else Recording(folder, state)
    if recording is not None:
        stack.callback(recording.stop)
    services = Stack(options.root, role="demo")
    supervisor = Supervisor(
        services, log=options.root / "logs/server.log", pid_path=options.root / "server.pid"
    )
    stack.push_async_callback(supervisor.stop)
    with stages.stage("services up: PostgreSQL with TimescaleDB, MQTT broker"):
        found = await asyncio.to_thread(embedded, services)
    with stages.stage("migrate the database"):
        await migrate(found.owner_dsn.reveal())
    with stages.stage("server"):
        await supervisor.start_server(found.settings)
    connection = await asyncpg.connect(found.owner_dsn.reveal())
    try:
        state, identities = await _enrolled(folder, state, connection, found.settings, stages)
    finally:
        await connection.close()
    if recording is not None:
        with stages.stage(f"agents have recorded {options.days} days into their outboxes"):
            await asyncio.to_thread(recording.wait)
            state = await _caught_up(folder, folder.save(state, recorded=True))
    else:
        state = await _caught_up(folder, state)
    with stages.stage("agents upload what their outboxes hold, over mutual TLS"):
        machine = await devices.enter_async_context(
            running(folder, state, supervisor, identities, services.endpoints)
        )
        await _uploaded(machine)
    return machine


async def _enrolled(
    folder: Folder,
    state: State,
    connection: asyncpg.Connection,
    settings: Settings,
    stages: Stages,
) -> tuple[State, dict[DeviceId, Identity]]:
    if not state.built:
        with stages.stage(f"the world: 3 organisations, {len(state.devices)} devices"):
            async with connection.transaction():
                made = await build_world(connection, state)
            state = folder.save(state, **made)
    with stages.stage("enrol the devices: claim, key, certificate"):
        identities = await enrol_devices(folder, state, connection, settings)
    return state, identities


async def _caught_up(folder: Folder, state: State) -> State:
    """Record the minutes since the history's end, once; later pauses are real, and show."""
    if state.live_ms:
        return state
    live_ms = time.time_ns() // 60_000_000_000 * 60_000

    def record() -> None:
        with TruthFile(folder.root / "truth-since") as truth:
            catch_up(folder, state, truth, end_ms=live_ms)

    if live_ms > state.until_ms:
        await asyncio.to_thread(record)
    return folder.save(state, live_ms=live_ms)


async def _uploaded(machine: Machine) -> None:
    """Return when what waited has been stored, or a while has passed (it goes on meanwhile)."""
    until = time.monotonic() + UPLOAD_S
    while time.monotonic() < until:
        balance = await machine.meter.read()
        waiting = balance.on_their_way
        if balance.stored is not None and waiting.people + waiting.presses < 500:
            return
        await asyncio.sleep(0.5)


async def _live(machine: Machine, *, seconds: float | None) -> None:
    """Show the one line each second."""
    until = None if seconds is None else time.monotonic() + seconds
    tty, printed = sys.stdout.isatty(), 0.0
    while until is None or time.monotonic() < until:
        started = time.monotonic()
        balance = await machine.meter.read()
        if tty:
            print(f"\r\x1b[K{balance.line()}", end="", flush=True)
        elif started - printed >= 5:
            print(balance.line(), flush=True)
            printed = started
        await asyncio.sleep(max(0.05, 1 - (time.monotonic() - started)))
    if tty:
        print("\r\x1b[K", end="")


async def _break_and_drain(machine: Machine, seconds: float) -> int:
    """Live a little while things break, then drain; return how many are still on their way."""
    await _live(machine, seconds=seconds * 0.3)
    await asyncio.to_thread(machine.supervisor.kill, "broker")
    await _live(machine, seconds=seconds * 0.3)
    other = next(device for device in machine.devices if device is not machine.inspected)
    await other.suffer(Trouble(0, Fault.REBOOT))
    await _live(machine, seconds=seconds * 0.4)
    until = time.monotonic() + DRAIN_S
    await machine.fleet.drain(timeout_s=DRAIN_S)
    while (balance := await machine.meter.read()).on_their_way != Sum():
        if time.monotonic() > until:
            break
        await asyncio.sleep(0.2)
    return balance.on_their_way.people


async def _prove(machine: Machine, waiting: int) -> int:
    proof = await machine.prove(on_their_way=waiting)
    for difference in proof.differences:
        print(difference, file=sys.stderr)
    enough = proof.generated >= LEAST_PEOPLE
    if not enough:
        print(f"only {proof.generated} people: not a proof", file=sys.stderr)
    print(proof.line(), flush=True)
    return 0 if proof.holds and enough else EXIT_LOST


@asynccontextmanager
async def _touring(machine: Machine, port: int) -> AsyncIterator[Tour]:
    tour = Tour(machine)
    async with tour.serving(port=port):
        yield tour


def _log_to(path: Path) -> None:
    """Keep what agents and libraries log out of the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file),
    )
    logging.basicConfig(stream=file, level=logging.WARNING, force=True)
    with suppress(OSError):
        path.chmod(0o600)
