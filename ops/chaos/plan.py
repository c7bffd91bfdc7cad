"""What is done to whom and when: a seeded list of faults, made before anything runs.

Every agent is killed before any agent is killed again. No two faults hold the same component at
once; different components may well be down together. All faults have ended by the plan's end.
"""

from dataclasses import dataclass
from enum import Enum
from random import Random


class Action(Enum):
    """What a fault does."""

    KILL = "SIGKILL"
    FREEZE = "SIGSTOP"
    CUT = "cut"
    BLOCK = "block"


class Part(Enum):
    """What a fault is done to."""

    AGENT = "agent"
    BROKER = "broker"
    SERVER = "server"
    DATABASE = "database"
    LINK = "link"


@dataclass(frozen=True, slots=True)
class Fault:
    """From `at_s` after the start, `part` is down for `down_s`; `agent` says which one."""

    at_s: float
    down_s: float
    part: Part
    action: Action
    agent: int = -1

    @property
    def victim(self) -> str:
        """The part, with the agent's number."""
        return f"{self.part.value} {self.agent}" if self.part is Part.AGENT else self.part.value


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of fault: how often, how long."""

    part: Part
    action: Action
    every_s: float
    down_s: tuple[float, float]


KINDS = (
    Kind(Part.BROKER, Action.KILL, 20, (0.1, 1.0)),
    Kind(Part.SERVER, Action.KILL, 15, (0.0, 1.0)),
    Kind(Part.SERVER, Action.FREEZE, 40, (0.5, 3.0)),
    Kind(Part.DATABASE, Action.KILL, 30, (0.0, 1.0)),
    Kind(Part.LINK, Action.CUT, 40, (0.5, 3.0)),
    Kind(Part.LINK, Action.BLOCK, 40, (0.5, 3.0)),
)
"""Seldom enough that frames are on their way, and commits under way, when the next one strikes."""
AGENT_EVERY_S = 1.5
AGENT_DOWN_S = (0.0, 2.0)
QUIET_END_S = 0.5


def plan(*, seed: int, seconds: float, agents: int) -> tuple[Fault, ...]:
    """Return the faults in order of time. The same arguments give the same plan."""
    rng = Random(seed)  # noqa: S311 - to be repeated, not to be secret
    last = seconds - QUIET_END_S
    busy: dict[str, float] = {}
    faults: list[Fault] = []
    wishes = sorted(_wishes(rng, last=last, agents=agents), key=lambda fault: fault.at_s)
    for wish in wishes:
        at = max(wish.at_s, busy.get(wish.victim, 0.0))
        down = min(wish.down_s, last - at)
        if down <= 0:
            continue
        fault = Fault(round(at, 2), round(down, 2), wish.part, wish.action, wish.agent)
        busy[wish.victim] = fault.at_s + fault.down_s + 0.05
        faults.append(fault)
    return tuple(sorted(faults, key=lambda fault: (fault.at_s, fault.victim)))


def _wishes(rng: Random, *, last: float, agents: int) -> list[Fault]:
    """Draw each kind's faults at roughly its pace, at least one of each."""
    wishes: list[Fault] = []
    for kind in KINDS:
        for index in range(max(1, round(last / kind.every_s))):
            at = (index + rng.uniform(0.1, 0.9)) * last / max(1, round(last / kind.every_s))
            wishes.append(Fault(at, rng.uniform(*kind.down_s), kind.part, kind.action))
    kills = max(agents, round(last / AGENT_EVERY_S))
    order: list[int] = []
    while len(order) < kills:
        order += rng.sample(range(agents), agents)
    for index, agent in enumerate(order[:kills]):
        at = (index + rng.random()) * last * 0.97 / kills
        wishes.append(Fault(at, rng.uniform(*AGENT_DOWN_S), Part.AGENT, Action.KILL, agent))
    return wishes
