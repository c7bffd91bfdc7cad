"""Planning against a model: whatever a link and damage do, all people are stored or accounted for.

No database: a plan is committed by moving the cursors in memory, as the pipeline does after a
commit.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from ext import COUNT_DELTA
from protocol.identity import DeviceId
from server.clock import ManualClock
from server.ingest.batch import decode, sort_out
from server.ingest.pipeline import adopt
from server.ingest.places import EVER_MS, Boot, Places, Registered, cut
from server.ingest.plan import plan
from server.ingest.rows import Plan
from tests.ingest_world import DAY, NOON, WRAP, Agent

KINDS = ("counter", "damaged", "gap", "lie", "health")


class World:
    """Two devices, what was stored of them, and the plans' other words."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.places = Places(ManualClock(NOON))
        self.stored: Counter[int] = Counter()
        self.unplaced: Counter[int] = Counter()
        self.agents: list[Agent] = []
        for row in (1, 2):
            pieces = cut([(row, NOON - DAY, EVER_MS)], [], earliest_ms=NOON - DAY)
            name = f"dc-model-{row}"
            self.places.remember(row, name, Registered(1, False, 0, pieces), stored_to_ms=-EVER_MS)
            self.agents += [
                Agent(DeviceId(name), rng.getrandbits(64), ordinal=n, booted_ms=NOON - DAY,
                      now_ms=NOON - DAY + n * DAY // 4)
                for n in (1, 2)
            ]  # fmt: skip

    def frame(self, agent: Agent, kind: str) -> bytes:
        if kind == "gap":
            return agent.gap(agent.seq + self.rng.randrange(4), minutes=3, people=5)
        if kind == "health":
            return agent.health({"a": 1.0})
        lie = self.rng.randrange(-3, 9) if kind == "lie" else 0
        frame = agent.counter([[self.rng.randrange(3) for _ in range(10)]] * 2, lie=lie)
        return frame[:-1] + bytes((frame[-1] ^ 1,)) if kind == "damaged" else frame

    def deliver(self, messages: list[tuple[Agent, bytes]]) -> Plan:
        batch = sort_out(
            [(agent.up, frame, 1) for agent, frame in messages], self.places, now_ms=NOON, now_s=0
        )
        for number, (boot, _, _) in enumerate(batch.runs, 1):
            boot.row = boot.row or 1000 * boot.device.row + number + 10 * len(boot.device.boots)
        decode(batch)
        made = plan(batch)
        for at in made.taken:
            record = batch.records[at]
            self.stored[batch.boots[at].boot_id] += sum(record[25:33])
        for gap in made.gaps:
            self.unplaced[gap.boot.boot_id] += sum(gap.counts)
        for attribution in made.attributions:
            self.unplaced[attribution.boot.boot_id] += sum(attribution.counts)
        rolled = sum(sum(delta[6:]) for delta in COUNT_DELTA.iter_unpack(made.counts))
        assert rolled == sum(sum(batch.records[at][25:33]) for at in made.taken)
        adopt(batch, made)
        return made

    def boot(self, agent: Agent) -> Boot:
        device = self.places.by_topic(agent.up)
        assert device is not None
        return device.boots[agent.boot_id]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=14), st.integers(0, 2**32))
def test_all_people_are_stored_or_accounted_for(kinds: list[str], seed: int) -> None:
    rng = random.Random(seed)
    world = World(rng)
    frames: list[tuple[Agent, bytes]] = []
    for kind in kinds:
        agent = rng.choice(world.agents)
        frames.append((agent, world.frame(agent, kind)))
    frames += [(agent, agent.counter()) for agent in world.agents]  # the last totals are read
    for _ in range(rng.randrange(4)):
        some = [frame for frame in frames if rng.random() < 0.6] + rng.choices(frames, k=3)
        rng.shuffle(some)
        world.deliver(some)
    world.deliver(frames)
    again = world.deliver(frames)
    assert again.moves == []
    assert again.taken == []
    assert again.findings == []
    for agent in world.agents:
        cursor = world.boot(agent).cursor
        assert cursor.next_seq == agent.seq
        assert list(cursor.totals) == agent.totals
        found = world.stored[agent.boot_id] + world.unplaced[agent.boot_id]
        # a lie is signed; the wire's totals are not
        assert (found - sum(agent.totals)) % WRAP == 0
        assert not cursor.open
