"""The torture itself: agents, truth and faults under way, then convergence and the verdict."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from ops.chaos.device import Device
from ops.chaos.plan import Action, Fault, Part
from ops.chaos.record import Truth, TruthError, read
from ops.chaos.served import Api
from ops.chaos.system import System
from ops.chaos.verify import Verdict, verify
from ops.services.child import Child, python
from simulators.faults import FaultProxy

START_S = 90.0  # until all agents listen; 20 interpreters on two cores
DRAIN_S = 120.0  # until each event that was offered is confirmed
CONVERGE_S = 240.0  # an agent that met a dead broker several times waits up to 60 s
_TICK_S = 1.0
_POLL_S = 0.1
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_STORED = """
select coalesce((select sum(coalesce(in0, 0) + coalesce(out0, 0) + coalesce(in1, 0)
    + coalesce(out1, 0)) from rollup_15m), 0) + (select count(*) from presses)
"""

Say = Callable[[str], None]


class ChaosError(RuntimeError):
    """The run itself failed, so that nothing is proved."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done, how long it took to be whole again, and the verdict."""

    done: Counter[str]
    converged_s: float | None
    crashes: tuple[str, ...]
    verdict: Verdict

    @property
    def proved(self) -> bool:
        return self.verdict.proved and self.converged_s is not None and not self.crashes


