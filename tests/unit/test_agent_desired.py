"""A device that is set and told from afar, killed between any two steps: never cut off."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import identity
from agent.content import Terms
from agent.desired import Desired
from agent.enrol import Answered, EnrolError
from agent.link import LinkError
from agent.orders import MOST, FailedError, Orders
from agent.settings import Kept, Settings, Trial, read, taken, written
from protocol.settings import TABLE, Value
from protocol.state import DONE, FAILED, Answer, Order, Outcome, read_report, write_answer
from tests.unit.renewal_world import Stopwatch

OWN: dict[str, Value] = {key: setting.default for key, setting in TABLE.items()}
GOOD, BAD = "good.example:8883", "bad.example:8883"
IDENTIFY, RESTART, TEST = (
    Order("cmd-identify1", "identify", 600),
    Order("cmd-restart01", "reboot", 600),
    Order("cmd-selftest1", "self-test", 600),
)


class Killed(BaseException):
    """The power fails here."""


class Restarted(BaseException):
    """The agent ends because it was told to."""


@dataclass
class Server:
    """What the tables hold of one device, in a few lines."""

    settings: dict[str, tuple[Value, int]] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    confirm_s: int = 300

    def ask(self, *orders: Order) -> None:
        for order in orders:
            self.orders[order.command] = order
            self.states[order.command] = "queued"

    def answer(self, body: str) -> str:
        self.report = json.loads(body)
        heard, withdrawn = [], []
        for said in read_report(body.encode()).commands:
            state = self.states.get(said.command, "unknown")
            if said.state in (DONE, FAILED):
                heard.append(said.command)
                if state not in (DONE, FAILED):
                    self.states[said.command], self.codes[said.command] = said.state, said.code
            elif state in ("queued", "sent", "running"):
                self.states[said.command] = "running"
            else:
                withdrawn.append(said.command)
        offered = [o for name, o in self.orders.items() if self.states[name] in ("queued", "sent")]
        for order in offered:
            self.states[order.command] = "sent"
        made = Answer(
            7, self.settings, self.confirm_s, tuple(offered), tuple(heard), tuple(withdrawn)
        )
        return write_answer(made)


class StubLink:
    """Reaches the broker that the device was enrolled with, and the good one."""

    def __init__(self, world: World) -> None:
        self.address: tuple[str, int] | None = None
        self.session = self
        self.answered = True
        self._world = world

    async def try_address(self, address: tuple[str, int] | None) -> None:
        self._world.step("before the trial")
        if address == ("bad.example", 8883):
            raise TimeoutError  # as when all its time has gone by
        self.address = address
        self._world.step("during the trial")

    def go_to(self, address: tuple[str, int] | None) -> None:
        self.address = address


@dataclass
class World:
    """A device's storage, its server, and whoever pulls the plug."""

    state: Path
    server: Server = field(default_factory=Server)
    kill_at: int = 0
    steps: int = 0
    starts: int = 0
    done: list[str] = field(default_factory=list)
    offline: bool = False
    where: str = ""
    kernel: str = "one"

    def step(self, where: str) -> None:
        self.steps += 1
        if self.steps == self.kill_at:
            self.where = where
            raise Killed(where)

    def start(self) -> Desired:
        self.starts += 1
        link = StubLink(self)

        def apply(values: Mapping[str, Value]) -> None:
            self.step("before it is in force")
            if "broker" in values:
                host, _, port = str(values["broker"]).rpartition(":")
                link.address = (host, int(port)) if host else None

        async def act(order: Order) -> Mapping[str, Value]:
            self.step(f"before {order.kind}")
            self.done.append(order.command)
            if order.kind == "reboot":
                raise Restarted
            self.step(f"after {order.kind}")
            return {"shown": "log"}

        terms = Terms(
            self.state,
            server=("127.0.0.1", 1),
            clock=Stopwatch(),
            rng=random.Random(1),
            last_utc_ms=lambda: 0,
        )
        desired = Desired(
            terms,
            link=link,  # type: ignore[arg-type]
            settings=Settings(self.state, own=OWN, fits=lambda _: True, apply=apply),
            orders=Orders(self.state, kernel=self.kernel),
            act=act,
            agent="0.2",
            boot=lambda: "0" * 16,
        )

        async def asked(method: str, path: str, *, body: Any = None, etag: str = "") -> Answered:
            del method, etag
            self.step("before the server hears")
            if self.offline:
                raise EnrolError("nobody there")
            assert path == "/v1/state"
            text = self.server.answer(body)
            self.step("before the answer comes")
            return Answered(200, "OK", "", text)

        desired._asked = asked  # type: ignore[method-assign]
        assert link.address in (None, ("good.example", 8883))
        return desired

    async def until_settled(self) -> Desired:
        """Start whenever it ended, and turn until there is nothing to say."""
        for _ in range(8):
            try:
                desired = self.start()
                await desired.step()
                if not desired.trouble:
                    return desired
            except (Killed, Restarted):
                continue
        raise AssertionError("it never settled")


