"""Devices that ask how to be, with the agent's own settings code, while a rollout changes them.

A device asks as the agent does: it says what is in force, takes the answer, tries what may cut it
off, and asks again until there is nothing new to say. The server's side is the listener's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from agent.settings import Settings
from protocol.settings import TABLE, Value
from protocol.state import Report
from server.commands.listener import answer_of
from server.db.engine import transaction
from server.firmware import acts, change, drafting
from server.firmware.planning import Asked
from server.firmware.policy import Policy
from tests.firmware_world import APPROVER, AUTHOR, World

OWN: Mapping[str, Value] = {key: each.default for key, each in TABLE.items()}
ROUNDS = 6


@dataclass
class Agent:
    """A device. `reaches`: whether the server answers where a broker's trial leads; `fits`."""

    row: int
    settings: Settings
    reaches: bool = True
    here: bool = True
    fits: bool = True
    said: list[Report] = field(default_factory=list)


@dataclass
class Steered:
    """A fleet whose settings are changed by rollouts."""

    world: World
    folder: Path
    agents: dict[int, Agent] = field(default_factory=dict)

    async def fleet(self, sites: int, *, each: int = 1) -> list[Agent]:
        """Add devices that have asked once."""
        rows = await self.world.fleet(sites, each=each)
        made = [self.agent(row) for row in rows]
        for agent in made:
            await self.ask(agent)
        return made

    def agent(self, row: int) -> Agent:
        """Return a device with a state folder of its own."""
        state = self.folder / str(row)
        state.mkdir()
        agent = self.agents[row] = Agent(row, self.settings(row))
        return agent

    def settings(self, row: int) -> Settings:
        """Return what an agent makes of its folder as it starts."""

        def fits(values: Mapping[str, Value]) -> bool:
            return row not in self.agents or self.agents[row].fits

        state = self.folder / str(row)
        return Settings(state, own=OWN, fits=fits, apply=lambda values: None)

    async def ask(self, agent: Agent, *, rounds: int = ROUNDS, answered: bool = True) -> None:
        """Ask until there is nothing new to say; `answered`: the answer arrives."""
        for _ in range(rounds):
            said = self.report(agent)
            agent.said.append(said)
            async with transaction(self.world.ingest, "exchange state") as connection:
                await connection.execute(
                    "select from devices where id = $1 for no key update", agent.row
                )
                answer = await answer_of(connection, agent.row, said, now=self.world.now)
            if not answered:
                return
            trial = agent.settings.take(answer)
            if trial is not None:
                (agent.settings.confirm if agent.reaches else agent.settings.revert)()
            if self.report(agent) == said:
                return

    def report(self, agent: Agent) -> Report:
        """Return what a device says."""
        kept, force = agent.settings.kept, agent.settings.in_force
        return Report("0.2.0", "00", kept.version, tuple(force), force, kept.refused)

    async def rollout(
        self,
        policy: Policy,
        scope: Literal["organisation", "model", "site", "device"] = "organisation",
        of: str = "",
        *,
        expression: str = "",
        started: bool = True,
        **values: Value,
    ) -> str:
        """Plan, submit and approve a change of settings; `started`: its first wave is offered."""
        wanted = change.SettingsChange(values, scope, of)
        asked = Asked("", expression, policy=policy, change=wanted)
        world = self.world
        async with world.act() as connection:
            given = connection, world.organisation
            made = await drafting.draft(*given, "Settings", asked, actor=AUTHOR, now=world.now)
            await acts.submit(*given, made.ref, actor=AUTHOR, now=world.now)
            await acts.approve(*given, made.ref, actor=APPROVER, now=world.now)
        for _ in range(3 if started else 0):
            await world.conductor.turn()
            world.clock.advance(5)
        return made.ref

    async def pass_time(self, seconds: float, *, step_s: float = 5.0) -> None:
        """Let time pass: the conductor takes its turns, whom the bell rings for asks."""
        end = self.world.clock.now_ms() + round(seconds * 1000)
        while self.world.clock.now_ms() < end:
            await self.world.conductor.turn()
            for agent in await self.rung():
                await self.ask(agent)
            self.world.clock.advance(step_s)

    async def rung(self) -> list[Agent]:
        """Return who is there and is to be told something else than it was told."""
        rows = await self.world.owner.fetch(
            "select device_id from executions where ended_at is null and state <> 'planned' "
            "order by id"
        )
        return [a for row in rows if (a := self.agents[row["device_id"]]).here]

    def have(self, key: str, agents: Iterable[Agent] | None = None) -> list[Value]:
        """Return what devices have in force."""
        chosen: Sequence[Agent] = list(self.agents.values() if agents is None else agents)
        return [agent.settings.in_force[key] for agent in chosen]
