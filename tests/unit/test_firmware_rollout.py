"""The engine of rollouts, held to a second account of it, and to what it promises."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.update import Phase
from server.errors import RefusedError
from server.firmware import life
from server.firmware.guards import Guard
from server.firmware.life import Contact, Counters, Execution, Here, Said, tally
from server.firmware.policy import (
    Gate,
    Guards,
    OnHalt,
    Policy,
    Retries,
    Timers,
)
from server.firmware.rollout import (
    Approved,
    Cancelled,
    Changed,
    Event,
    Joined,
    Kind,
    Paused,
    Planned,
    Regressed,
    Resumed,
    RevertEnded,
    Reverting,
    RevertRefused,
    Started,
    Strayed,
    Submitted,
    Ticked,
    Transition,
    decide,
    replayed,
)
from server.firmware.waves import WITHDRAWN, Rollout, State, WaveState
from tests.unit.rollout_reference import Reference

ZERO = datetime(2026, 1, 1, tzinfo=UTC)
SMALL = Policy(
    gate=Gate(success_pct=60, min_sample=2, soak_s=30),
    guards=Guards(fail_abs=3, fail_pct=50, min_sample=3, lost_abs=2),
    retries=Retries(network=1, storage=0, timeout=1, internal=1, backoff_s=10, most_backoff_s=15),
    timers=Timers(
        offered_s=20,
        accepted_s=20,
        downloading_s=20,
        ready_s=20,
        waiting_window_s=60,
        waiting_idle_s=60,
        installing_s=20,
        rebooting_s=20,
        trial_s=20,
        attempt_s=200,
        lost_s=60,
        straggler_s=60,
        defer_s=20,
        most_deferred_s=120,
    ),
    windows=None,
    on_halt=OnHalt.REVERT_FAILED,
)


@dataclass
class Engine:
    """The pure engine, moved by hand as conductor and reports move it."""

    policy: Policy = SMALL
    sizes: tuple[int, ...] = (2, 3)
    now_s: float = 0.0
    rows: list[Transition] = field(default_factory=list)
    pools: list[int] = field(default_factory=list)
    waves: list[int] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rollout = Rollout(self.policy, "user a")
        self.take(Planned(at=self.now, sizes=self.sizes))
        self.take(Submitted(at=self.now))
        self.take(Approved(at=self.now, actor="user b"))
        self.take(Started(at=self.now, sizes=self.sizes))
        for number, size in enumerate(self.sizes, 1):
            self._enlist(number, size)

    def _enlist(self, wave: int, number: int) -> None:
        self.pools += [wave] * number
        self.waves += [wave] * number
        self.executions += [Execution(due_at=self.now) for _ in range(number)]

    @property
    def now(self) -> datetime:
        """The time."""
        return ZERO + timedelta(seconds=self.now_s)

    @property
    def here(self) -> Here:
        """What executions are judged by."""
        rollout = self.rollout
        return Here(self.policy, self.now, rollout.epoch, rollout.state in WITHDRAWN)

    def take(self, event: Event) -> bool:
        """Let something happen; False if it is refused."""
        try:
            self.rollout, made = decide(self.rollout, event)
        except RefusedError:
            return False
        self.rows += made
        return True

    def put(self, number: int, after: Execution) -> None:
        """Let an execution be another."""
        before = self.executions[number]
        self.executions[number] = after
        if tally(before) != tally(after) or before.state is not after.state:
            self.take(Changed(at=self.now, wave=self.pools[number], before=before, after=after))

    def may_offer(self, number: int) -> bool:
        """Whether the device may be offered what is planned for it."""
        each, due = self.executions[number], self.executions[number].due_at
        planned = each.state is life.State.PLANNED
        return planned and self.pools[number] in self.rollout.offering() and due <= self.now  # type: ignore[operator]

    def offer(self, number: int) -> None:
        """Offer it."""
        pool = self.rollout.pool(self.waves[number])
        if pool != self.pools[number]:
            self.take(
                Strayed(at=self.now, wave=self.pools[number], execution=self.executions[number])
            )
            self.pools[number] = pool
        self.put(number, life.offered(self.executions[number], self.here))

    def joins(self, number: int) -> None:
        """Let devices join."""
        if self.take(Joined(at=self.now, devices=number)):
            self._enlist(len(self.sizes) + 1, number)


KINDS = ("", "network", "storage", "trust", "self_test", "timeout", "internal", "refused")
ENDS = (*[Phase.CONFIRMED] * 6, Phase.FAILED, Phase.REVERTED)
GOING = [*list(Phase)[:8] * 2, *Phase]
POLICIES = (
    SMALL,
    msgspec.structs.replace(SMALL, guards=Guards(fail_abs=2, fail_pct=100, lost_abs=1)),
    msgspec.structs.replace(SMALL, guards=Guards(fail_abs=9, fail_pct=25, min_sample=4)),
    msgspec.structs.replace(
        SMALL,
        gate=Gate(success_pct=75, min_sample=4, soak_s=0),
        guards=Guards(fail_abs=9, fail_pct=100, lost_abs=2),
    ),
)
WEIGHTS = {
    "offer": 24,
    "say": 14,
    "end": 14,
    "look": 8,
    "time": 6,
    "tick": 12,
    "pause": 0.5,
    "resume": 3,
    "take_back": 1,
    "expire": 0.2,
    "leave": 0.5,
    "supersede": 0.5,
    "mismatch": 1,
    "join": 0.7,
    "cancel": 0.1,
}


def _drawn(rng: random.Random, engine: Engine) -> tuple[str, list[Any]]:
    """Draw what happens next, most of it to devices that it may happen to."""
    op = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    numbers = list(range(len(engine.executions)))
    flying = [n for n in numbers if engine.executions[n].state in life.FLYING]
    planned = [n for n in numbers if engine.executions[n].state is life.State.PLANNED]
    likely = {"offer": planned, "say": flying, "end": flying, "look": flying}.get(op) or numbers
    number = rng.choice(likely if rng.random() < 0.9 else numbers)
    match op:
        case "say":
            late, fresh = rng.choice((-1, 0, 0, 0, 0, 1)), rng.random() < 0.8
            phase = rng.choice(GOING)
            kind, size = rng.choice(KINDS), rng.randint(0, 2)
            return "say", [number, late, rng.randint(1, 9), phase, kind, size, fresh]
        case "end":
            kind = rng.choice(KINDS)
            return "say", [number, 0, rng.randint(1, 9), rng.choice(ENDS), kind, 0, True]
        case "look":
            there, away = rng.random() < 0.6, rng.choice((0, 59, 60, 90))
            since = rng.uniform(0, engine.now_s) if there else None
            return "look", [number, since, away]
        case "time":
            return "time", [rng.choice((1, 5, 15, 20, 30, 60))]
        case "expire":
            return "expire", [rng.randint(1, 4)]
        case "join":
            return "join", [rng.randint(1, 2)]
        case _:
            return op, [number]


def _run(seed: int) -> Engine:
    """Let 200 things happen to both accounts, and hold them to each other after each."""
    rng = random.Random(seed)
    policy, sizes = rng.choice(POLICIES), rng.choice(((2, 3), (1, 4, 3), (5,), (4, 8)))
    engine, reference = Engine(policy, sizes), Reference(policy, sizes, 0.0)
    for device in reference.devices:
        device.due = 0.0
    for _ in range(200):
        _both(engine, reference, *_drawn(rng, engine))
        _same(engine, reference)
    return engine


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_the_engine_decides_as_a_second_account_of_it(seed: int) -> None:
    _held(_run(seed))


@pytest.mark.long
@settings(max_examples=4_000, deadline=None)
@given(st.integers(0, 2**32))
def test_the_engine_decides_as_a_second_account_of_it_four_thousand_times(seed: int) -> None:
    _held(_run(seed))


def _held(engine: Engine) -> None:
    """Hold its rows and counters to what it is."""
    folded = replayed(Rollout(engine.policy, "user a"), engine.rows)
    assert _told(folded) == _told(engine.rollout)
    for wave in engine.rollout.waves:
        mine = [e for e, p in zip(engine.executions, engine.pools, strict=True) if p == wave.number]
        assert sum(map(tally, mine), Counters()) == wave.total
        assert len(mine) == wave.size


def _told(rollout: Rollout) -> object:
    waves = [(w.number, w.state, w.opened_at, w.met_at, w.baseline) for w in rollout.waves]
    return rollout.state, rollout.epoch, rollout.revert, rollout.devices, waves


def _both(engine: Engine, reference: Any, op: str, args: list[Any]) -> None:
    """Let the same happen to both."""
    match op:
        case "time":
            engine.now_s += args[0]
            reference.now = engine.now_s
        case "tick":
            engine.take(Ticked(at=engine.now))
            reference.tick()
        case "pause":
            engine.take(Paused(at=engine.now, reason="so"))
            reference.pause()
        case "resume":
            engine.take(Resumed(at=engine.now, reason="so"))
            reference.resume()
        case "cancel":
            engine.take(Cancelled(at=engine.now, reason="so"))
            reference.cancel()
        case "take_back":
            if engine.rollout.state is State.CANCELLING:
                for number, each in enumerate(engine.executions):
                    engine.put(number, life.cancelled(each, engine.here))
            reference.take_back()
        case "join":
            engine.joins(args[0])
            reference.joins(args[0])
        case "expire":
            for number, each in enumerate(engine.executions):
                if engine.waves[number] == args[0]:
                    engine.put(number, life.expired(each, engine.here))
            reference.expire(args[0])
        case _:
            _device(engine, reference, op, args[0], args[1:])


def _device(engine: Engine, reference: Any, op: str, number: int, args: list[Any]) -> None:
    """Let the same happen to one device on both sides."""
    each, device, here = engine.executions[number], reference.devices[number], engine.here
    simple: dict[str, tuple[Callable[[Execution, Here], Execution], Callable[[Any], None]]] = {
        "leave": (life.left, reference.leaves),
        "supersede": (life.superseded, reference.superseded),
        "mismatch": (life.mismatched, reference.mismatched),
    }
    if op in simple:
        engine.put(number, simple[op][0](each, here))
        simple[op][1](device)
    elif op == "offer":
        assert engine.may_offer(number) == reference.may_offer(device)
        if engine.may_offer(number):
            engine.offer(number)
            reference.offer(device)
    elif op == "look":
        since, away = args
        contact = Contact(None if since is None else ZERO + timedelta(seconds=since), away)
        engine.put(number, life.looked_at(each, contact, here))
        reference.looked_at(device, since, away)
    else:
        late, seq, phase, kind, size, fresh = args
        attempt = max(1, each.attempt + late)
        kind = kind if phase in (Phase.FAILED, Phase.REJECTED) else ""
        said = Said(attempt, seq, phase, "", kind, size, fresh)
        for _ in range(2):  # whatever is said twice is said once
            engine.put(number, life.heard(engine.executions[number], said, engine.here))
        reference.said(device, attempt, seq, phase.value, kind=kind, size=size, fresh=fresh)


def _same(engine: Engine, reference: Any) -> None:
    """Hold what both have decided to each other."""
    assert engine.rollout.state.value == reference.state
    assert {w.number: w.state.value for w in engine.rollout.waves} == reference.waves
    halts = [row.detail["guard"] for row in engine.rows if row.kind is Kind.HALTED]
    assert halts == reference.guards
    assert [e.state.value.replace(" ", "_") for e in engine.executions] == [
        d.name.replace(" ", "_") for d in reference.devices
    ]
    assert [e.attempt for e in engine.executions] == [d.attempt for d in reference.devices]
    assert engine.pools == [d.pool for d in reference.devices]


# -- the words of the design, one by one -----------------------------------------------------------


@dataclass
class Script:
    """What befalls one device of a bad image: how it goes, and how many turns it takes."""

    end: str
    turns: int


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.builds(
            Script,
            st.sampled_from(("good", "failed", "network", "reverted", "lost", "timed")),
            st.integers(1, 6),
        ),
        min_size=5, max_size=60,
    ),
    st.integers(1, 10),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 2),
    st.integers(0, 2**32),
)  # fmt: skip
def test_it_halts_before_more_are_hurt_than_may_fail_and_are_in_flight(
    fleet: list[Script], in_flight: int, fail_abs: int, lost_abs: int, retries: int, seed: int
) -> None:
    policy = msgspec.structs.replace(
        SMALL,
        gate=Gate(success_pct=1, min_sample=2, soak_s=0),  # so lax that many waves are open
        guards=Guards(fail_abs=fail_abs, fail_pct=100, min_sample=1_000, lost_abs=lost_abs),
        retries=Retries(network=retries, storage=0, timeout=0, internal=0, backoff_s=10),
    )
    rng = random.Random(seed)
    sizes = tuple(len(part) for part in _parts(fleet, rng))
    engine, turns = Engine(policy, sizes), [each.turns for each in fleet]
    for second in range(10_000):
        engine.take(Ticked(at=engine.now))
        if second == 5:
            engine.joins(2)  # in the tail
            fleet = [*fleet, Script("reverted", 1), Script("reverted", 1)]
            turns += [1, 1]
        flying = [n for n, e in enumerate(engine.executions) if e.state in life.FLYING]
        ready = [n for n in range(len(fleet)) if engine.may_offer(n)]
        ready = ready[: max(0, in_flight - len(flying))]
        if engine.rollout.state is not State.RUNNING and not flying:
            break
        for number in ready:
            engine.offer(number)
        for number in rng.sample(flying, len(flying)):
            turns[number] -= 1
            if turns[number] <= 0:
                _hurt(engine, number, fleet[number].end)
        engine.now_s += 1
    hurt = [e for e in engine.executions if e.state in {*life.FAILURES, life.State.LOST}]
    assert len(hurt) < fail_abs + in_flight  # in all waves together
    if len(hurt) >= fail_abs:
        assert engine.rollout.state is State.HALTED


def _parts(fleet: list[Script], rng: random.Random) -> list[list[Script]]:
    """Return them in one to four waves, none of them empty."""
    cuts = sorted(rng.sample(range(1, len(fleet)), rng.randint(0, 3)))
    ends = zip([0, *cuts], [*cuts, len(fleet)], strict=True)
    return [fleet[low:high] for low, high in ends]


def _hurt(engine: Engine, number: int, end: str) -> None:
    """Let a device install, and end as it does."""
    attempt = engine.executions[number].attempt
    said = Said(attempt, 1, Phase.INSTALLING)
    engine.put(number, life.heard(engine.executions[number], said, engine.here))
    each, here = engine.executions[number], engine.here
    match end:
        case "good":
            after = life.heard(each, Said(attempt, 2, Phase.CONFIRMED), here)
        case "failed" | "network":
            kind = "network" if end == "network" else "self_test"
            after = life.heard(each, Said(attempt, 2, Phase.FAILED, kind=kind), here)
        case "reverted":
            after = life.heard(each, Said(attempt, 2, Phase.REVERTED), here)
        case "lost":
            after = life.looked_at(each, Contact(None, 60), here)
        case _:
            late = replace(here, now=here.now + timedelta(seconds=20))
            after = life.looked_at(each, Contact(ZERO), late)
    assert after.ended or end == "network"
    engine.put(number, after)


def test_above_its_blast_radius_somebody_else_than_the_author_approves() -> None:
    policy = msgspec.structs.replace(SMALL, blast_radius=5)
    for devices, refused in ((5, False), (6, True)):
        rollout = Rollout(policy, "user a")
        rollout, _ = decide(rollout, Planned(at=ZERO, sizes=(devices,)))
        rollout, _ = decide(rollout, Submitted(at=ZERO))
        if refused:
            with pytest.raises(RefusedError, match="somebody else"):
                decide(rollout, Approved(at=ZERO, actor="user a"))
        else:
            decide(rollout, Approved(at=ZERO, actor="user a"))
        decide(rollout, Approved(at=ZERO, actor="user b"))


def test_who_pauses_resumes_or_cancels_says_why() -> None:
    engine = Engine()
    for event in (Paused, Cancelled):
        with pytest.raises(RefusedError, match="say why"):
            decide(engine.rollout, event(at=ZERO, reason=" "))
    engine.take(Paused(at=ZERO, reason="lunch"))
    with pytest.raises(RefusedError, match="say why"):
        decide(engine.rollout, Resumed(at=ZERO))


def test_a_plan_that_reaches_nobody_goes_nowhere() -> None:
    with pytest.raises(RefusedError, match="no device"):
        decide(Rollout(SMALL, "user a"), Planned(at=ZERO, sizes=(0, 0)))


def test_a_wave_whose_devices_are_all_out_of_reach_passes_by_a_persons_word_alone() -> None:
    engine = Engine(sizes=(1, 3))
    engine.take(Ticked(at=engine.now))
    engine.put(0, life.expired(engine.executions[0], engine.here))
    assert engine.rollout.state is State.HALTED
    assert engine.rows[-1].detail["guard"] == Guard.EXHAUSTED
    engine.take(Resumed(at=engine.now, reason="the shop is being rebuilt"))
    assert engine.rollout.wave(1).state is WaveState.SKIPPED
    engine.take(Ticked(at=engine.now))
    assert engine.rollout.wave(2).state is WaveState.OPEN


def test_who_refused_before_it_was_acknowledged_is_awaited_no_more() -> None:
    policy = msgspec.structs.replace(SMALL, gate=Gate(success_pct=60, min_sample=4, soak_s=0))
    engine = Engine(policy, sizes=(4,))
    engine.take(Ticked(at=engine.now))
    for number in (0, 1):
        _refuses(engine, number)
    wave = engine.rollout.wave(1)
    assert (wave.since.refused, wave.eligible) == (2, 4)
    engine.take(Paused(at=engine.now, reason="to look"))
    engine.take(Resumed(at=engine.now, reason="these two are too old"))
    wave = engine.rollout.wave(1)
    assert (wave.baseline.refused, wave.since.refused, wave.eligible) == (2, 0, 2)
    for number in (2, 3):  # a sample of four can't be had any more: the two are all there are
        engine.offer(number)
        _hurt(engine, number, "good")
    engine.take(Ticked(at=engine.now))
    assert engine.rollout.wave(1).state is WaveState.PASSED


def _refuses(engine: Engine, number: int) -> None:
    """Let a device refuse what it is offered."""
    engine.offer(number)
    said = Said(1, 1, Phase.REJECTED, kind="refused")
    engine.put(number, life.heard(engine.executions[number], said, engine.here))


@pytest.mark.parametrize(("ended", "became"), [(2, WaveState.SKIPPED), (1, WaveState.OPEN)])
def test_resuming_skips_an_open_wave_of_which_nobody_is_left(ended: int, became: WaveState) -> None:
    engine = Engine(sizes=(2, 3))
    engine.take(Ticked(at=engine.now))
    for number in (0, 1):
        engine.offer(number)
    event = Regressed(at=engine.now, wave=0, guard=Guard.HEALTH, found=9, limit=3)
    engine.take(event)  # the stragglers halt it, and so the wave's own end does not
    for number in range(ended):
        _hurt(engine, number, "failed")
    assert engine.rollout.wave(1).state is WaveState.OPEN
    engine.take(Resumed(at=engine.now, reason="so"))
    assert engine.rollout.wave(1).state is became


def test_counts_that_got_worse_halt_and_resuming_lets_the_wave_go_on() -> None:
    engine = Engine()
    engine.take(Ticked(at=engine.now))
    event = Regressed(at=engine.now, wave=1, guard=Guard.COUNTS, found=5.2, limit=3)
    engine.take(event)
    assert engine.rollout.state is State.HALTED
    assert engine.rollout.revert is OnHalt.REVERT_ALL  # nobody has failed
    assert engine.rollout.wave(1).state is WaveState.FAILED
    assert not engine.rollout.offering()
    engine.take(Resumed(at=engine.now, reason="a campaign ended"))
    assert engine.rollout.wave(1).state is WaveState.OPEN


def test_a_halt_goes_on_as_reverting_and_ends_as_its_reverse_does() -> None:
    engine = Engine()
    engine.take(Ticked(at=engine.now))
    engine.take(Regressed(at=engine.now, wave=1, guard=Guard.HEALTH, found=9, limit=3))
    halted = engine.rollout
    engine.take(RevertRefused(at=engine.now, reason="the floor was raised"))
    assert (engine.rollout.state, engine.rollout.revert) == (State.HALTED, OnHalt.KEEP)
    engine.rollout = halted
    assert engine.take(Reverting(at=engine.now, by="rollout-2", how=OnHalt.REVERT_ALL))
    assert engine.rollout.state is State.REVERTING
    for whole, state in ((True, State.REVERTED), (False, State.HALTED)):
        ended, _ = decide(engine.rollout, RevertEnded(at=engine.now, whole=whole))
        assert ended.state is state
    back = replace(Engine().rollout, reverse=True)
    with pytest.raises(RefusedError, match="not reverted itself"):
        decide(back, Reverting(at=ZERO, by="rollout-3", how=OnHalt.REVERT_ALL))


@pytest.mark.parametrize(
    ("on_halt", "guard", "taken_back"),
    [
        (OnHalt.REVERT_FAILED, Guard.FAIL_ABS, OnHalt.REVERT_FAILED),
        (OnHalt.REVERT_FAILED, Guard.COUNTS, OnHalt.REVERT_ALL),
        (OnHalt.REVERT_FAILED, Guard.HEALTH, OnHalt.REVERT_ALL),
        (OnHalt.KEEP, Guard.COUNTS, OnHalt.KEEP),
        (Policy().on_halt, Guard.FAIL_ABS, OnHalt.REVERT_ALL),
    ],
)
def test_a_halt_takes_back_what_its_policy_and_its_guard_mean(
    on_halt: OnHalt, guard: Guard, taken_back: OnHalt
) -> None:
    engine = Engine(msgspec.structs.replace(SMALL, on_halt=on_halt))
    engine.take(Ticked(at=engine.now))
    engine.take(Regressed(at=engine.now, wave=1, guard=guard, found=5, limit=3))
    assert engine.rollout.revert is taken_back


@pytest.mark.parametrize("end", ["reverted", "lost"])
@pytest.mark.parametrize(
    ("before", "late", "taken_back"),
    [
        (2, 1, OnHalt.REVERT_ALL),
        (1, 2, OnHalt.REVERT_ALL),
        (0, 3, OnHalt.KEEP),
    ],
)
def test_only_the_tails_own_failures_excuse_those_who_passed_before_it(
    before: int, late: int, taken_back: OnHalt, end: str
) -> None:
    guards = Guards(fail_abs=3, fail_pct=100, lost_abs=3)
    policy = msgspec.structs.replace(SMALL, on_halt=OnHalt.REVERT_ALL, guards=guards)
    engine = Engine(policy, sizes=(8,))
    engine.take(Ticked(at=engine.now))
    for number in range(8):
        engine.offer(number)
        _hurt(engine, number, end if number < before else "good")
    engine.take(Ticked(at=engine.now))
    engine.joins(4)
    engine.now_s += 30
    engine.take(Ticked(at=engine.now))
    assert engine.rollout.wave(1).state is WaveState.PASSED
    assert engine.rollout.wave(2).state is WaveState.OPEN
    for number in range(8, 8 + late):
        assert engine.rollout.state is State.RUNNING
        engine.offer(number)
        _hurt(engine, number, end)
    assert engine.rollout.state is State.HALTED
    assert engine.rows[-1].detail["wave"] == 2
    assert engine.rollout.revert is taken_back