@pytest.fixture(autouse=True)
def plug(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], None]:
    """Let the power fail before and after each file is written; without waiting for a disk."""
    pulled: list[World] = []

    def cut(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        del mode
        for world in pulled[-1:]:
            world.step(f"before {path.name} is written")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        for world in pulled[-1:]:
            world.step(f"after {path.name} is written")

    monkeypatch.setattr(identity, "put", cut)
    return pulled.append


@pytest.mark.parametrize("broker", ["", GOOD, BAD])
async def test_whenever_the_power_fails_the_device_comes_back_and_does_each_thing_once(
    tmp_path: Path, plug: Callable[[World], None], broker: str
) -> None:
    kills, good, where = 0, 0, set()
    while True:
        kills += 1
        world = World(tmp_path / str(kills), kill_at=kills)
        world.server.settings = {"health_s": (600, 1), "frame_s": (900, 2)}
        if broker:
            world.server.settings["broker"] = (broker, 3)
        world.server.ask(IDENTIFY, RESTART, TEST)
        plug(world)
        desired = await world.until_settled()
        where.add(world.where)
        values = desired.settings.in_force
        assert (values["health_s"], values["frame_s"]) == (600, 900)
        refused = world.server.report["refused"].get("broker")
        if broker == GOOD and refused is None:
            assert values["broker"] == GOOD
            good += 1
        else:
            assert values["broker"] == ""
            assert refused == ([3, "reverted"] if broker else None)
            assert world.where or broker != GOOD  # only a power cut undoes what is good
        assert world.server.report["values"] == values
        assert world.server.report["version"] == 7
        for order in (IDENTIFY, RESTART, TEST):
            name = order.command
            assert world.done.count(name) <= 1, (world.where, name)
            if world.server.states[name] == DONE:
                assert name in world.done or order is RESTART
            else:
                assert (world.server.states[name], world.server.codes[name]) == (
                    FAILED,
                    "interrupted",
                )
                assert world.where  # only a power cut interrupts
        if not world.where:
            assert world.server.states == dict.fromkeys(world.server.states, DONE)
            break
    assert kills > 20
    assert len(where) >= 9
    assert good > kills / 2 or broker != GOOD


async def test_a_restart_that_was_wanted_comes_once_whatever_is_sent_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.server.ask(RESTART)
    desired = await world.until_settled()
    assert world.done == [RESTART.command]
    world.server.states[RESTART.command] = "sent"  # a server that was restored from a backup
    await desired.step()
    assert world.done == [RESTART.command]
    assert world.server.states[RESTART.command] == DONE


async def test_what_was_taken_back_before_it_began_is_not_done(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.server.ask(IDENTIFY, TEST)
    desired = world.start()
    begin = desired.orders.begin

    def begun(order: Order) -> None:
        if order.command != TEST.command:
            world.server.states[order.command] = "cancelled"
        begin(order)

    desired.orders.begin = begun  # type: ignore[method-assign]
    await desired.step()
    assert world.done == [TEST.command]
    assert world.server.states == {IDENTIFY.command: "cancelled", TEST.command: DONE}
    assert not desired.orders.unheard()


async def test_what_was_done_while_the_server_was_away_is_told_when_it_is_back(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.server.ask(TEST)
    desired = world.start()
    act = desired._act

    async def leaving(order: Order) -> Mapping[str, Value]:
        world.offline = True
        return await act(order)

    desired._act = leaving
    await desired.step()
    assert desired.trouble
    assert world.server.states[TEST.command] == "running"
    world.offline = False
    await world.start().step()  # another start, which begins nothing anew
    assert world.done == [TEST.command]
    assert world.server.states[TEST.command] == DONE


async def test_a_value_that_cut_the_device_off_is_tried_again_only_when_it_is_written_anew(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.server.settings = {"broker": (BAD, 3)}
    desired = world.start()
    await desired.step()
    await desired.step()
    assert desired.settings.reverted == 1
    world.server.settings = {"broker": (BAD, 4), "health_s": (60, 5)}
    await desired.step()
    assert desired.settings.reverted == 2
    world.server.settings = {"broker": (GOOD, 6)}
    await desired.step()
    assert desired.settings.in_force["broker"] == GOOD
    world.server.settings = {}  # back to the one that it was enrolled with: tried, too
    await desired.step()
    assert desired.settings.in_force == OWN
    assert desired.settings.reverted == 2


async def test_a_trial_goes_on_trying_while_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    world.server.settings = {"broker": (GOOD, 3)}
    desired = world.start()
    go = desired._link.try_address
    tries = []

    async def stubborn(address: tuple[str, int] | None) -> None:
        tries.append(address)
        if len(tries) < 4:
            raise LinkError("not yet")
        await go(address)

    monkeypatch.setattr(desired._link, "try_address", stubborn)
    await desired.step()
    assert len(tries) == 4
    assert desired.settings.in_force["broker"] == GOOD


async def test_a_broker_behind_which_no_server_answers_is_left_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.desired.LOOK_S", 0.01)
    world = World(tmp_path)
    world.server.settings, world.server.confirm_s = {"broker": (GOOD, 3)}, 1
    desired = world.start()
    monkeypatch.setattr(desired._link.session, "answered", False)
    await desired.step()
    assert desired.settings.in_force["broker"] == ""
    assert desired._link.address is None
    assert world.server.report["refused"] == {"broker": [3, "reverted"]}


async def test_who_rings_during_a_turn_is_heard(tmp_path: Path) -> None:
    world = World(tmp_path)
    desired = world.start()
    desired.spread(0.0)
    exchange = desired._exchange

    async def rung(report: Any) -> Answer:
        answer = await exchange(report)
        desired.ring()
        return answer

    monkey: Any = desired
    monkey._exchange = rung
    await desired.step()
    assert desired._due_ms <= desired._clock.monotonic_ms()


async def test_a_command_whose_time_went_by_in_the_queue_is_not_begun(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.server.ask(TEST, replace(IDENTIFY, ttl_s=1))
    desired = world.start()
    act = desired._act

    async def slow(order: Order) -> Mapping[str, Value]:
        await desired._clock.sleep(5)
        return await act(order)

    desired._act = slow
    desired.settings.kept = replace(desired.settings.kept, version=7)
    world.server.orders[TEST.command] = replace(TEST, ttl_s=600)
    await asyncio.wait_for(desired._fetch(), 5)
    assert world.done[0] == TEST.command


# -- pure ----------------------------------------------------------------------------------------


KEYS = sorted(TABLE)
PAIRS = st.fixed_dictionaries(
    {},
    optional={
        "health_s": st.tuples(st.sampled_from([60, 900, 5_000]), st.integers(1, 3)),
        "frame_s": st.tuples(st.sampled_from([60, 300]), st.integers(1, 3)),
        "broker": st.tuples(st.sampled_from(["", GOOD, BAD, "nonsense"]), st.integers(1, 3)),
    },
)


@given(st.lists(PAIRS, max_size=5), st.booleans())
def test_what_is_kept_never_holds_what_is_refused_and_survives_the_disk(
    answers: list[dict[str, tuple[Value, int]]], fits: bool
) -> None:
    kept = Kept()
    for number, told in enumerate(answers, 1):
        kept = taken(kept, Answer(number, told, 300), own=OWN, fits=lambda v: fits or
                     v["frame_s"] == 300)  # fmt: skip
        assert kept.version == number
        for key, (value, count) in told.items():
            if key == "broker":
                assert (
                    kept.set.get(key, ("", 0))[0] == value
                    or kept.refused.get(key, (None, ""))[0] == count
                    or kept.trial == Trial(key, value, count)
                )
            else:
                ours = kept.set.get(key, (None, 0)) == (value, count)
                assert ours != (kept.refused.get(key, (None, ""))[0] == count)
        if fits is False:
            assert kept.set.get("frame_s", (300, 0))[0] == 300
        assert kept.set.get("health_s", (60, 0))[0] != 5_000
        if kept.trial is not None and kept.trial.value == BAD:
            kept = kept.without("reverted")
        kept = kept.confirmed()
        assert kept.set.get("broker", (GOOD, 0))[0] in (GOOD, "")


@given(PAIRS)
def test_the_file_holds_all_of_it(told: dict[str, tuple[Value, int]]) -> None:
    kept = taken(Kept(), Answer(3, told, 300), own=OWN, fits=lambda _: True)
    assert json.loads(written(kept))["version"] == 3


def test_a_file_that_has_gone_bad_is_a_device_that_asks_anew(tmp_path: Path) -> None:
    for name, content in (("settings.json", b"{"), ("commands.json", b"[3]")):
        (tmp_path / name).write_bytes(content)
    assert read(tmp_path / "settings.json") == Kept()
    assert Orders(tmp_path, kernel="").unheard() == ()


async def test_the_journal_keeps_the_last_names_and_every_end_that_was_not_heard(
    tmp_path: Path,
) -> None:
    orders = Orders(tmp_path, kernel="")

    async def act(order: Order) -> Mapping[str, Value]:
        if order.ttl_s == 1:
            raise FailedError("no", {"n": 1})
        if order.ttl_s == 2:
            raise RuntimeError("lost\nits way")
        return {}

    for number in range(MOST + 20):
        order = Order(f"cmd-{number:08}", "self-test", number)
        orders.begin(order)
        await orders.carry_out(order, act)
        if number > 2:
            orders.heard([order.command])
    found = Orders(tmp_path, kernel="")
    assert found.unheard() == (
        Outcome("cmd-00000000", DONE),
        Outcome("cmd-00000001", FAILED, "no", {"n": 1}),
        Outcome("cmd-00000002", FAILED, "error", {"error": "lost its way"}),
    )
    assert len(found._entries) == MOST
    assert not found.fresh([Order(f"cmd-{MOST + 19:08}", "self-test", 9)])
    assert found.fresh([Order("cmd-00000009", "self-test", 9)])  # long gone


def test_of_a_restart_the_next_start_says_how(tmp_path: Path) -> None:
    for before, after, how in (("a", "a", "agent"), ("a", "b", "machine"), ("", "", "agent")):
        state = tmp_path / how / (before or "none")
        Orders(state, kernel=before).begin(RESTART)
        assert Orders(state, kernel=after).unheard() == (
            Outcome(RESTART.command, DONE, "", {"restarted": how}),
        )
