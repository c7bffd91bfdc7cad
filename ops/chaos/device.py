"""One device: the real agent as a process, with its own state, socket and log.

`Device.feed` is a feeder for tests: it numbers events as the truth's process does, returns when
the agent has journalled them, and remembers what it was told in `told`.
"""

import json
import socket
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from agent import identity
from agent.enrol import enrol
from ops.chaos.record import Crossing, Event, Touch
from ops.services.child import Child, python

SOURCE = "hand"
ANSWER_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What an agent measures and how often it frames it: seconds, so that tests see much of it."""

    kind: str = "counter"
    lines: int = 2
    interval_s: int = 1
    frame_s: int = 2
    quiet_frame_s: int = 10
    flush_s: float = 0.2
    health_s: float = 20.0
    retry_min_s: float = 0.5
    retry_max_s: float = 8.0
    max_mb: float = 64.0


@dataclass(slots=True)
class Device:
    """An enrolled device; its agent is started by `agent.start()`."""

    device: str
    settings: AgentSettings
    folder: Path
    agent: Child
    told: list[Event] = field(default_factory=list)
    _id: int = 0

    @property
    def kind(self) -> str:
        return self.settings.kind

    @property
    def lines(self) -> int:
        return self.settings.lines

    @property
    def socket(self) -> Path:
        """Where feeders talk to the agent; short, since the kernel allows 107 bytes."""
        return self.folder / "s"

    @property
    def state(self) -> Path:
        """What the device keeps: its identity and its outbox."""
        return self.folder / "state"

    def listens(self) -> bool:
        """Return whether the agent takes events."""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
        return True

    def start(self) -> None:
        """Start the agent and return once it listens. Raises TimeoutError with its log."""
        self.agent.start()
        deadline = time.monotonic() + ANSWER_S
        while not self.listens():
            if not self.agent.running or time.monotonic() > deadline:
                raise TimeoutError(f"{self.device} does not listen:\n{self.agent.tail()}")
            time.sleep(_POLL_S)

    def dial(self, port: int) -> None:
        """Let the agent find its broker at another port of this machine, from its next start on."""
        path = identity.files(self.state).identity
        known = json.loads(path.read_text())
        identity.put(path, json.dumps(known | {"broker_port": port}).encode())

    def count(self, *people: tuple[int, int, int]) -> None:
        """Feed (line, in, out) each; return when all are journalled."""
        for line, entered, left in people:
            self._id += 1
            self.told.append(Crossing(self.device, self._id, line, entered, left, _now_ms(), 0))
        self._feed()

    def press(self, *presses: tuple[int, int, int]) -> None:
        """Feed (question, answer, visit) each; return when all are journalled."""
        for question, answer, visit in presses:
            self._id += 1
            self.told.append(Touch(self.device, self._id, question, answer, visit, _now_ms(), 0))
        self._feed()

    def _feed(self) -> None:
        """Offer what was never confirmed; TimeoutError if the agent does not journal it.

        What was confirmed once is not offered again, even if the agent's store was put back since.
        """
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(ANSWER_S)
            wire.connect(str(self.socket))
            answers = wire.makefile("rb")
            _send(wire, {"source": SOURCE})
            stored = _stored(answers.readline())
            for event in self.told:
                if event.id > stored and not event.stored_ms:
                    _send(wire, {"source": SOURCE, "id": event.id} | _said(event))
            while stored < self._id:
                stored = _stored(answers.readline())
        now = _now_ms()
        self.told = [_confirmed(event, now) for event in self.told]


def enrolled(root: Path, device: str, token: str, settings: AgentSettings) -> Device:
    """Enrol `device` by its claim and return it; its agent does not run yet."""
    folder = root / device
    folder.mkdir(parents=True)
    agent = Child(device, python("-m", "agent", "run"), folder / "log")
    made = Device(device, settings, folder, agent)
    enrol(token, state=made.state)
    values = {name: value for name, value in asdict(settings).items() if name != "kind"}
    values |= {"state": made.state, "socket": made.socket, "spread_s": 0, "log_level": "info"}
    agent.env = {f"VESTIBULE_AGENT_{name.upper()}": str(value) for name, value in values.items()}
    return made


def _said(event: Event) -> dict[str, object]:
    if isinstance(event, Crossing):
        return {"line": event.line, "in": event.entered, "out": event.left}
    return {"question": event.question, "answer": event.answer, "visit": event.visit}


def _confirmed(event: Event, now_ms: int) -> Event:
    return event if event.stored_ms else replace(event, stored_ms=now_ms)


def _send(wire: socket.socket, message: dict[str, object]) -> None:
    wire.sendall(json.dumps(message).encode() + b"\n")


def _stored(line: bytes) -> int:
    if not line:
        raise ConnectionError("the agent hung up")
    answer = json.loads(line)
    if "stored" not in answer:
        raise ValueError(f"the agent refused an event: {answer}")
    return int(answer["stored"])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