@dataclass(slots=True)
class Torture:
    """One run on one system; `proxy` is the cable before the broker."""

    system: System
    proxy: FaultProxy
    say: Say
    seed: int
    rate: float = 4.0
    done: Counter[str] = field(default_factory=Counter)
    down: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    truth: Child = field(init=False)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _began: float = 0.0
    _stored: int = 0

    def __post_init__(self) -> None:
        """Prepare the truth's process."""
        root = self.system.root
        agents = [
            {"device": d.device, "socket": str(d.socket), "kind": d.kind, "lines": d.lines}
            for d in self.system.devices
        ]
        (root / "agents.json").write_text(json.dumps(agents))
        self.truth = Child(
            "truth",
            python("-m", "ops.chaos.truth", "--agents", str(root / "agents.json"),
                   "--out", str(self.truth_path), "--seed", str(self.seed),
                   "--rate", str(self.rate)),
            root / "truth.log",
        )  # fmt: skip

    @property
    def truth_path(self) -> Path:
        return self.system.root / "truth"

    async def run(self, faults: tuple[Fault, ...], *, api: Api | None) -> Outcome:
        """Do all of it. Raises ChaosError if the run could not be carried out."""
        await self._start_agents()
        self.truth.start()
        self._began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(self._tell())
                deeds = [group.create_task(self._suffer(fault)) for fault in faults]
                await asyncio.gather(*deeds)
                over = time.monotonic()
                truth = await self._drain()
                converged_s, verdict = await self._converge(truth, since=over, api=api)
                telling.cancel()
        finally:
            await asyncio.to_thread(self.truth.end)
        return Outcome(self.done, converged_s, tuple(self.crashes), verdict)

    async def _start_agents(self) -> None:
        for device in self.system.devices:
            device.agent.start()
        deadline = time.monotonic() + START_S
        for device in self.system.devices:
            while not device.listens():
                if time.monotonic() > deadline or not device.agent.running:
                    raise ChaosError(f"{device.device} does not listen:\n{device.agent.tail()}")
                await asyncio.sleep(_POLL_S)
        self.say(f"{len(self.system.devices)} agents listen")

    # -- faults ------------------------------------------------------------------------------

    async def _suffer(self, fault: Fault) -> None:
        """Carry out one fault at its time; faults of one victim wait for each other."""
        await asyncio.sleep(max(0.0, self._began + fault.at_s - time.monotonic()))
        async with self._locks.setdefault(fault.victim, asyncio.Lock()):
            self.down[fault.victim] += 1
            await self._strike(fault)
            await asyncio.sleep(fault.down_s)
            await self._mend(fault)
            self.down[fault.victim] -= 1
            self.done[f"{fault.part.value} {fault.action.value}"] += 1

    async def _strike(self, fault: Fault) -> None:
        match fault.part, fault.action:
            case Part.AGENT, _:
                await asyncio.to_thread(self._agent(fault).agent.kill)
            case Part.SERVER, Action.FREEZE:
                self.system.server.freeze()
            case Part.SERVER, _:
                await asyncio.to_thread(self.system.server.kill)
            case Part.BROKER, _:
                await asyncio.to_thread(self.system.stack.broker.kill)
            case Part.DATABASE, _:
                await asyncio.to_thread(self.system.stack.postgres.kill)
            case Part.LINK, Action.BLOCK:
                self.proxy.silence_all()
            case Part.LINK, _:
                self.proxy.refusing = True
                self.proxy.reset_all()

    async def _mend(self, fault: Fault) -> None:
        match fault.part, fault.action:
            case Part.AGENT, _:
                self._agent(fault).agent.start()
            case Part.SERVER, Action.FREEZE:
                self.system.server.thaw()
            case Part.SERVER, _:
                self.system.server.start()
            case Part.BROKER, _:
                await asyncio.to_thread(self.system.stack.broker.start)
                await asyncio.to_thread(self.system.stack.broker.wait_ready)
            case Part.DATABASE, _:
                await asyncio.to_thread(self.system.stack.postgres.start)
                await asyncio.to_thread(self.system.stack.postgres.wait_ready)
            case Part.LINK, Action.BLOCK:
                self.proxy.reset_all()
            case Part.LINK, _:
                self.proxy.refusing = False

    def _agent(self, fault: Fault) -> Device:
        return self.system.devices[fault.agent]

    def _watch(self) -> None:
        """Whoever ended without our doing has crashed: started again, and told at the end."""
        parts = {f"agent {i}": d.agent for i, d in enumerate(self.system.devices)}
        for name, child in {**parts, "server": self.system.server}.items():
            lock = self._locks.get(name)
            if not child.running and not (lock and lock.locked()):
                self.crashes.append(f"{name} ended by itself ({child.exit_code}):\n{child.tail()}")
                child.start()

    # -- progress ----------------------------------------------------------------------------

    async def _tell(self) -> None:
        while True:
            self._watch()
            await self._look()
            down = ", ".join(sorted(name for name, n in self.down.items() if n))
            self.say(
                f"{time.monotonic() - self._began:4.0f} s  true {self.confirmed():6d}  "
                f"stored {self._stored:6d}  faults {self.done.total():3d}  down: {down or '-'}"
            )
            await asyncio.sleep(_TICK_S)

    async def _look(self) -> None:
        """Ask the database how many people and presses it has, if it answers."""
        try:
            async with asyncio.timeout(1):
                connection = await asyncpg.connect(self.system.dsn)
                try:
                    self._stored = int(await connection.fetchval(_STORED))
                finally:
                    connection.terminate()
        except AWAY:
            return

    def confirmed(self) -> int:
        """People and presses that the truth's file holds, as its lines say so far."""
        try:
            truth = read(self.truth_path)
        except FileNotFoundError:
            return 0
        return truth.people + len(truth.touches)

    # -- the end -----------------------------------------------------------------------------

    async def _drain(self) -> Truth:
        """Let nobody new come, and wait until all who came are in a journal."""
        code = await asyncio.to_thread(self.truth.end, DRAIN_S)
        said = self.truth.log.read_text()
        if code not in (0, 1):
            raise ChaosError(f"the truth did not end ({code}):\n{self.truth.tail()}")
        if '"refused": "' in said:
            self.crashes.append(f"an agent refused an event:\n{self.truth.tail()}")
        if code == 1:
            self.crashes.append("an agent forgot what it had confirmed, see truth.log")
        try:
            return read(self.truth_path)
        except TruthError as error:
            raise ChaosError(f"the truth's file cannot be believed: {error}") from error

    async def _converge(
        self, truth: Truth, *, since: float, api: Api | None
    ) -> tuple[float | None, Verdict]:
        """Verify again and again until it is proved, or the time is over."""
        verdict: Verdict | None = None
        while True:
            try:
                verdict = await verify(truth, self.system.dsn, api=api)
            except AWAY as error:
                self.say(f"not yet: {type(error).__name__}: {error}")
            if verdict is not None and verdict.proved:
                return time.monotonic() - since, verdict
            if time.monotonic() - since > CONVERGE_S:
                if verdict is None:
                    raise ChaosError("the database or the API never answered again")
                return None, verdict
            await asyncio.sleep(_TICK_S)
