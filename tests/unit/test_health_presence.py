"""Presence: whatever order things arrive in, the state is that of a slow and plain model."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from server.health.judgement import Condition, Standing
from server.health.platform import (
    LEAST_LOST,
    LEAST_SITES,
    LOSS_WINDOW,
    SETTLED,
    STALL,
    Cause,
    Platform,
    Signs,
    turned,
)
from server.health.platform import judgement as platform_judgement
from server.health.presence import (
    CLOSED,
    DRAIN,
    GRACE,
    LATE_BACK,
    PLANNED_MOST,
    Facts,
    Kind,
    Limits,
    Presence,
    Said,
    Session,
    State,
    evidence,
    heard,
    judged,
    judgements,
)

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY_S = 86_400
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def always(low: int, high: int) -> list[tuple[int, int]]:
    return [(low, high)]


def daytime(low: int, high: int) -> list[tuple[int, int]]:
    """Open from 10 to 20, UTC."""
    found = []
    for day in range(low // DAY_S - 1, high // DAY_S + 1):
        opens, closes = day * DAY_S + 36_000, day * DAY_S + 72_000
        if max(low, opens) < min(high, closes):
            found.append((max(low, opens), min(high, closes)))
    return found


def told(*said: Said, presence: Presence | None = None) -> Presence:
    found = presence or Presence(since=at(-DAY_S))
    for each in said:
        found = heard(found, each)
    return found


def hello(epoch: int, seconds: float = 0) -> Said:
    return Said(Kind.HELLO, epoch, at(seconds))


def will(epoch: int, seconds: float = 0) -> Said:
    return Said(Kind.WILL, epoch, at(seconds))


def bye(epoch: int, seconds: float = 0, *, back_s: float | None = None) -> Said:
    return Said(Kind.BYE, epoch, at(seconds), "stopped", None if back_s is None else at(back_s))


# -- the model: all history, every rule read from its sentence ------------------------------------

OPENED: dict[object, Callable[[int], int]] = {
    always: lambda t: t,
    daytime: lambda t: t // DAY_S * 36_000 + min(max(t % DAY_S - 36_000, 0), 36_000),
}
"""For how many seconds it has been open since 1970."""


@dataclass
class Model:
    """Knows everything that was ever said and forgets nothing. Slow, and plain."""

    history: list[Said]

    def session(self) -> tuple[Session, int | None, Said | None]:
        """Return the session, its epoch, and what was said that made it so."""
        over: set[int] = set()
        current: tuple[Session, int | None, Said | None] = (Session.NONE, None, None)
        for said in self.history:
            is_open = current[0] is Session.OPEN
            if said.epoch in over or (said.kind is Kind.HELLO and current[:2] == (
                Session.OPEN, said.epoch
            )):  # fmt: skip
                continue
            if said.kind is Kind.HELLO:
                if is_open and current[1] is not None:
                    over.add(current[1])
                current = (Session.OPEN, said.epoch, said)
                continue
            over.add(said.epoch)
            if current[0] is Session.NONE or (is_open and current[1] == said.epoch):
                ended = Session.LOST if said.kind is Kind.WILL else Session.LEFT
                current = (ended, said.epoch, said)
        return current

    def state(self, facts: Facts, limits: Limits, now: datetime) -> State | None:
        """Return the state, None where it is not decided yet and stays what it was."""
        session, _, made = self.session()
        if made is None:
            return State.NEVER_SEEN
        if session is Session.LOST:
            return State.OFFLINE if now - made.at >= GRACE else None
        if session is Session.LEFT:
            end = made.at + PLANNED_MOST
            if made.until is not None:
                end = min(end, made.until + LATE_BACK)
            return State.PLANNED if now < end else State.OFFLINE
        beat = max(t for t in (made.at, facts.heartbeat_at) if t is not None)
        data = max(t for t in (made.at, facts.data_at) if t is not None)
        broker = facts.broker_since
        if broker is not None and beat < broker and data < broker:
            return State.OFFLINE if now - broker >= DRAIN else None
        if now - beat >= limits.heartbeat:
            return State.NO_HEARTBEAT
        if facts.open_between is not None:
            opened = OPENED[facts.open_between]
            silent = opened(int(now.timestamp())) - opened(int(data.timestamp()))
            if silent >= limits.data.total_seconds():
                return State.NO_DATA
        return State.HEALTHY


def random_history(rng: random.Random) -> list[Said]:
    """Return what was said of connections: in order, then shuffled, doubled, at equal times."""
    said: list[Said] = []
    for epoch in rng.sample(range(100), rng.randint(0, 5)):
        said += [Said(Kind.HELLO, epoch, NOON)] * rng.randint(0, 2)
        if rng.random() < 0.6:
            said.append(Said(Kind.WILL, epoch, NOON))
        if rng.random() < 0.3:
            back = rng.choice((None, 60, 3_600, 200_000))
            until = None if back is None else at(back)
            said.append(Said(Kind.BYE, epoch, NOON, rng.choice(("", "stopped", "update")), until))
    for _ in range(rng.randint(0, 6)):  # reordered
        if len(said) > 1:
            i = rng.randrange(len(said) - 1)
            j = min(len(said) - 1, i + rng.randint(1, 4))
            said[i], said[j] = said[j], said[i]
    for _ in range(rng.randint(0, 3)):  # doubled
        if said:
            said.insert(rng.randrange(len(said) + 1), rng.choice(said))
    clock = -3 * 3_600
    timed = []
    for each in said:  # as they arrive, many in the same instant
        clock += rng.choice((0, 0, 0, 1, 10, 60, 600))
        timed.append(replace(each, at=at(clock)))
    return timed


def random_facts(rng: random.Random) -> Facts:
    def maybe(share: float) -> datetime | None:
        return at(-60 * rng.randint(0, 200)) if rng.random() < share else None

    return Facts(maybe(0.7), maybe(0.7), maybe(0.2), rng.choice((None, always, daytime)))


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(10_000), id="10,000 histories"),
        pytest.param(range(10_000, 400_000), id="many more", marks=pytest.mark.long),
    ],
)
def test_every_history_ends_in_the_state_that_the_model_gives_it(seeds: range) -> None:
    states: set[State] = set()
    for seed in seeds:
        rng = random.Random(seed)
        history, facts = random_history(rng), random_facts(rng)
        limits = Limits(MINUTE * rng.randint(10, 90), MINUTE * rng.randint(10, 90))
        presence = replace(told(*history), limits=limits)
        model = Model(history)
        session, epoch, _ = model.session()
        assert (presence.session, presence.epoch) == (session, epoch), seed
        now = at(60 * rng.randint(0, 30))
        found = judged(presence, facts, watermark=now)
        wanted = model.state(facts, limits, now)
        assert found.state is (wanted or presence.state), seed
        assert wanted is not None or found.due_at is not None, seed
        if found.state not in (State.OFFLINE, State.NEVER_SEEN):
            assert found.due_at is not None, seed
            assert found.due_at > now, seed
        states.add(found.state)
    assert states == set(State)


def test_what_is_heard_twice_changes_nothing_the_second_time() -> None:
    for seed in range(500):
        history = random_history(random.Random(seed))
        presence = told(*history)
        if presence.session is not Session.NONE:
            again = random.Random(seed).choice(history)
            if again.epoch != presence.epoch and again.epoch in presence.closed:
                assert heard(presence, again) == presence


def test_judging_at_the_deadline_and_a_moment_before_it_differ() -> None:
    """A deadline has passed once the watermark has reached it: no instant is both or neither."""
    for seed in range(2_000):
        rng = random.Random(seed)
        presence, facts = told(*random_history(rng)), random_facts(rng)
        now = at(0)
        found = judged(presence, facts, watermark=now)
        for _ in range(5):  # from one deadline to the next, nothing is decided in between
            if found.due_at is None:
                break
            due = found.due_at
            before = judged(found, facts, watermark=due - timedelta(microseconds=1))
            assert before.state is found.state, seed
            found = judged(found, facts, watermark=due)


# -- edge cases by name ----------------------------------------------------------------------------


def test_a_frame_as_late_as_the_deadline_is_in_time_and_one_before_it_is_not() -> None:
    presence = judged(told(hello(1)), Facts(at(0), at(0)), watermark=at(0))
    due = presence.due_at
    assert due is not None
    limit = presence.limits.heartbeat
    deadline = at(0) + limit
    assert judged(presence, Facts(at(0)), watermark=deadline).state is State.NO_HEARTBEAT
    assert judged(presence, Facts(deadline), watermark=deadline).state is State.HEALTHY
    just = deadline - timedelta(microseconds=1)
    assert judged(presence, Facts(at(0)), watermark=just).state is State.HEALTHY


def test_a_heartbeat_in_the_same_instant_clears_what_the_deadline_has_raised() -> None:
    silent = judged(told(hello(1)), Facts(), watermark=at(2_700))
    assert silent.state is State.NO_HEARTBEAT
    assert judged(silent, Facts(at(2_700)), watermark=at(2_700)).state is State.HEALTHY


def test_hello_and_will_of_one_epoch_at_equal_times_end_the_same_in_both_orders() -> None:
    one, other = told(hello(1), will(1)), told(will(1), hello(1))
    assert one.session is other.session is Session.LOST
    assert one.closed == other.closed == (1,)


def test_the_first_message_ever_decides_whatever_it_is() -> None:
    for first, state in (
        (hello(1), State.HEALTHY),
        (will(1), State.OFFLINE),
        (bye(1), State.PLANNED),
    ):
        found = told(first)
        assert found.due_at is not None
        assert judged(found, Facts(), watermark=at(60)).state is state


def test_a_timeout_edited_while_offline_counts_from_the_next_connection_on() -> None:
    offline = judged(told(hello(1), will(1, 5)), Facts(), watermark=at(60))
    edited = replace(offline, limits=Limits(heartbeat=10 * MINUTE))
    still = judged(edited, Facts(), watermark=at(3_600))
    assert (still.state, still.since, still.due_at) == (State.OFFLINE, at(5), None)
    back = judged(heard(still, hello(2, 7_200)), Facts(), watermark=at(7_201))
    assert (back.state, back.since) == (State.HEALTHY, at(7_200))
    assert judged(back, Facts(), watermark=at(7_800)).state is State.NO_HEARTBEAT


def test_a_timeout_raised_while_it_is_silent_is_not_silence_any_more() -> None:
    silent = judged(told(hello(1)), Facts(), watermark=at(2_700))
    raised = replace(silent, limits=Limits(heartbeat=2 * HOUR))
    assert judged(raised, Facts(), watermark=at(2_800)).state is State.HEALTHY


def test_a_device_that_was_made_and_never_seen_stays_so_and_is_never_due() -> None:
    made = Presence(since=at(0))
    for days in (0, 1, 400):
        found = judged(made, Facts(open_between=always), watermark=at(days * DAY_S))
        assert (found.state, found.since, found.due_at) == (State.NEVER_SEEN, at(0), None)
    assert {j.standing for j in judgements(1, made, watermark=at(0))} == {Standing.UNKNOWN}


def test_a_stale_will_after_a_takeover_is_not_the_new_connections() -> None:
    taken = told(hello(1), hello(2, 30), will(1, 31))
    assert (taken.session, taken.epoch, taken.closed) == (Session.OPEN, 2, (1,))
    assert judged(taken, Facts(), watermark=at(60)).state is State.HEALTHY


def test_a_closed_epoch_never_opens_again() -> None:
    for ended in (will(1, 5), bye(1, 5), hello(2, 5)):
        after = told(hello(1), ended)
        assert 1 in after.closed
        assert heard(after, hello(1, 6)) == after
        assert heard(after, will(1, 6)) == after


def test_the_will_of_an_epoch_that_never_greeted_ends_it_before_it_began() -> None:
    found = told(hello(1), will(2, 5), hello(2, 6))
    assert (found.session, found.epoch) == (Session.OPEN, 1)


def test_only_the_last_closed_epochs_are_remembered() -> None:
    found = told(*(hello(epoch) for epoch in range(40)))
    assert found.closed == tuple(range(39 - CLOSED, 39))


def test_who_is_back_within_the_grace_was_never_gone() -> None:
    healthy = judged(told(hello(1)), Facts(), watermark=at(0))
    lost = heard(healthy, will(1, 100))
    waiting = judged(lost, Facts(), watermark=at(105))
    assert (waiting.state, waiting.due_at) == (State.HEALTHY, at(100) + GRACE)
    back = judged(heard(waiting, hello(2, 108)), Facts(), watermark=at(200))
    assert (back.state, back.since) == (State.HEALTHY, healthy.since)
    assert judged(waiting, Facts(), watermark=at(110)).since == at(100)


def test_a_goodbye_is_believed_until_it_said_and_a_day_at_most() -> None:
    for said, end in (
        (bye(1, 0, back_s=600), at(600) + LATE_BACK),
        (bye(1), at(0) + PLANNED_MOST),
        (bye(1, 0, back_s=30 * DAY_S), at(0) + PLANNED_MOST),
    ):
        found = judged(told(hello(1, -9), said), Facts(), watermark=at(1))
        assert (found.state, found.due_at) == (State.PLANNED, end)
        late = judged(found, Facts(), watermark=end)
        assert (late.state, late.since, late.due_at) == (State.OFFLINE, at(0), None)


def test_a_closed_shop_is_rightly_silent_and_judged_in_opening_time_alone() -> None:
    last = NOON.replace(hour=19, minute=30)  # half an hour of the 90 minutes before closing
    found = judged(told(hello(1)), Facts(last, last, None, daytime), watermark=last)
    for hours in (1, 8, 14):
        now = last + timedelta(hours=hours)
        found = judged(found, Facts(now, last, None, daytime), watermark=now)
        assert found.state is State.HEALTHY
    opened = NOON.replace(day=3, hour=11)
    before = opened - SECOND
    assert judged(found, Facts(before, last, None, daytime), watermark=before).state is (
        State.HEALTHY
    )
    silent = judged(found, Facts(opened, last, None, daytime), watermark=opened)
    assert (silent.state, silent.since) == (State.NO_DATA, last)


def test_a_device_that_stands_nowhere_owes_no_data() -> None:
    found = judged(told(hello(1)), Facts(at(DAY_S), None, None, None), watermark=at(DAY_S))
    assert found.state is State.HEALTHY


def test_a_connection_that_is_older_than_the_broker_is_waited_for_and_then_over() -> None:
    open_ = judged(told(hello(1)), Facts(), watermark=at(1))
    restarted = Facts(broker_since=at(600))
    waiting = judged(open_, restarted, watermark=at(700))
    assert (waiting.state, waiting.due_at) == (State.HEALTHY, at(600) + DRAIN)
    gone = judged(waiting, restarted, watermark=at(600) + DRAIN)
    assert (gone.state, gone.since) == (State.OFFLINE, at(600))
    back = judged(heard(gone, hello(2, 900)), restarted, watermark=at(900))
    assert back.state is State.HEALTHY
    speaks = judged(open_, replace(restarted, heartbeat_at=at(601)), watermark=at(900))
    assert speaks.state is State.HEALTHY  # a frame since then proves that it never ended


def test_a_gone_device_tells_nothing_of_its_data_and_unknown_clears_nothing() -> None:
    gone = judged(told(hello(1), will(1, 5)), Facts(at(0), at(0)), watermark=at(60))
    by = {j.condition: j for j in judgements(7, gone, watermark=at(60))}
    assert by[Condition.OFFLINE].standing is Standing.FIRING
    assert by[Condition.OFFLINE].since == at(5)
    assert by[Condition.OFFLINE].affected_from == at(0)
    assert by[Condition.OFFLINE].evidence["session_s"] == 55.0
    assert by[Condition.OFFLINE_PLANNED].standing is Standing.CLEAR
    assert by[Condition.NO_DATA].standing is Standing.UNKNOWN
    unknown = judgements(7, gone, watermark=at(60), known=False)
    assert {j.standing for j in unknown} == {Standing.UNKNOWN}


def test_the_evidence_says_what_was_said_and_how_long_each_signal_is_missing() -> None:
    left = judged(told(hello(1), bye(1, 10, back_s=70)), Facts(at(4), at(2)), watermark=at(20))
    assert evidence(left, watermark=at(20)) == {
        "session": "left",
        "session_s": 10.0,
        "heartbeat_s": 16.0,
        "data_s": 18.0,
        "heartbeat_limit_s": 2_700.0,
        "data_limit_s": 5_400.0,
        "reason": "stopped",
        "until": at(70).isoformat(),
    }


# -- the platform ----------------------------------------------------------------------------------


def well(seconds: float, **signs: object) -> Signs:
    return replace(Signs(at(seconds), at(-DAY_S)), **signs)  # type: ignore[arg-type]


KNOWN = Platform(broker_seen=at(-DAY_S))


def test_nothing_is_unknown_before_anything_has_begun() -> None:
    assert turned(Platform(), Signs(None), now=at(0)) == Platform()
    first = turned(Platform(), Signs(None, at(0)), now=at(1))
    assert first == Platform(broker_seen=at(0))
    assert turned(first, Signs(None, at(0)), now=at(1) + STALL).cause is Cause.BEHIND


def test_a_watermark_that_stands_still_is_one_unknown_since_it_stood() -> None:
    assert turned(KNOWN, well(0), now=at(0) + STALL) == KNOWN
    stalled = turned(KNOWN, well(0), now=at(1) + STALL)
    assert (stalled.cause, stalled.since) == (Cause.BEHIND, at(0))
    assert turned(stalled, well(0), now=at(3_600)) == stalled
    assert turned(stalled, well(3_600), now=at(3_601)) == KNOWN


def test_a_broker_that_was_started_again_is_unknown_until_its_devices_are_back() -> None:
    since = at(100)
    signs = well(101, broker_since=since, open=10, before=10)
    found = turned(KNOWN, signs, now=at(101))
    assert (found.cause, found.since, found.broker_seen) == (Cause.BROKER, since, since)
    found = turned(found, replace(signs, watermark=at(110), before=3), now=at(111))
    assert found.cause is Cause.BROKER
    over = turned(found, replace(signs, watermark=at(120), before=0), now=at(121))
    assert over == Platform(broker_seen=since)
    late = since + DRAIN
    assert turned(found, replace(signs, watermark=late, before=3), now=late).cause is None


def test_a_broker_that_was_away_for_long_is_still_one_unknown() -> None:
    away = turned(KNOWN, well(0), now=at(60))
    back = turned(away, well(301, broker_since=at(300), open=5, before=5), now=at(302))
    assert (back.cause, back.since) == (Cause.BROKER, at(0))


def test_many_sites_that_vanish_together_are_our_own_uplink_and_a_few_are_themselves() -> None:
    many = {"lost": 40, "sites": 12, "open": 60, "gone": 40}
    for fewer in ({}, {"lost": LEAST_LOST - 1}, {"sites": LEAST_SITES - 1}, {"open": 900}):
        found = turned(KNOWN, well(0, **{**many, **fewer}), now=at(0))
        assert (found.cause is Cause.UPLINK) is (fewer == {}), fewer
    cut = turned(KNOWN, well(0, **many), now=at(0))
    settled = timedelta(seconds=1) + SETTLED
    later = replace(well(0, open=10, gone=90), watermark=at(0) + settled)
    assert turned(cut, later, now=at(0) + settled).cause is Cause.UPLINK
    themselves = replace(later, open=80, gone=20)
    assert turned(cut, themselves, now=at(0) + settled).cause is None
    assert turned(cut, well(40, open=100), now=at(40)).cause is None  # all are back
    assert LOSS_WINDOW < SETTLED


@pytest.mark.parametrize("cause", list(Cause))
def test_the_platforms_own_judgement_says_why(cause: Cause) -> None:
    found = platform_judgement(Platform(cause, at(0)), now=at(9))
    assert (found.standing, found.since) == (Standing.FIRING, at(0))
    assert found.evidence == {"cause": cause.value, "since_s": 9.0}
    assert platform_judgement(KNOWN, now=at(9)).standing is Standing.CLEAR
